"""The signer between a fake enclave and fake coordinators, over its real sockets and real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import random
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from appliance import relay
from appliance.durations import Durations
from appliance.signer import courier
from appliance.signer.config import CoordinatorSettings, SignerConfig, load_config
from appliance.signer.errors import LinkDown
from appliance.signer.flow import Backoff
from appliance.signer.metrics import SignerMetrics
from appliance.signer.process import serve, serve_enclave
from appliance.signer.status import SignerStatus
from appliance.store.failures import StoreFailed
from appliance.store.signer import SignerStore
from enclave import wire
from policies.errors import CallerError
from tests.fakes.signer_side import EnclaveConnection, FakeCoordinator, FakeEnclave, attached, within
from tests.fakes.tls import TlsFiles

KEY_ID = "key_" + "ab" * 16
CEREMONY = b"c" * 16
REQUEST = wire.ClientRequest("POST", f"/v1/keys/{KEY_ID}/signatures", b"{}", "a..b")
SIGN = wire.SignOrder(CEREMONY, KEY_ID, REQUEST, (1, 2, 3), wire.PresignatureName(bytes(32), 1))
RECORD = wire.Record("key", KEY_ID, 1, b"sealed")
ENTRY = wire.AuditEntry(1, b"decision", b"h" * 32, b"")
REFUSED = wire.RequestRefused(CEREMONY, "gate", "no")
PREPARE = wire.PrepareOrder(CEREMONY, "keygen")

NO_POLICY = wire.PolicyTold()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return TlsFiles.make(tmp_path_factory.mktemp("tls"))


class GatedStore:
    """A store whose commits wait for `opened`, or fail with `error`; counts what has been committed."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.started = asyncio.Event()
        self.error: StoreFailed | None = None
        self.committed: list[object] = []

    def record(self, kind: str, name: str) -> wire.Record | None:
        return None

    def audit_head(self) -> tuple[int, bytes]:
        return 0, bytes(32)

    async def put_records(self, records: Sequence[wire.Record], audit: Sequence[wire.AuditEntry] = ()) -> None:
        await self._commit([*records, *audit])

    async def append_audit(
        self, entries: Sequence[wire.AuditEntry], certificates: Sequence[object] = (), answer: object = None
    ) -> None:
        await self._commit(entries)

    def answer(self, name: bytes) -> None:
        return None

    def certificates_after(self, seq: int, key_id: str, limit: int) -> tuple[int, list[tuple[int, Any]]]:
        return seq, []

    async def _commit(self, items: Sequence[object]) -> None:
        self.started.set()
        await self.opened.wait()
        if self.error is not None:
            raise self.error
        self.committed.extend(items)


def config_of(directory: pathlib.Path, tls: TlsFiles, ports: dict[str, int]) -> SignerConfig:
    return SignerConfig(
        network="test",
        enclave_socket=directory / "enclave.sock",
        state=directory / "signer.db",
        coordinators=tuple(
            CoordinatorSettings(name, f"https://127.0.0.1:{port}", tls.ca, tls.client_certificate, tls.client_key)
            for name, port in ports.items()
        ),
    )


@asynccontextmanager
async def running(main: Awaitable[None]) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(main)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def network(
    directory: pathlib.Path, tls: TlsFiles, store: GatedStore | None = None
) -> AsyncIterator[tuple[FakeEnclave, FakeCoordinator, asyncio.Future[None]]]:
    """One enclave, one coordinator `c1`, and a signer between them (with its real store unless one is given)."""
    async with (
        FakeEnclave.listening(directory / "enclave.sock") as enclave,
        FakeCoordinator.listening(tls) as (coordinator, port),
    ):
        config = config_of(directory, tls, {"c1": port})
        source = random.Random(1)
        main = (
            serve(config, source)
            if store is None
            else serve_enclave(config, store, None, source, Backoff(0.01, 0.1, source), SignerMetrics(Durations()))
        )
        async with running(main) as task:
            yield enclave, coordinator, task


async def linked(enclave: FakeEnclave, coordinator: FakeCoordinator) -> EnclaveConnection:
    connection = await enclave.connection()
    assert await connection.next() == wire.Presence("c1", ())
    await coordinator.announced()
    return connection


async def test_attach_announce_and_every_way(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    store = SignerStore.open(tmp_path / "signer.db")
    prss = wire.Record("prss", "prss", 4, b"seeds, sealed")
    await store.put_records([prss, RECORD], [ENTRY])
    await store.close()
    async with network(tmp_path, tls) as (enclave, coordinator, _):
        connection = await enclave.connection()
        assert connection.attach.prss == prss
        assert (connection.attach.audit_seq, connection.attach.audit_head) == (1, ENTRY.hash)
        assert await connection.next() == wire.Presence("c1", ())
        assert (await coordinator.announced()).enclave == attached()

        await coordinator.send(relay.Online((1, 2)))
        assert await connection.next() == wire.Presence("c1", (1, 2))
        await coordinator.send(relay.Deliver(2, b"frame"))
        assert await connection.next() == wire.PeerFrame("c1", 2, b"frame")
        await coordinator.send(relay.OrderDown(SIGN))
        assert await connection.next() == wire.Order("c1", SIGN, RECORD)
        await coordinator.send(relay.OrderDown(PREPARE), bulk=True)
        assert await connection.next() == wire.Order("c1", PREPARE, None)

        connection.send(wire.ToPeer("c1", 2, False, b"control"))
        assert await coordinator.next() == (False, relay.Forward(2, b"control"))
        connection.send(wire.ToPeer("c1", 3, True, b"bulk" * 500_000))
        assert await coordinator.next() == (True, relay.Forward(3, b"bulk" * 500_000))


async def test_an_order_for_an_unknown_key_has_no_record(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    async with network(tmp_path, tls) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        await coordinator.send(relay.OrderDown(SIGN))
        assert await connection.next() == wire.Order("c1", SIGN, None)


async def test_what_the_enclave_stores_comes_back_with_orders(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    async with network(tmp_path, tls) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        connection.send(wire.Store(7, (RECORD,)))
        assert await connection.next() == wire.Stored(7)
        await coordinator.send(relay.OrderDown(SIGN))
        assert await connection.next() == wire.Order("c1", SIGN, RECORD)


async def test_a_report_leaves_after_its_audit_entries_are_committed(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    store = GatedStore()
    async with network(tmp_path, tls, store) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        connection.send(wire.Report("c1", REFUSED, (ENTRY,)))
        connection.send(wire.Report("c1", wire.LinkReport(2, True, ""), ()))
        connection.send(wire.ToPeer("c1", 2, False, b"marker"))
        await within(store.started.wait())
        # The frame was sent last and overtakes; reports wait, also the one that has nothing to commit.
        assert await coordinator.next() == (False, relay.Forward(2, b"marker"))
        assert coordinator.heard.empty()
        assert store.committed == []
        store.opened.set()
        assert await coordinator.next() == (False, relay.ReportUp(REFUSED))
        assert store.committed == [ENTRY]
        assert await coordinator.next() == (False, relay.ReportUp(wire.LinkReport(2, True, "")))


async def test_stored_without_records_says_that_all_before_it_is_on_disk(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    """What an enclave tells its peers of its state rests on this (SPEC 0.7)."""
    store = GatedStore()
    async with network(tmp_path, tls, store) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        connection.send(wire.Audit((ENTRY,)))
        connection.send(wire.Store(9, ()))
        await within(store.started.wait())
        assert connection.received.empty()
        assert store.committed == []
        store.opened.set()
        await connection.until(wire.Stored(9))
        assert store.committed == [ENTRY]


async def test_nothing_leaves_when_the_store_fails(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    store = GatedStore()
    store.error = StoreFailed("x", "full", "free space", lasting=False)
    async with network(tmp_path, tls, store) as (enclave, coordinator, task):
        connection = await linked(enclave, coordinator)
        connection.send(wire.Report("c1", REFUSED, (ENTRY,)))
        connection.send(wire.Store(1, (RECORD,)))
        await within(store.started.wait())
        store.opened.set()
        with pytest.raises(StoreFailed, match="full"):
            await within(asyncio.shield(task))
        assert await connection.next() is None  # closed, without `Stored`
        assert coordinator.heard.empty()


async def test_commits_under_way_are_awaited_when_the_enclave_goes(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    store = GatedStore()
    async with network(tmp_path, tls, store) as (enclave, coordinator, task):
        connection = await linked(enclave, coordinator)
        connection.send(wire.Report("c1", REFUSED, (ENTRY,)))
        await within(store.started.wait())
        connection.close()
        store.opened.set()
        with pytest.raises(LinkDown):
            await within(asyncio.shield(task))
        assert store.committed == [ENTRY]


async def test_the_enclave_restarts(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    async with network(tmp_path, tls) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        connection.send(wire.Audit((ENTRY,)))
        connection.send(wire.Store(1, (RECORD,)))
        assert await connection.next() == wire.Stored(1)
        enclave.answer = attached(boot=2)
        connection.close()
        again = await enclave.connection()
        assert (again.attach.audit_seq, again.attach.audit_head) == (1, ENTRY.hash)
        assert (await coordinator.announced()).enclave == attached(boot=2)


async def test_an_enclave_of_another_network_is_not_served(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    async with network(tmp_path, tls) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        enclave.answer = attached(network="other")
        connection.close()
        assert await (await enclave.connection()).next() is None
        enclave.answer = attached(boot=3)
        while (await enclave.connection()).attach is None:
            pass
        assert (await coordinator.announced()).enclave.network == "test"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x03abc",
        wire.frame(wire.Stored(1)),  # a signer's message, from an enclave
        wire.frame(attached()),
    ],
)
async def test_a_malformed_enclave_is_left_and_attached_anew(
    tmp_path: pathlib.Path, tls: TlsFiles, data: bytes
) -> None:
    async with network(tmp_path, tls) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        connection.send_raw(data)
        assert await connection.next() is None
        await linked(enclave, coordinator)


async def text(coordinator: FakeCoordinator) -> None:
    await coordinator.sockets[False].send_str("hello")


async def junk(coordinator: FakeCoordinator) -> None:
    await coordinator.sockets[True].send_bytes(b"\x93\x01\x02")


async def not_canonical(coordinator: FakeCoordinator) -> None:
    await coordinator.sockets[False].send_bytes(b"\xdc\x00\x02\x01\x90")  # Online, its array longer than needed


async def too_large(coordinator: FakeCoordinator) -> None:
    await coordinator.sockets[True].send_bytes(bytes(relay.MAX_WEBSOCKET_BYTES + 1))


async def closes_bulk(coordinator: FakeCoordinator) -> None:
    await coordinator.sockets[True].close()


@pytest.mark.parametrize("act", [text, junk, not_canonical, too_large, closes_bulk])
async def test_a_malformed_coordinator_loses_its_link_alone(
    tmp_path: pathlib.Path, tls: TlsFiles, act: Callable[[FakeCoordinator], Awaitable[None]]
) -> None:
    async with (
        FakeEnclave.listening(tmp_path / "enclave.sock") as enclave,
        FakeCoordinator.listening(tls) as (bad, bad_port),
        FakeCoordinator.listening(tls) as (good, good_port),
        running(serve(config_of(tmp_path, tls, {"bad": bad_port, "good": good_port}), random.Random(1))),
    ):
        connection = await enclave.connection()
        await bad.announced()
        await good.announced()
        await connection.until(wire.Presence("good", ()))
        await bad.send(relay.Online((1, 2, 3)))
        assert await connection.next() == wire.Presence("bad", (1, 2, 3))
        await act(bad)
        assert await connection.next() == wire.Presence("bad", ())
        await good.send(relay.Online((1, 3)))
        assert await connection.next() == wire.Presence("good", (1, 3))
        await bad.announced()


async def test_a_coordinator_restarts_and_what_was_said_meanwhile_is_dropped(
    tmp_path: pathlib.Path, tls: TlsFiles
) -> None:
    async with FakeEnclave.listening(tmp_path / "enclave.sock") as enclave:
        first = FakeCoordinator.listening(tls)
        coordinator, port = await first.__aenter__()
        async with running(serve(config_of(tmp_path, tls, {"c1": port}), random.Random(1))):
            connection = await linked(enclave, coordinator)
            await coordinator.send(relay.Online((1,)))
            assert await connection.next() == wire.Presence("c1", (1,))
            await first.__aexit__(None, None, None)
            assert await connection.next() == wire.Presence("c1", ())
            connection.send(wire.ToPeer("c1", 2, False, b"lost"))
            connection.send(wire.Report("unknown", REFUSED, (ENTRY,)))
            connection.send(wire.Store(1, (RECORD,)))
            assert await connection.next() == wire.Stored(1)
            async with FakeCoordinator.listening(tls, port) as (again, _):
                await again.announced()
                connection.send(wire.ToPeer("c1", 2, False, b"arrives"))
                assert await again.next() == (False, relay.Forward(2, b"arrives"))


async def test_a_coordinator_that_restarts_after_the_setup_hears_the_new_epoch(
    tmp_path: pathlib.Path, tls: TlsFiles
) -> None:
    """Told the epoch of the first attachment, it would order a setup that enclaves refuse, for ever."""
    async with FakeEnclave.listening(tmp_path / "enclave.sock") as enclave:
        first = FakeCoordinator.listening(tls)
        coordinator, port = await first.__aenter__()
        async with running(serve(config_of(tmp_path, tls, {"c1": port}), random.Random(1))):
            connection = await linked(enclave, coordinator)
            done = wire.SetupDone(CEREMONY, attached().prss_epoch + 1)
            connection.send(wire.Report("c1", done, (ENTRY,)))
            assert await coordinator.next() == (False, relay.ReportUp(done))
            await first.__aexit__(None, None, None)
            async with FakeCoordinator.listening(tls, port) as (again, _):
                assert (await again.announced()).enclave.prss_epoch == done.epoch


async def test_a_coordinator_of_another_ca_gets_nothing(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    (tmp_path / "foreign").mkdir()
    foreign = TlsFiles.make(tmp_path / "foreign")
    async with (
        FakeEnclave.listening(tmp_path / "enclave.sock") as enclave,
        FakeCoordinator.listening(tls) as (good, good_port),
        FakeCoordinator.listening(foreign) as (bad, bad_port),
        running(serve(config_of(tmp_path, tls, {"bad": bad_port, "good": good_port}), random.Random(1))),
    ):
        await enclave.connection()
        await good.announced()
        assert bad.heard.empty()
        assert bad.sockets == {}


async def test_no_gate_in_the_configuration_is_no_answer(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    async with network(tmp_path, tls) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        connection.send(wire.CallGate("u1", "u1", "1", "v1,x", b"{}", 1000))
        reply = await connection.next()
        assert isinstance(reply, wire.GateUnreachable)
        assert (reply.uid, "names no gate" in reply.reason) == ("u1", True)


async def test_the_chain_is_written_in_the_order_of_what_the_enclave_says(
    tmp_path: pathlib.Path, tls: TlsFiles
) -> None:
    """Records with entries that were held, entries by themselves and those of a report, all in one piece."""
    entries = [wire.AuditEntry(seq, b"entry", bytes([seq]) * 32, b"") for seq in range(1, 41)]
    async with network(tmp_path, tls) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        said = b""
        for ticket in range(10):
            held, alone, reported, with_record = entries[4 * ticket : 4 * ticket + 4]
            record = msgspec.structs.replace(RECORD, version=ticket + 1)
            said += wire.frame(wire.Report("c1", wire.GatePending(CEREMONY, 60), (held,)))
            said += wire.frame(wire.Store(2 * ticket, (record,)))
            said += wire.frame(wire.Audit((alone,)))
            said += wire.frame(wire.Report("c1", REFUSED, (reported,)))
            said += wire.frame(wire.Report("c1", wire.GatePending(CEREMONY, 60), (with_record,)))
            said += wire.frame(wire.Store(2 * ticket + 1, ()))
        connection.send_raw(said)
        for ticket in range(20):
            assert await connection.next() == wire.Stored(ticket)
        connection.close()
        again = await enclave.connection()
        assert (again.attach.audit_seq, again.attach.audit_head) == (40, entries[-1].hash)


async def test_the_process_listens_on_nothing_and_stops_on_sigterm(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    async with (
        FakeEnclave.listening(tmp_path / "enclave.sock") as enclave,
        FakeCoordinator.listening(tls) as (coordinator, port),
    ):
        path = tmp_path / "signer.yaml"
        path.write_text(
            f"network: test\nenclave_socket: enclave.sock\nstate: signer.db\ncoordinators:\n"
            f"  - name: c1\n    url: https://127.0.0.1:{port}\n    ca: {tls.ca}\n"
            f"    certificate: {tls.client_certificate}\n    key: {tls.client_key}\n"
        )
        code = f"import pathlib; from appliance.signer.process import run; run(pathlib.Path({str(path)!r}))"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE)
        try:
            await enclave.connection()
            await coordinator.announced()
            assert listening_sockets(process.pid) == set()
            assert listening_sockets(os.getpid()) != set()  # this test's coordinator: the probe sees something
            process.send_signal(signal.SIGTERM)
            _, stderr = await within(process.communicate())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, stderr.decode()
        assert b'"event":"signer-stopped"' in stderr


def listening_sockets(pid: int) -> set[str]:
    """Inodes of the TCP sockets that process `pid` listens on."""
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening.add(fields[9])
    held = set()
    for descriptor in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor)):
                held.add(match[1])
    return listening & held


def test_configuration_errors_name_their_place(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "signer.yaml"
    start = "network: test\nenclave_socket: e\nstate: s\ncoordinators:\n"
    one = "  - {name: c1, url: 'https://h:1', ca: a, certificate: b, key: c}\n"
    path.write_text(start + one)
    assert load_config(path).coordinators[0].ca == tmp_path / "a"
    for text_, message in [
        (start + one + one, "two coordinators have the same name"),
        (start + one.replace("https", "http"), r"signer.yaml:5:\d+"),
        (start + one + "listen: 1\n", r"signer.yaml:6:1: unknown field `listen`"),
        (start + one + "gate: {url: 'https://g', ca: a, key: k}\n", "set both certificate and key"),
    ]:
        path.write_text(text_)
        with pytest.raises(CallerError, match=message):
            load_config(path)


async def ask_status(path: pathlib.Path) -> SignerStatus:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write_eof()
        return msgspec.json.decode(await within(reader.read()), type=SignerStatus)
    finally:
        writer.close()


def undated(coordinator: FakeCoordinator) -> list[relay.Condition]:
    """What was told but for the time."""
    return [msgspec.structs.replace(one, clock_s=0) for one in coordinator.conditions]


async def test_the_signer_tells_every_coordinator_how_it_finds_its_enclave(
    tmp_path: pathlib.Path, tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "CONDITION_S", 0.05)
    async with network(tmp_path, tls) as (enclave, coordinator, _):
        enclave.status = wire.Status("hsm-away", "the token is gone", {}, {}, {})
        connection = await linked(enclave, coordinator)
        await until(
            lambda: relay.Condition("hsm-away", "the token is gone", "unknown", NO_POLICY) in undated(coordinator)
        )
        connection.send(wire.CallGate("u1", "u1", "1", "v1,x", b"{}", 1000))
        enclave.status = wire.Status("ready", "", {}, {}, {})
        await connection.next()
        await until(lambda: undated(coordinator)[-1] == relay.Condition("ready", "", "unreachable", NO_POLICY))
        assert abs(coordinator.conditions[-1].clock_s - time.time()) < 60


async def test_the_status_socket_says_what_is_there_and_why_not(
    tmp_path: pathlib.Path, tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "STATUS_TIMEOUT_S", 0.05)
    path = tmp_path / "signer.sock"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as left_behind:
        left_behind.bind(str(path))
    async with FakeCoordinator.listening(tls) as (coordinator, port):
        config = msgspec.structs.replace(
            config_of(tmp_path, tls, {"c1": port, "gone": 9}), status_socket=path, metrics=None
        )
        async with running(serve(config, random.Random(1))):
            await until(lambda: path.exists() and path.stat().st_mode & 0o777 == 0o600)
            status = await ask_status(path)
            assert (status.enclave, status.gate, status.gate_reason) == ("away", False, None)
            assert status.reason.startswith(f"enclave socket {tmp_path / 'enclave.sock'}: No such file")
            async with FakeEnclave.listening(tmp_path / "enclave.sock") as enclave:
                connection = await linked_to(enclave, coordinator)
                await until_async(path, lambda status: status.enclave == "ready")
                await until_async(path, lambda status: "gone" in status.coordinators[1].reason)
                status = await ask_status(path)
                assert [one.up for one in status.coordinators] == [True, False]
                assert status.values == {"presignatures": 7}
                enclave.status = None
                await until_async(path, lambda status: status.enclave == "silent")
                connection.close()


async def linked_to(enclave: FakeEnclave, coordinator: FakeCoordinator) -> EnclaveConnection:
    connection = await enclave.connection()
    await coordinator.announced()
    return connection


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - conditions of a test have no event
            await asyncio.sleep(0.01)


async def until_async(path: pathlib.Path, holds: Callable[[SignerStatus], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds(await ask_status(path)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

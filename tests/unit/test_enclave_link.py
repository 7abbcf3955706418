"""The connection to the enclave: frames however they are cut, and neither side fills the other's memory."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable

import pytest

from appliance.signer import departures
from appliance.signer.departures import Departures
from appliance.signer.enclave_link import EnclaveLink
from appliance.signer.errors import LinkDown, LinkOverflow
from enclave import wire
from policies.errors import CallerError
from tests.fakes.signer_side import EnclaveConnection, FakeEnclave, attached, within

ATTACH = wire.Attach(wire.PROTOCOL_VERSION, "0.1.0", None, None, 0, bytes(32))


def audit(seq: int) -> wire.Audit:
    return wire.Audit((wire.AuditEntry(seq, b"entry", b"h" * 32, b""),))


async def serve(link: EnclaveLink, deliver: Callable[[wire.FromEnclave], None]) -> asyncio.Task[None]:
    return asyncio.create_task(link.serve(deliver))


async def linked(path: pathlib.Path, enclave: FakeEnclave) -> tuple[EnclaveLink, EnclaveConnection]:
    link = await within(EnclaveLink.connect(path, ATTACH, "test"))
    return link, await enclave.connection()


async def test_messages_arrive_in_order_however_they_are_cut(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "enclave.sock"
    async with FakeEnclave.listening(path) as enclave:
        link, connection = await linked(path, enclave)
        heard: asyncio.Queue[wire.FromEnclave] = asyncio.Queue()
        serving = await serve(link, heard.put_nowait)
        stream = b"".join(wire.frame(audit(seq)) for seq in range(1, 8))
        for cut in (1, 2, 3, 5, 60, len(stream)):
            for start in range(0, len(stream), cut):
                connection.send_raw(stream[start : start + cut])
                await asyncio.sleep(0)
            assert [await within(heard.get()) for _ in range(7)] == [audit(seq) for seq in range(1, 8)]
        connection.close()
        with pytest.raises(LinkDown, match="enclave closed the connection"):
            await within(serving)
        await within(link.close())


async def test_what_came_with_the_first_message_is_not_lost(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "enclave.sock"
    heard: asyncio.Queue[wire.FromEnclave] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.frame(attached()) + wire.frame(audit(1)))
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        link = await within(EnclaveLink.connect(path, ATTACH, "test"))
        assert link.attached == attached()
        serving = await serve(link, heard.put_nowait)
        assert await within(heard.get()) == audit(1)
        serving.cancel()
        await within(link.close())


def flood(link: EnclaveLink, message: wire.ToEnclave) -> None:
    while True:
        link.send("c1", message)


@pytest.mark.parametrize("length", [0, wire.MAX_MESSAGE_BYTES + 1, 2**32 - 1])
async def test_no_frame_is_announced_that_is_none(length: int, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "enclave.sock"
    async with FakeEnclave.listening(path) as enclave:
        link, connection = await linked(path, enclave)
        connection.send_raw(length.to_bytes(4, "big"))
        with pytest.raises(wire.Malformed, match=f"a message of {length} bytes"):
            await within(link.serve(lambda _: None))
        await within(link.close())


async def test_while_it_is_paused_the_enclave_is_not_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "enclave.sock"
    async with FakeEnclave.listening(path) as enclave:
        link, connection = await linked(path, enclave)
        heard: list[wire.FromEnclave] = []
        all_heard = asyncio.Event()

        def deliver(message: wire.FromEnclave) -> None:
            heard.append(message)
            if len(heard) == 1:
                link.pause()
            if len(heard) == 200:
                all_heard.set()

        serving = await serve(link, deliver)
        large = wire.EvidencePart(b"e" * 32, "setup", 1, 1, bytes(wire.EVIDENCE_PART_BYTES))
        for _ in range(200):
            connection.send(large)
        await asyncio.wait([serving], timeout=0.3)
        assert len(heard) == 1
        assert connection._writer.transport.get_write_buffer_size() > 150 * wire.EVIDENCE_PART_BYTES
        link.resume()
        await within(all_heard.wait(), 30)
        serving.cancel()
        await within(link.close())


async def test_who_serves_no_more_is_handed_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "enclave.sock"
    async with FakeEnclave.listening(path) as enclave:
        link, connection = await linked(path, enclave)
        heard: asyncio.Queue[wire.FromEnclave] = asyncio.Queue()
        serving = await serve(link, heard.put_nowait)
        connection.send(audit(1))
        assert await within(heard.get()) == audit(1)
        serving.cancel()
        await asyncio.wait([serving])
        connection.send(audit(2))
        with pytest.raises(TimeoutError):
            await within(heard.get(), 0.1)
        await within(link.close())


async def test_what_an_enclave_does_not_read_waits_within_its_quota(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "enclave.sock"
    stop, go_on = asyncio.Event(), asyncio.Event()
    received: list[wire.ToEnclave] = []

    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.frame(attached()))
        await go_on.wait()
        while len(received) < 60:
            length = int.from_bytes(await reader.readexactly(4), "big")
            received.append(wire.decode(await reader.readexactly(length), wire.ToEnclave))
        stop.set()

    async with await asyncio.start_unix_server(stalls, path):
        link = await within(EnclaveLink.connect(path, ATTACH, "test"))
        sent = [wire.PeerFrame("c1", 1, number.to_bytes(4, "big") * 2**18) for number in range(59)]
        for frame in sent:
            link.send("c1", frame)
        assert link.waiting > 50
        with pytest.raises(LinkOverflow, match="queue from c1 to the enclave is full"):
            flood(link, sent[0])
        link.send("signer", wire.StatusQuery())  # another source is not crowded out
        go_on.set()
        await within(stop.wait(), 30)
        assert received[1:] == sent
        await within(link.close())


class Commit:
    """A commit that ends when a test says so."""

    def __init__(self) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()


async def test_departures_leave_in_order_and_say_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departures, "MAX_WAITING", 3)
    room, left = asyncio.Event(), []
    leaving = Departures(room.set)
    commits = [Commit() for _ in range(3)]
    for number, commit in enumerate(commits):
        leaving.add(commit.future, lambda number=number: left.append(number))
    assert leaving.full
    commits[1].future.set_result(None)
    commits[2].future.set_result(None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (left, room.is_set()) == ([], False)
    commits[0].future.set_result(None)
    await within(room.wait())
    assert (left, len(leaving)) == ([0, 1, 2], 0)


async def test_after_a_commit_that_failed_nothing_leaves() -> None:
    left: list[str] = []
    leaving = Departures(lambda: None)
    first, second = Commit(), Commit()
    leaving.add(first.future, lambda: left.append("first"))
    leaving.add(second.future, lambda: left.append("second"))
    leaving.add(None, lambda: left.append("third"))
    second.future.set_result(None)
    first.future.set_exception(CallerError("no"))
    with pytest.raises(CallerError, match="no"):
        await within(leaving.run())
    with pytest.raises(CallerError, match="no"):
        await within(leaving.settle())
    assert left == []

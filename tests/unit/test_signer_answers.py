"""What a signer keeps for several coordinators: answers under a name (SPEC 4.10), and certificates of keys."""

from __future__ import annotations

import base64
import pathlib
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from appliance import relay
from appliance.signer.process import serve
from appliance.store import answers
from appliance.store.failures import Damaged
from appliance.store.signer import SignerStore
from enclave import wire
from policies.requests import request_name
from policies.signed_requests import claimed_name
from tests.fakes.certificates import Dealer
from tests.fakes.signer_side import EnclaveConnection, FakeCoordinator, FakeEnclave
from tests.fakes.tls import TlsFiles
from tests.unit.test_signer_process import CEREMONY, ENTRY, KEY_ID, config_of, running

HEADER = base64.urlsafe_b64encode(b'{"kid":"alice"}').rstrip(b"=").decode()
REQUEST = wire.ClientRequest("POST", f"/v1/keys/{KEY_ID}/signatures", b'{"externalId":"pay-1"}', f"{HEADER}..c2ln")
NAME = request_name("test", "alice", "pay-1")
KEPT = wire.Kept(NAME, b"b" * 32, b"r" * 32, (1, 2, 3))
SHARE = wire.ShareReport(CEREMONY, 1, b"\x02" * 33, b"s" * 32)
SIGN = wire.SignOrder(b"d" * 16, KEY_ID, REQUEST, (1, 2, 3), wire.PresignatureName(bytes(32), 1))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return TlsFiles.make(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def two_coordinators(
    directory: pathlib.Path, tls: TlsFiles
) -> AsyncIterator[tuple[EnclaveConnection, FakeCoordinator, FakeCoordinator]]:
    async with (
        FakeEnclave.listening(directory / "enclave.sock") as enclave,
        FakeCoordinator.listening(tls) as (one, one_port),
        FakeCoordinator.listening(tls) as (two, two_port),
        running(serve(config_of(directory, tls, {"one": one_port, "two": two_port}), random.Random(1))),
    ):
        connection = await enclave.connection()
        await one.announced()
        await two.announced()
        await connection.until(wire.Presence("two", ()))
        yield connection, one, two


async def test_an_answer_is_kept_and_handed_over_with_every_order_of_its_name(
    tmp_path: pathlib.Path, tls: TlsFiles
) -> None:
    async with two_coordinators(tmp_path, tls) as (enclave, one, two):
        await two.send(relay.OrderDown(SIGN))
        assert await enclave.next() == wire.Order("two", SIGN, None, None)
        enclave.send(wire.Report("one", SHARE, (ENTRY,), KEPT))
        assert await one.next() == (False, relay.ReportUp(SHARE))
        answer = wire.Answer(KEPT, SHARE)
        batch = wire.BatchSignOrder(b"e" * 16, KEY_ID, REQUEST, (1, 2, 3), (SIGN.presignature,))
        keygen, recall = wire.KeygenOrder(b"f" * 16, (REQUEST,), ()), wire.RecallOrder(b"g" * 16, REQUEST)
        for order in (SIGN, batch, keygen, recall):
            await two.send(relay.OrderDown(order))
            assert await enclave.next() == wire.Order("two", order, None, answer)
        other = msgspec.structs.replace(SIGN, request=msgspec.structs.replace(REQUEST, body=b'{"externalId":"pay-2"}'))
        await two.send(relay.OrderDown(other))
        assert await enclave.next() == wire.Order("two", other, None, None)


async def test_an_epoch_is_told_to_all_and_a_key_to_the_others(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    certificate = tuple(Dealer.make().certificate())
    async with two_coordinators(tmp_path, tls) as (enclave, one, two):
        done = wire.SetupDone(CEREMONY, 7)
        enclave.send(wire.Report("one", done, (ENTRY,)))
        for coordinator in (one, two):
            assert await coordinator.next() == (False, relay.ReportUp(done))
        activated = wire.KeysActivated(CEREMONY, (certificate,))
        entry = wire.AuditEntry(2, b"key", b"i" * 32, b"")
        enclave.send(wire.Report("one", activated, (entry,)))
        assert await one.next() == (False, relay.ReportUp(activated))
        assert await two.next() == (False, relay.KeyAdded())
        await two.send(relay.KeysAfter(0, ""))
        assert await two.next() == (False, relay.KeyPage(0, (relay.NumberedKey(1, certificate),), False))
        key_id = certificate[0].acknowledgement.key_id
        await two.send(relay.KeysAfter(1, key_id))
        assert await two.next() == (False, relay.KeyPage(1, (), False))
        # What this store does not know is answered from the beginning.
        await two.send(relay.KeysAfter(1, "key_of_another_store"))
        assert await two.next() == (False, relay.KeyPage(0, (relay.NumberedKey(1, certificate),), False))


async def test_the_newest_answer_is_there_after_reopening(tmp_path: pathlib.Path) -> None:
    store = SignerStore.open(tmp_path / "s.db")
    await store.append_audit([ENTRY], (), wire.Answer(KEPT, SHARE))
    newer = wire.Answer(KEPT, msgspec.structs.replace(SHARE, ceremony=b"n" * 16))
    await store.append_audit([], (), newer)
    await store.close()
    store = SignerStore.open(tmp_path / "s.db")
    assert store.answer(NAME) == newer
    assert store.answer(b"x" * 32) is None
    await store.close()


async def test_a_damaged_answer_is_named(tmp_path: pathlib.Path) -> None:
    store = SignerStore.open(tmp_path / "s.db")
    await store.append_audit([ENTRY], (), wire.Answer(KEPT, SHARE))
    await store.close()
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE answers SET answer = x'00'")
    store = SignerStore.open(tmp_path / "s.db")
    with pytest.raises(Damaged, match="an answer to a request"):
        store.answer(NAME)
    await store.close()


async def test_answers_are_forgotten_after_their_time(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "SWEEP_EVERY", 2)
    store = SignerStore.open(tmp_path / "s.db")
    await store.append_audit([], (), wire.Answer(KEPT, SHARE))
    await store.close()
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE answers SET at_s = at_s - ?", (answers.KEPT_S + 1,))
    store = SignerStore.open(tmp_path / "s.db")
    for number in (1, 2):
        fresh = msgspec.structs.replace(KEPT, name=bytes([number]) * 32)
        await store.append_audit([], (), wire.Answer(fresh, SHARE))
    assert store.answer(NAME) is None
    assert store.answer(bytes([1]) * 32) is not None
    await store.close()


async def test_answers_that_are_given_again_do_not_keep_others_from_being_forgotten(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "SWEEP_EVERY", 2)
    monkeypatch.setattr(answers, "SWEEP_ROWS", 1)
    again, old = (msgspec.structs.replace(KEPT, name=bytes([number]) * 32) for number in (1, 2))
    store = SignerStore.open(tmp_path / "s.db")
    for kept in (again, old):
        await store.append_audit([], (), wire.Answer(kept, SHARE))
    await store.close()
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE answers SET at_s = at_s - ?", (answers.KEPT_S + 1,))
    store = SignerStore.open(tmp_path / "s.db")
    for _ in range(2):
        await store.append_audit([], (), wire.Answer(again, SHARE))
    assert store.answer(again.name) is not None
    assert store.answer(old.name) is None
    plan = store._database.reader.exec_driver_sql("EXPLAIN QUERY PLAN SELECT rowid FROM answers WHERE at_s < 1").all()
    assert "answers_at_s" in str(plan)
    await store.close()


@pytest.mark.parametrize(
    ("jws", "body"),
    [("..", b"{}"), ("!..x", b"{}"), (f"{HEADER}..x", b"[1"), (f"{HEADER}..x", b'{"externalId":7}'), ("", b"\xff")],
)
def test_a_request_without_a_name_has_none(jws: str, body: bytes) -> None:
    assert claimed_name("test", jws, body) is None


def test_a_name_is_of_network_client_and_external_id() -> None:
    assert claimed_name("test", REQUEST.jws, REQUEST.body) == NAME
    assert len({NAME, request_name("other", "alice", "pay-1"), request_name("test", "bob", "pay-1")}) == 3

"""Authorizations leave before their audit entries are on disk; nothing that could sign does."""

from __future__ import annotations

import asyncio
import pathlib

import pytest

from appliance import relay
from appliance.signer import held_entries
from appliance.signer.errors import LinkDown
from enclave import wire
from tests.fakes.signer_side import within
from tests.fakes.tls import TlsFiles
from tests.unit.test_signer_process import CEREMONY, ENTRY, KEY_ID, RECORD, GatedStore, linked, network

TERMS = wire.AuthorizationTerms(
    "KU25", "secp256k1", b"r" * 32, 1, 1, KEY_ID, b"\x02" * 33, (), b"h" * 32, b"d" * 32, (1, 2, 3),
    wire.PresignatureName(bytes(32), 1),
)  # fmt: skip
AUTHORIZED = wire.Authorized(
    CEREMONY, wire.SignedAuthorization(wire.Authorization(TERMS, 1, b"n" * 32, b"p" * 32, 60), b"s" * 64)
)
SHARE = wire.ShareReport(CEREMONY, 1, b"\x02" * 33, b"s" * 32)
SHARE_ENTRY = wire.AuditEntry(2, b"share", b"i" * 32, b"")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return TlsFiles.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is committed for having waited."""
    monkeypatch.setattr(held_entries, "LONGEST_S", 3600.0)


async def test_an_authorization_leaves_at_once_and_its_share_after_the_entries_of_both(
    tmp_path: pathlib.Path, tls: TlsFiles, long: None
) -> None:
    store = GatedStore()
    async with network(tmp_path, tls, store) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        connection.send(wire.Report("c1", AUTHORIZED, (ENTRY,)))
        assert await coordinator.next() == (False, relay.ReportUp(AUTHORIZED))
        assert not store.started.is_set()
        connection.send(wire.Report("c1", SHARE, (SHARE_ENTRY,)))
        connection.send(wire.ToPeer("c1", 2, False, b"marker"))
        await within(store.started.wait())
        assert await coordinator.next() == (False, relay.Forward(2, b"marker"))
        assert coordinator.heard.empty()
        store.opened.set()
        assert await coordinator.next() == (False, relay.ReportUp(SHARE))
        assert store.committed == [ENTRY, SHARE_ENTRY]


async def test_it_does_not_wait_behind_what_does(tmp_path: pathlib.Path, tls: TlsFiles, long: None) -> None:
    store = GatedStore()
    async with network(tmp_path, tls, store) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        connection.send(wire.Report("c1", SHARE, (ENTRY,)))
        connection.send(wire.Report("c1", AUTHORIZED, (SHARE_ENTRY,)))
        assert await coordinator.next() == (False, relay.ReportUp(AUTHORIZED))
        store.opened.set()
        assert await coordinator.next() == (False, relay.ReportUp(SHARE))
        assert store.committed == [ENTRY]


@pytest.mark.parametrize(
    "message",
    [wire.Store(3, ()), wire.Store(3, (RECORD,)), wire.Audit((SHARE_ENTRY,))],
    ids=["stored", "record", "audit"],
)
async def test_whatever_is_committed_next_takes_it_along(
    message: wire.FromEnclave, tmp_path: pathlib.Path, tls: TlsFiles, long: None
) -> None:
    """`Stored` says that all before it is on disk: what an enclave tells its peers rests on it (SPEC 0.7)."""
    store = GatedStore()
    async with network(tmp_path, tls, store) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        connection.send(wire.Report("c1", AUTHORIZED, (ENTRY,)))
        connection.send(message)
        store.opened.set()
        connection.send(wire.Report("c1", SHARE, (wire.AuditEntry(3, b"share", b"j" * 32, b""),)))
        assert await coordinator.next() == (False, relay.ReportUp(AUTHORIZED))
        assert await coordinator.next() == (False, relay.ReportUp(SHARE))
        assert ENTRY in store.committed[:2]
        assert store.committed[-1] == wire.AuditEntry(3, b"share", b"j" * 32, b"")


async def test_it_is_committed_by_itself_soon(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    store = GatedStore()
    async with network(tmp_path, tls, store) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        connection.send(wire.Report("c1", AUTHORIZED, (ENTRY,)))
        await within(store.started.wait())
        store.opened.set()
        connection.send(wire.Store(3, ()))
        await connection.until(wire.Stored(3))
        assert store.committed == [ENTRY]


async def test_many_are_committed_before_their_time(tmp_path: pathlib.Path, tls: TlsFiles, long: None) -> None:
    store = GatedStore()
    entries = [wire.AuditEntry(seq, b"authorized", b"h" * 32, b"") for seq in range(1, held_entries.MAX_HELD + 1)]
    async with network(tmp_path, tls, store) as (enclave, coordinator, _):
        connection = await linked(enclave, coordinator)
        for entry in entries:
            connection.send(wire.Report("c1", AUTHORIZED, (entry,)))
        await within(store.started.wait())
        store.opened.set()
        connection.send(wire.Store(3, ()))
        await connection.until(wire.Stored(3))
        assert store.committed == entries


async def test_an_enclave_that_goes_away_leaves_no_gap(tmp_path: pathlib.Path, tls: TlsFiles, long: None) -> None:
    store = GatedStore()
    store.opened.set()
    async with network(tmp_path, tls, store) as (enclave, coordinator, task):
        connection = await linked(enclave, coordinator)
        connection.send(wire.Report("c1", AUTHORIZED, (ENTRY,)))
        assert await coordinator.next() == (False, relay.ReportUp(AUTHORIZED))
        connection.close()
        with pytest.raises(LinkDown):
            await within(asyncio.shield(task))
        assert store.committed == [ENTRY]

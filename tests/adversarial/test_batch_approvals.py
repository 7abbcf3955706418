"""Approvals of batches against a hostile coordinator: what was given for a single signature, for other hashes, paths or
keys never counts, nor the other way round."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest

from enclave import deciding, lacking, wire
from enclave.asked import understand
from policies.requests import Hash, HashBatch, signature_batches_path, signatures_path
from tests.adversarial import test_batches as batches
from tests.adversarial.conftest import COMMITTEE, Desk
from tests.adversarial.test_approvals import LACKS, Treasury
from tests.adversarial.test_signing import finish, only, refusals, remaining
from tests.fakes.enclaves import authorizations_of

HASHES = tuple(hashlib.sha256(bytes([i])).digest() for i in range(2))
PATHS = ((0, 5), ())


@pytest.fixture
def treasury(desk: Desk) -> Treasury:
    return Treasury(desk)


def batch_of(
    treasury: Treasury,
    hashes: tuple[bytes, ...] = HASHES,
    paths: tuple[tuple[int, ...], ...] = PATHS,
    external_id: str = "one",
    lifetime_s: int = 7200,
) -> wire.ClientRequest:
    now_s, path = int(treasury.net.clock()), signature_batches_path(treasury.desk.key_id)
    body = HashBatch(tuple("0x" + h.hex() for h in hashes), external_id, paths)
    return treasury.desk.client.request(path, body, iat=now_s, exp=now_s + lifetime_s)


def ask(treasury: Treasury, request: wire.ClientRequest, *approvals: str) -> dict[int, list[Any]]:
    with_them = msgspec.structs.replace(request, approvals=approvals)
    return batches.authorise(treasury.desk, with_them, batches.names(treasury.desk, 1, 2))


def both(treasury: Treasury, request: wire.ClientRequest, /, **header: Any) -> tuple[str, ...]:
    return tuple(treasury.approval(name, request, **header) for name in ("alice", "bob"))


def test_two_approvals_sign_every_hash_and_fewer_cost_nothing(treasury: Treasury) -> None:
    request = batch_of(treasury)
    alice, bob = both(treasury, request)
    for given in ((), (alice,), (alice, alice)):
        assert refusals(ask(treasury, request, *given)) == LACKS
    assert remaining(treasury.desk) == [8, 8, 8]
    signed = batches.authorizations(ask(treasury, request, alice, bob))
    batches.verify_batch(treasury.desk, batches.online(treasury.desk, signed), HASHES, PATHS)
    (told,) = [entry.body for entry in treasury.net.members[1].audit if b'"authorized"' in entry.body]
    assert msgspec.json.decode(told)["approvers"] == "alice, bob"


@pytest.mark.parametrize(
    "changes",
    [
        {"hashes": (HASHES[0], bytes([7]) * 32)},
        {"hashes": HASHES[::-1]},
        {"hashes": HASHES[:1], "paths": PATHS[:1]},
        {"paths": PATHS[::-1]},
        {"external_id": "two"},
    ],
    ids=["another-hash", "another-order", "fewer", "other-paths", "another-name"],
)
def test_an_approval_of_another_batch_is_none(treasury: Treasury, changes: dict[str, Any]) -> None:
    harmless = both(treasury, batch_of(treasury, **changes))
    assert refusals(ask(treasury, batch_of(treasury), *harmless)) == LACKS


def test_an_approval_of_a_batch_is_of_its_path(treasury: Treasury) -> None:
    """As a coordinator would have it that shows the very body under another route or key."""
    request, other_key = batch_of(treasury), "key_" + "0" * 32
    for path in (signatures_path(treasury.desk.key_id), signature_batches_path(other_key)):
        assert refusals(ask(treasury, request, *both(treasury, request, path=path))) == LACKS


def test_an_approval_of_a_signature_is_none_of_a_batch_and_the_other_way_round(treasury: Treasury) -> None:
    single = treasury.request()
    one = msgspec.json.decode(single.body, type=Hash)
    batch = batch_of(treasury, (bytes.fromhex(one.hash[2:]),), ((),), "batch")
    named = batches.names(treasury.desk, 1)
    moved = msgspec.structs.replace(batch, approvals=both(treasury, single))
    assert refusals(batches.authorise(treasury.desk, moved, named)) == LACKS
    assert refusals(treasury.ask(single, *both(treasury, batch))) == LACKS
    # Each by its own is fine.
    finish(treasury.desk, authorizations_of(treasury.ask(single, *both(treasury, single))))


def test_a_batch_posing_as_a_signature_is_none_whoever_approved_it(treasury: Treasury) -> None:
    """Ordered the other way than it was signed."""
    batch, single = batch_of(treasury), treasury.request()
    assert refusals(treasury.ask(batch, *both(treasury, batch))) == {"request/path"}
    assert refusals(ask(treasury, single, *both(treasury, single))) == {"request/path"}


@pytest.mark.parametrize("left_s", [1, 0])
def test_what_was_decided_counts_as_long_as_its_approvals(treasury: Treasury, left_s: int) -> None:
    request = batch_of(treasury)
    alice, bob = both(treasury, request, lifetime_s=60)
    with_them = msgspec.structs.replace(request, approvals=(alice, bob))
    unknown = (wire.PresignatureName(b"\1" * 32, 1), wire.PresignatureName(b"\1" * 32, 2))
    only(batches.authorise(treasury.desk, with_them, unknown), wire.UnknownPresignatures)
    treasury.net.advance(60 - left_s)
    if left_s:
        only(ask(treasury, request, alice, bob), wire.BatchAuthorized)
    else:
        assert refusals(ask(treasury, request, alice, bob)) == LACKS
        assert remaining(treasury.desk) == [8, 8, 8]


def test_a_batch_that_lacked_approvals_is_not_understood_again_at_once(
    treasury: Treasury, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no child key is derived for it, whatever approvals are shown by turns."""
    understood = []

    def counted(*asked: Any) -> Any:
        understood.append(asked)
        return understand(*asked)

    monkeypatch.setattr(deciding, "understand", counted)
    monkeypatch.setattr(deciding, "derive_items", None)
    request = batch_of(treasury)
    alice, _ = both(treasury, request)
    for given in ((alice,), (), (alice,)):
        assert refusals(ask(treasury, request, *given)) == LACKS
    assert len(understood) == len(COMMITTEE)
    treasury.net.advance(lacking.AGAIN_AFTER_S)
    assert refusals(ask(treasury, request, alice)) == LACKS
    assert len(understood) == 2 * len(COMMITTEE)


def test_a_batch_that_waits_takes_one_place_and_none_of_the_memory_for_hashes(treasury: Treasury) -> None:
    request = batch_of(treasury)
    assert refusals(ask(treasury, request)) == LACKS
    for j in COMMITTEE:
        book = treasury.net.members[j].core._authoriser.book
        # And one for its key.
        assert (len(book), book._items, book._waiting["payments"]) == (2, 0, 1)


def test_a_batch_is_signed_for_no_longer_than_the_policy_lets_a_request_wait(treasury: Treasury) -> None:
    assert refusals(ask(treasury, batch_of(treasury, lifetime_s=25 * 3600))) == {"request/lifetime"}

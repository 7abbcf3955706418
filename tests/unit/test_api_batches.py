"""What a client believes of a batch's answer, what a file of hashes is read as, and a store of the revision before."""

from __future__ import annotations

import base64
import hashlib
import pathlib
import sqlite3

import alembic.command
import coincurve
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import utils

from appliance.api.batches import BatchResult, BatchState, SignatureBatch, verify_batch
from appliance.api.models import Reason, SignatureValue
from appliance.api.results import Failed, Rejected
from appliance.api.signatures import SignatureRefused
from appliance.cli.sign import _batch
from appliance.store import CoordinatorStore
from appliance.store.accepted import Acceptance, Accepted, ExternalIdTaken, shown_external_id
from appliance.store.database import MIGRATIONS
from policies.errors import CallerError
from policies.requests import HashBatch

HASHES = tuple(hashlib.sha256(bytes([number])).digest() for number in range(3))
PATHS = ((), (1,), (1,))
BODY = HashBatch(tuple("0x" + h.hex() for h in HASHES), "batch-1", PATHS)
replace = msgspec.structs.replace


def private_key(path: object) -> coincurve.PrivateKey:
    return coincurve.PrivateKey(hashlib.sha256(repr(path).encode()).digest())


def child_key(path: object) -> bytes:
    return private_key(path).public_key.format()


def result(h: bytes, path: tuple[int, ...]) -> BatchResult:
    rsv = private_key(path).sign_recoverable(h, hasher=None)
    r, s = rsv[:32], rsv[32:64]
    der = utils.encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    shown = ["0x" + data.hex() for data in (r, s, der, rsv, child_key(path), h)]
    return BatchResult(SignatureValue(shown[0], shown[1], rsv[64], *shown[2:]))


def answer(**changes: object) -> SignatureBatch:
    results = tuple(result(h, path) for h, path in zip(HASHES, PATHS, strict=True))
    honest = SignatureBatch("batch_1", "key_1", BatchState.SIGNED, 3, "batch-1", "now", results=results)
    return replace(honest, **changes)


def test_an_honest_answer_and_one_that_lacks_a_signature_with_a_reason() -> None:
    verify_batch(answer(), BODY, child_key)
    partly = (*answer().results[:2], BatchResult(reason=Reason("combine", "a share is wrong")))
    verify_batch(answer(status=BatchState.PARTLY_SIGNED, results=partly), BODY, child_key)


@pytest.mark.parametrize("status", [BatchState.SIGNED, BatchState.PARTLY_SIGNED])
@pytest.mark.parametrize(
    "order", [(0, 1), (0, 1, 2, 2), (0, 2, 1), (1, 0, 2)], ids=["short", "long", "hashes swapped", "keys swapped"]
)
def test_an_answer_to_another_batch_is_refused(status: BatchState, order: tuple[int, ...]) -> None:
    shown = answer().results
    with pytest.raises(SignatureRefused):
        verify_batch(answer(status=status, results=tuple(shown[number] for number in order)), BODY, child_key)


def test_signed_without_a_signature_is_refused() -> None:
    with pytest.raises(SignatureRefused, match="holds no signature"):
        verify_batch(answer(results=(*answer().results[:2], BatchResult())), BODY, child_key)


def test_a_batch_that_was_not_signed_says_why() -> None:
    reason = Reason("policy/kind", "no batches", "signer-2")
    with pytest.raises(Rejected, match="signer-2: policy/kind"):
        verify_batch(answer(status=BatchState.REJECTED, results=(), reason=reason), BODY, child_key)
    with pytest.raises(Failed, match="policy/kind"):
        verify_batch(answer(status=BatchState.FAILED, results=(), reason=reason), BODY, child_key)


def test_a_file_of_hashes() -> None:
    lines = f"{BODY.hashes[0]}\n\n  {BODY.hashes[1][2:].upper()} m/0/5  \n".encode()
    assert _batch(lines, "m/1", "b") == HashBatch(BODY.hashes[:2], "b", ((1,), (0, 5)))
    assert _batch(lines.split(b"\n")[0], "m", "b") == HashBatch(BODY.hashes[:1], "b")


@pytest.mark.parametrize("line", ["", "0x00", "xyz", "0x" + "00" * 32 + " m/0 m/1", "0x" + "00" * 32 + " 0'"])
def test_a_file_that_holds_something_else(line: str) -> None:
    with pytest.raises(CallerError):
        _batch(line.encode(), "m", "b")


async def test_a_store_of_the_revision_before_is_taken_over(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, upgrade = tmp_path / "coordinator.db", alembic.command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(alembic.command, "upgrade", lambda config, _: upgrade(config, "c0001"))
        old = CoordinatorStore.open(path)
    asked = Accepted(id="sig_1", external_id="s", path="p", body=b"", jws="", created_at_ms=1, digest=bytes(32))
    await old.signatures.accept(asked, "key_1", "Hash", ())
    await old.close()
    store = CoordinatorStore.open(path)
    assert [row.id for row in store.signatures.unfinished()] == ["sig_1"]
    known = await store.batches.accept(replace(asked, id="batch_1"), "key_1", 3)
    assert known == Acceptance("sig_1", False, False)
    assert await store.batches.accept(replace(asked, id="batch_2", external_id="b"), "key_1", 3) == Acceptance(
        "batch_2", True, True
    )
    await store.batches.finish("batch_2", "Signed", b"[]")
    row = store.batches.get("batch_2")
    assert row is not None
    assert (row.state, row.count, row.result) == ("Signed", 3, b"[]")
    await store.close()
    with sqlite3.connect(path) as connection:
        (version,) = connection.execute("select version_num from alembic_version").fetchone()
        assert version == max(path.name[:5] for path in (MIGRATIONS / "coordinator").glob("c*.py"))


def jws_of(client: str) -> str:
    header = base64.urlsafe_b64encode(msgspec.json.encode({"kid": client})).decode().rstrip("=")
    return f"{header}..AA"


async def test_external_ids_are_a_clients_own_also_those_of_an_older_store(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, upgrade = tmp_path / "coordinator.db", alembic.command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(alembic.command, "upgrade", lambda config, _: upgrade(config, "c0003"))
        old = CoordinatorStore.open(path)
    asked = Accepted(
        id="sig_1", external_id="s", path="p", body=b"", jws=jws_of("alice"), created_at_ms=1, digest=bytes(32)
    )
    await old.signatures.accept(asked, "key_1", "Hash", ())
    await old.close()
    store = CoordinatorStore.open(path)
    again = replace(asked, id="sig_2", client="alice")
    assert await store.signatures.accept(again, "key_1", "Hash", ()) == Acceptance("sig_1", False, False)
    other = replace(asked, id="sig_3", client="bob", jws=jws_of("bob"), digest=b"\x01" * 32)
    assert await store.signatures.accept(other, "key_1", "Hash", ()) == Acceptance("sig_3", True, True)
    with pytest.raises(ExternalIdTaken, match="externalId s was used"):
        await store.signatures.accept(replace(other, id="sig_4", client="alice"), "key_1", "Hash", ())
    assert [shown_external_id(row.external_id) for row in store.signatures.unfinished()] == ["s", "s"]
    # Released by one, it stays the other's; and what was released can be used anew.
    await store.release("sig_3")
    assert await store.signatures.accept(replace(other, id="sig_5"), "key_1", "Hash", ()) == Acceptance(
        "sig_5", True, True
    )
    assert await store.signatures.accept(again, "key_1", "Hash", ()) == Acceptance("sig_1", False, False)
    assert {shown_external_id(row.external_id) for row in store.signatures.unfinished()} == {"s"}
    await store.close()

"""What an approver is shown: from the body that is signed alone, whatever the coordinator says of it."""

from __future__ import annotations

import msgspec
import pytest

from appliance.api.approvals import ApprovalsWanted
from appliance.api.batches import BatchState
from appliance.cli.approve import describe
from policies.errors import CallerError
from policies.requests import signature_batches_path, signatures_path

KEY = "key_" + "1" * 32
BODY = '{"kind":"Hash","hash":"0x%s","externalId":"payout-7","derivationPath":[0,5]}' % ("ab" * 32)


def wanted(body: str = BODY, path: str = signatures_path(KEY)) -> ApprovalsWanted:
    return ApprovalsWanted("sig_1", KEY, BatchState.AWAITING, "payments", path, body, "2026-01-01", ("bob",))


def test_a_bare_hash_is_said_to_be_one() -> None:
    shown = describe(wanted(), KEY)
    assert (shown["hash"], shown["external id"], shown["key"]) == ("ab" * 32, "payout-7", f"{KEY} m/0/5")
    assert (shown["content"], shown["requester"], shown["approved by"]) == (
        "not known: a bare hash", "payments", "bob",
    )  # fmt: skip


def test_a_message_is_shown() -> None:
    body = '{"kind":"Message","message":"0x686579","hash":"EIP-191","externalId":"m"}'
    shown = describe(wanted(body), KEY)
    assert (shown["- message"], shown["- hash"]) == ("0x686579", "EIP-191")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("pay Ürsula 7 €".encode(), '"pay Ürsula 7 €"'),
        (b"two\nlines \x1b[2J", '"two\\nlines \\u001b[2J"'),
        # What a terminal would turn round or squeeze, and what is no text, is hex alone.
        ("pay \u202e7".encode(), None),
        (b"two  spaces", None),
        (b"\xff\xfe", None),
        (b"", None),
    ],
)
def test_a_message_that_prints_exactly_is_shown_as_text_beside_its_hex(message: bytes, text: str | None) -> None:
    body = {"kind": "Message", "message": "0x" + message.hex(), "hash": "EIP-191", "externalId": "m"}
    shown = describe(wanted(msgspec.json.encode(body).decode()), KEY)
    assert (shown["- message"], shown.get("- message as text")) == ("0x" + message.hex(), text)


@pytest.mark.parametrize("body", ["", "{}", BODY[:-1] + ',"kind":"Hash"}', BODY + " x", "\ud800"])
def test_what_cannot_be_read_is_not_approved(body: str) -> None:
    with pytest.raises(CallerError, match="cannot be read"):
        describe(wanted(body), KEY)


HASHES = ["0x" + "ab" * 32, "0x" + "cd" * 32]
BATCH = msgspec.json.encode(
    {"kind": "HashBatch", "hashes": HASHES, "externalId": "payroll", "derivationPaths": [[0, 5], []]}
).decode()


def test_a_batch_is_shown_with_every_hash_and_its_path() -> None:
    shown = describe(wanted(BATCH, signature_batches_path(KEY)), KEY)
    assert (shown["kind"], shown["external id"], shown["key"]) == ("HashBatch", "payroll", KEY)
    assert (shown["content"], shown["- 1"], shown["- 2"]) == (
        "not known: 2 bare hashes", "ab" * 32 + " m/0/5", "cd" * 32 + " m",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "path"), [(BATCH, signatures_path(KEY)), (BODY, signature_batches_path(KEY))], ids=["batch", "signature"]
)
def test_a_body_of_one_kind_is_not_approved_for_the_other(body: str, path: str) -> None:
    with pytest.raises(CallerError, match="cannot be read"):
        describe(wanted(body, path), KEY)


def test_a_request_of_another_key_is_not_approved() -> None:
    with pytest.raises(CallerError, match="not for key_1"):
        describe(wanted(path=signatures_path("key_" + "2" * 32)), KEY)

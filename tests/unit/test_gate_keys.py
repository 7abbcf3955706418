"""The gate's keys: Ed25519 beside HMAC in both directions, what the configuration chooses, and no way down from it."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from enclave import webhooks
from enclave.config import GateConfig
from enclave.errors import CallerError
from enclave.gate_keys import parse_gate_secrets
from enclave.webhooks import WebhookInvalid
from policies.gate_messages import (
    BackupKeyChangeInfo,
    BatchItemInfo,
    BatchSignerInfo,
    GateInfo,
    KeyCreationInfo,
    RefreshInfo,
    ReshareInfo,
    SignerInfo,
)

NOW_S = 1_790_000_000
BODY = b'{"a": 1}'
POINT = "02" + "11" * 32


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def hmac_key(fill: int) -> str:
    return "whsec_" + b64(bytes([fill]) * 32)


def pair(fill: int) -> tuple[Ed25519PrivateKey, str, str]:
    """A key, and both its texts, made by a library that the enclave does not use."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([fill]) * 32)
    seed = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    point = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return key, "whsk_" + b64(seed + point), "whpk_" + b64(point)


REQUEST, REQUEST_PRIVATE, REQUEST_PUBLIC = pair(1)
ANSWER, ANSWER_PRIVATE, ANSWER_PUBLIC = pair(2)
BOTH = {
    "request_hmac": hmac_key(3), "answer_hmac": hmac_key(4), "request_ed25519": REQUEST_PRIVATE,
    "answer_ed25519": ANSWER_PUBLIC,
}  # fmt: skip


def keys(change: dict[str, Any] | None = None) -> Any:
    return parse_gate_secrets(json.dumps(BOTH | (change or {})).encode())


def v1a(key: Ed25519PrivateKey, webhook_id: str = "msg_1", body: bytes = BODY) -> str:
    return "v1a," + b64(key.sign(f"{webhook_id}.{NOW_S}.".encode() + body))


def check(held: Any, header: str, webhook_id: str = "msg_1", body: bytes = BODY) -> None:
    webhooks.verify(held, webhook_id, str(NOW_S), header, body, NOW_S)


def test_questions_carry_both_signatures_and_another_library_verifies_ours() -> None:
    first, second = webhooks.sign(keys().request, "msg_1", NOW_S, BODY).split(" ")
    assert first.startswith("v1,")
    signature = base64.b64decode(second.removeprefix("v1a,"))
    REQUEST.public_key().verify(signature, f"msg_1.{NOW_S}.".encode() + BODY)


def test_an_answer_by_either_counts_where_both_are_chosen() -> None:
    chosen = keys().chosen(("v1",), ("v1", "v1a")).answer
    check(chosen, v1a(ANSWER))
    check(chosen, webhooks.sign(keys().answer[:1], "msg_1", NOW_S, BODY))
    check(chosen, "v1a,AAAA v1,AAAA v2,x " + v1a(ANSWER))


def test_where_ed25519_is_chosen_an_hmac_counts_for_nothing() -> None:
    chosen = keys().chosen(("v1",), ("v1a",)).answer
    mac = webhooks.sign(keys().answer[:1], "msg_1", NOW_S, BODY)
    for header in (mac, mac.replace("v1,", "v1a,"), f"{mac} v1a,AAAA"):
        with pytest.raises(WebhookInvalid) as refused:
            check(chosen, header)
        assert refused.value.code == "signature"
    check(chosen, f"{mac} {v1a(ANSWER)}")


def test_where_hmac_is_chosen_an_ed25519_signature_counts_for_nothing() -> None:
    with pytest.raises(WebhookInvalid):
        check(keys().chosen(("v1",), ("v1",)).answer, v1a(ANSWER))


@pytest.mark.parametrize(
    ("header", "webhook_id", "body"),
    [
        (v1a(REQUEST), "msg_1", BODY),
        (v1a(ANSWER), "msg_2", BODY),
        (v1a(ANSWER), "msg_1", BODY + b" "),
        (v1a(ANSWER)[:-2], "msg_1", BODY),
        ("v1a," + b64(bytes(64)), "msg_1", BODY),
        ("v1a," + b64(bytes(63)), "msg_1", BODY),
        ("v1a,", "msg_1", BODY),
    ],
)
def test_ed25519_signatures_that_are_none(header: str, webhook_id: str, body: bytes) -> None:
    with pytest.raises(WebhookInvalid) as refused:
        check(keys().chosen(("v1",), ("v1a",)).answer, header, webhook_id, body)
    assert refused.value.code == "signature"


def test_a_signature_with_a_malleated_scalar_is_none() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    raw = base64.b64decode(v1a(ANSWER).removeprefix("v1a,"))
    larger = int.from_bytes(raw[32:], "little") + order
    with pytest.raises(WebhookInvalid):
        check(keys().answer, "v1a," + b64(raw[:32] + larger.to_bytes(32, "little")))


def test_while_rotating_older_keys_sign_and_are_accepted_too() -> None:
    newer, newer_private, _ = pair(5)
    newest, _, newest_public = pair(6)
    held = keys(
        {
            "request_ed25519": newer_private, "older_request_ed25519": REQUEST_PRIVATE,
            "answer_ed25519": newest_public, "older_answer_ed25519": ANSWER_PUBLIC,
        }
    ).chosen(("v1a",), ("v1a",))  # fmt: skip
    signed = webhooks.sign(held.request, "msg_1", NOW_S, BODY)
    assert signed == f"{v1a(newer)} {v1a(REQUEST)}"
    for key in (newest, ANSWER):
        check(held.answer, v1a(key))


def test_the_private_key_may_be_the_seed_alone() -> None:
    seed = "whsk_" + b64(bytes([1]) * 32)
    signed = webhooks.sign([webhooks.parse_private_key(seed)], "msg_1", NOW_S, BODY)
    assert signed == v1a(REQUEST)


@pytest.mark.parametrize(
    "change",
    [
        {"request_ed25519": REQUEST_PUBLIC},
        {"answer_ed25519": ANSWER_PRIVATE},
        {"answer_ed25519": REQUEST_PUBLIC},
        {"request_ed25519": "whsk_" + b64(bytes(33))},
        {"request_ed25519": "whsk_" + b64(bytes([1]) * 64)},
        {"answer_ed25519": "whpk_" + b64(bytes(31))},
        {"answer_ed25519": "whpk_" + b64(bytes(32))},
        {"answer_ed25519": "whpk_" + b64(b"\x01" + bytes(31))},
        {"answer_ed25519": None, "older_answer_ed25519": ANSWER_PUBLIC},
        {"answer_ed25519": None, "answer_hmac": None},
        {"request_ed25519": None, "request_hmac": None},
    ],
)
def test_bad_keys_are_refused_and_never_quoted(change: dict[str, Any]) -> None:
    with pytest.raises(CallerError) as caught:
        keys(change)
    for text in filter(None, change.values()):
        assert text[5:] not in str(caught.value)


def test_what_the_configuration_names_must_be_there() -> None:
    hmac_alone = keys({"request_ed25519": None, "answer_ed25519": None})
    with pytest.raises(CallerError, match=r"no answer_ed25519, which gate\.answers"):
        hmac_alone.chosen(("v1",), ("v1a",))
    with pytest.raises(CallerError, match=r"no request_ed25519, which gate\.requests"):
        hmac_alone.chosen(("v1", "v1a"), ("v1",))


def test_keys_do_not_show_themselves() -> None:
    assert "\\x01" not in repr(keys())
    assert b64(bytes([1]) * 32)[:20] not in repr(keys())


@pytest.mark.parametrize(
    ("config", "signed_by", "accepted", "needed"),
    [
        (GateConfig("signed"), ("v1",), ("v1",), True),
        (GateConfig("signed", requests=("v1", "v1a"), answers=("v1a",)), ("v1", "v1a"), ("v1a",), True),
        (GateConfig("status"), (), (), False),
        (GateConfig("status", requests=("v1a",)), ("v1a",), (), True),
        (GateConfig("none"), (), ("v1",), False),
    ],
)
def test_what_the_modes_sign_with_and_accept(config: GateConfig, signed_by: Any, accepted: Any, needed: bool) -> None:
    assert (config.signed_by, config.needs_secrets) == (signed_by, needed)
    if config.mode != "none":
        assert config.accepted == accepted


INFOS: list[GateInfo] = [
    SignerInfo("Signing", "key", POINT, "22", (0, 5), POINT, "a", "ECDSA", "secp256k1", 1, (1, 2, 3), False),
    BatchSignerInfo(
        "SigningBatch", "key", POINT, (BatchItemInfo("22", (0,), POINT),), "a", "ECDSA", "secp256k1", 1, (1, 2), True
    ),
    KeyCreationInfo("a/b", "a", "ECDSA", "secp256k1", 1, (1, 2, 3), 1, "00"),
    RefreshInfo("a", "ECDSA", 2, 1, (1, 2, 3), 1, "00"),
    ReshareInfo("a", "ECDSA", 2, 1, (1, 2, 3), 1, ("f",), "01", (1, 2), 0, ("g",), "00"),
    BackupKeyChangeInfo("a", ("age1x",), ("age1y",), "00"),
]


def changed(value: object) -> Any:
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value + "x"
        case ():
            return ("x",)
        case _:
            return ()


@pytest.mark.parametrize("info", INFOS, ids=lambda info: str(info.kind))
def test_every_field_of_every_kind_is_in_the_digest(info: GateInfo) -> None:
    names = info.__struct_fields__
    digests = {msgspec.structs.replace(info, **{name: changed(getattr(info, name))}).digest() for name in names}
    assert len(digests | {info.digest()}) == len(names) + 1


def test_no_two_kinds_have_one_digest() -> None:
    assert len({info.digest() for info in INFOS}) == len(INFOS) == len({info.kind for info in INFOS})

"""The gate's messages: the published webhook library verifies our requests, and its answers are accepted; only they."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from datetime import UTC, datetime, tzinfo
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from enclave import webhooks
from enclave.errors import CallerError, Refused
from enclave.gate import (
    GateAllowed,
    GateCall,
    GatePending,
    build_call,
    is_retriable,
    verify_reply,
)
from enclave.gate_keys import parse_gate_secrets
from enclave.wire import MAX_GATE_REQUEST_BYTES, GateReply
from policies.gate_messages import RequestInfo, SignerInfo
from policies.transcript import Tag, encode_parts


class FixedClock(datetime):
    """What standardwebhooks reads the time from."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> FixedClock:
        return cls.fromtimestamp(NOW_S, tz)


@pytest.fixture(autouse=True)
def _fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("standardwebhooks.webhooks.datetime", FixedClock)


def whsec(fill: int, length: int = 32) -> str:
    return "whsec_" + base64.b64encode(bytes([fill]) * length).decode()


REQUEST_SECRET, ANSWER_SECRET = whsec(1), whsec(2)
SECRETS = {"request_hmac": REQUEST_SECRET, "answer_hmac": ANSWER_SECRET}
KEYS = parse_gate_secrets(json.dumps(SECRETS).encode())
NOW_S = 1_790_000_000
UID = "ab" * 16
INFO = SignerInfo(
    "Signing", "key_" + "0" * 32, "02" + "11" * 32, "22" * 32, (0, 5), "03" + "33" * 32, "alpha", "ECDSA",
    "secp256k1", 1, (1, 2, 3), False,
)  # fmt: skip
CALL = build_call(
    INFO,
    RequestInfo("payments", "e1", "net", {"kind": "Hash"}, None),
    uid=UID,
    attempt=2,
    deadline_s=NOW_S + 60,
    now_s=NOW_S,
    keys=KEYS,
)


def rfc3339(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


YES: dict[str, Any] = {
    "type": "validation.answer", "uid": UID, "request_digest": INFO.digest(), "signer_id": "alpha",
    "kind": "Signing", "dryRun": False, "allowed": True, "expiresAt": rfc3339(NOW_S + 60),
    "status": {"code": 0, "reason": "fine"},
}  # fmt: skip


def reply(
    body: bytes, *, status: int = 200, secret: str = ANSWER_SECRET, at_s: int = NOW_S, **fields: Any
) -> GateReply:
    """An answer signed by the published library."""
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(at_s, UTC), body.decode())
    made = GateReply(UID, status, "msg_1", str(at_s), signature, 0, body)
    return msgspec.structs.replace(made, **fields)


def answer(change: dict[str, Any] | None = None, **fields: Any) -> GateReply:
    return reply(json.dumps(YES | (change or {})).encode(), **fields)


def judge(given_reply: GateReply, call: GateCall = CALL) -> GateAllowed | GatePending:
    return verify_reply(given_reply, call=call, keys=KEYS, now_s=NOW_S)


def refusal(given_reply: GateReply) -> str:
    with pytest.raises(Refused) as caught:
        judge(given_reply)
    assert caught.value.rule.partition("/")[0] == "gate"
    return caught.value.reason


# --- Our requests ---


def test_the_published_library_verifies_our_request() -> None:
    headers = {
        "webhook-id": CALL.webhook_id,
        "webhook-timestamp": CALL.webhook_timestamp,
        "webhook-signature": CALL.webhook_signature,
    }
    message = Webhook(REQUEST_SECRET).verify(CALL.body, headers)
    assert message["type"] == "validation.request"
    assert (message["version"], message["uid"], message["attempt"]) == ("1", UID, 2)
    assert (message["deadline"], message["dryRun"]) == (rfc3339(NOW_S + 60), False)
    assert message["requestInfo"] == {
        "requester": "payments", "externalId": "e1", "network": "net", "payload": {"kind": "Hash"},
        "decoded": None, "untrusted": True,
    }  # fmt: skip


def test_request_digest_is_the_hash_of_the_whole_signer_info() -> None:
    shown = json.loads(CALL.body)["signerInfo"]
    named = shown.pop("request_digest")
    canonical = json.dumps(shown, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert named == hashlib.sha256(encode_parts(Tag.GATE_REQUEST, canonical)).hexdigest()
    changed = {"key_epoch": 2, "participants": (1, 2), "derivation_path": (), "blind": True}
    for field in SignerInfo.__struct_fields__:
        other = msgspec.structs.replace(INFO, **{field: changed.get(field, "other")})
        assert other.digest() != INFO.digest()


def test_while_rotating_both_keys_sign_and_both_are_accepted() -> None:
    newer = {"request_hmac": whsec(3), "answer_hmac": whsec(4)}
    older = {"older_request_hmac": REQUEST_SECRET, "older_answer_hmac": ANSWER_SECRET}
    keys = parse_gate_secrets(json.dumps(newer | older).encode())
    signature = webhooks.sign(keys.request, "id", NOW_S, b"{}")
    headers = {"webhook-id": "id", "webhook-timestamp": str(NOW_S), "webhook-signature": signature}
    for secret in (whsec(3), REQUEST_SECRET):
        Webhook(secret).verify("{}", headers)
    for secret in (whsec(4), ANSWER_SECRET):
        assert verify_reply(answer(secret=secret), call=CALL, keys=keys, now_s=NOW_S) == GateAllowed(NOW_S + 60)


def test_a_request_too_large_for_the_gate_is_refused() -> None:
    info = RequestInfo("payments", "e1", "net", {"transaction": "0x" + "00" * MAX_GATE_REQUEST_BYTES}, None)
    with pytest.raises(Refused, match="too large for the gate"):
        build_call(INFO, info, uid=UID, attempt=1, deadline_s=NOW_S, now_s=NOW_S, keys=KEYS)


# --- Answers ---


def test_a_yes() -> None:
    assert judge(answer()) == GateAllowed(NOW_S + 60)
    assert judge(answer({"expiresAt": rfc3339(NOW_S + 60)[:-1] + ".999Z"})) == GateAllowed(NOW_S + 60)
    assert judge(answer({"status": {}})) == GateAllowed(NOW_S + 60)


def test_a_yes_is_never_good_for_longer_than_a_day() -> None:
    assert judge(answer({"expiresAt": "9999-12-31T23:59:59Z"})) == GateAllowed(NOW_S + 24 * 3600)


def test_a_no_says_why() -> None:
    assert refusal(answer({"allowed": False, "status": {"reason": "above the limit"}})) == "above the limit"
    assert refusal(answer({"allowed": False, "status": {"code": "E7"}})) == "E7"
    assert refusal(answer({"allowed": False, "status": {}})) == "no reason given"


def test_pending() -> None:
    waiting = GateReply(UID, 202, "", "", "", 7, b"")
    assert judge(waiting) == GatePending(7)


@pytest.mark.parametrize("status", [100, 201, 203, 204, 299, 301, 302, 307, 400, 401, 403, 404, 500, 501, 599])
def test_a_signed_yes_under_another_status_is_a_no(status: int) -> None:
    assert refusal(answer(status=status)) == f"HTTP {status}"


def test_which_statuses_are_worth_another_try() -> None:
    assert [status for status in range(100, 600) if is_retriable(status)] == [429, 502, 503, 504]
    assert refusal(answer(status=503)) == "HTTP 503"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", "validation.request"),
        ("uid", "cd" * 16),
        ("uid", UID.upper()),
        ("request_digest", "00" * 32),
        ("request_digest", INFO.digest().upper()),
        ("signer_id", "beta"),
        ("kind", "Reshare"),
        ("dryRun", True),
    ],
)
def test_every_echo_counts(field: str, value: object) -> None:
    assert refusal(answer({field: value})) == f"the answer is to something else: {field}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allowed", "true"), ("allowed", 1), ("allowed", None), ("dryRun", 0), ("uid", 1), ("status", "ok"),
        ("status", {"reason": 5}), ("status", {"allowed": True}), ("extra", 1), ("expiresAt", NOW_S + 60),
    ],
)  # fmt: skip
def test_wrong_types_and_unknown_fields(field: str, value: object) -> None:
    assert refusal(answer({field: value})).startswith("malformed answer")


@pytest.mark.parametrize("field", [field for field in YES if field not in ("status", "expiresAt")])
def test_missing_fields(field: str) -> None:
    body = json.dumps({name: value for name, value in YES.items() if name != field}).encode()
    assert refusal(reply(body)).startswith("malformed answer")


def test_a_no_needs_no_expiry_and_a_yes_does() -> None:
    body = {name: value for name, value in YES.items() if name != "expiresAt"}
    assert refusal(reply(json.dumps(body).encode())).startswith("expiresAt is not a UTC time")
    said = {**body, "allowed": False, "status": {"code": "limit", "reason": "above the limit"}}
    assert refusal(reply(json.dumps(said).encode())) == "above the limit"


@pytest.mark.parametrize(
    "text",
    [
        "", "2030-01-01", "2030-01-01T00:00:00", "2030-01-01T00:00:00+00:00", "2030-01-01 00:00:00Z",
        "2030-01-01t00:00:00z", "2030-13-01T00:00:00Z", "2030-01-01T00:00:60Z", "2030-01-01T24:00:00Z",
        "2030-01-01T00:00:00Z\n", "2030-01-01T00:00:00.Z", "٢٠٣٠-01-01T00:00:00Z", "0000-01-01T00:00:00Z",
        "never",
    ],
)  # fmt: skip
def test_times_that_are_none(text: str) -> None:
    assert refusal(answer({"expiresAt": text})).startswith("expiresAt is n")


def test_a_yes_that_has_expired() -> None:
    for text in (rfc3339(NOW_S), rfc3339(NOW_S - 1), "0001-01-01T00:00:00Z"):
        assert refusal(answer({"expiresAt": text})) == "the gate's yes has expired already: check both clocks"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>OK</html>", b"true", b'"yes"', b"[]", b"{}", b"null", b'{"allowed": true}',
        json.dumps(YES).encode()[:-1] + b', "allowed": true}',
        json.dumps(YES | {"allowed": False}).encode()[:-1] + b', "allowed": true}',
        json.dumps(YES).encode() + b"{}",
        json.dumps(YES).replace('"code": 0', '"code": NaN').encode(),
        b"[" * 60_000,
        b'{"status":' * 9_000,
        b" " * MAX_GATE_REQUEST_BYTES,
    ],
)  # fmt: skip
def test_signed_bodies_that_are_no_answer(body: bytes) -> None:
    assert refusal(reply(body)).startswith("malformed answer")


def test_answers_that_are_not_signed_by_the_handler() -> None:
    good = answer()
    replace = msgspec.structs.replace
    unsigned = "unsigned answer: webhook-"
    assert refusal(answer(secret=REQUEST_SECRET)) == f"{unsigned}signature does not verify"
    assert refusal(answer(secret=whsec(9))) == f"{unsigned}signature does not verify"
    assert refusal(replace(good, body=good.body + b" ")) == f"{unsigned}signature does not verify"
    assert refusal(replace(good, webhook_id="msg_2")) == f"{unsigned}signature does not verify"
    assert refusal(replace(good, webhook_timestamp=str(NOW_S + 1))) == f"{unsigned}signature does not verify"
    assert refusal(replace(good, webhook_id="")) == f"{unsigned}id is missing or malformed"


def test_our_own_request_reflected_is_no_answer() -> None:
    """Neither with the request's signature nor, were the keys equal, by its type."""
    mirrored = GateReply(UID, 200, CALL.webhook_id, CALL.webhook_timestamp, CALL.webhook_signature, 0, CALL.body)
    assert refusal(mirrored) == "unsigned answer: webhook-signature does not verify"
    assert refusal(reply(CALL.body)).startswith("malformed answer")


@pytest.mark.parametrize("offset_s", [-301, 301])
def test_stale_and_future_answers(offset_s: int) -> None:
    assert "is more than 300 s off" in refusal(answer(at_s=NOW_S + offset_s))
    assert judge(answer(at_s=NOW_S + offset_s // 301 * 300)) == GateAllowed(NOW_S + 60)


@pytest.mark.parametrize("timestamp", ["", "0", "01", "-1", "1e9", " 1", "1\n", "x", "٣", "1.5", "9" * 13, "nan"])
def test_malformed_timestamps(timestamp: str) -> None:
    changed = msgspec.structs.replace(answer(), webhook_timestamp=timestamp)
    assert refusal(changed) == "unsigned answer: webhook-timestamp is missing or malformed"


def test_forms_of_the_signature_header() -> None:
    good = answer()
    signature = good.webhook_signature
    encoded = signature.removeprefix("v1,")

    def judged(header: str) -> GateAllowed | GatePending:
        return judge(msgspec.structs.replace(good, webhook_signature=header))

    other = "v1," + base64.b64encode(bytes(32)).decode()
    for header in (f"{other} {signature}", f"{signature} {other}", f"v1a,AAAA v2,x {signature}"):
        assert judged(header) == GateAllowed(NOW_S + 60)
    for header in (
        "", "v1", "v1,", encoded, f"v1,{encoded[:-1]}", f"v1,{encoded}\n", f"v1, {encoded}", f"v1,{encoded}=",
        f"v1,{encoded[:4]}!{encoded[4:]}", f"v1,{encoded}é", f"V1,{encoded}", f"v1a,{encoded}", f"v2,{encoded}",
        f"{signature},x", f"{signature}\t{signature}", f"v1,{encoded[:20]}", " ".join([other] * 16 + [signature]),
    ):  # fmt: skip
        with pytest.raises(Refused, match="unsigned answer"):
            judged(header)


@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=40), st.binary(max_size=60), st.integers(100, 599))
def test_any_reply_is_judged_or_refused(
    webhook_id: str, timestamp: str, signature: str, body: bytes, status: int
) -> None:
    made = GateReply(UID, status, webhook_id, timestamp, signature, 0, body)
    if status == 202:
        assert judge(made) == GatePending(0)
    else:
        refusal(made)


@given(st.binary(max_size=80))
def test_any_signed_body_is_judged_or_refused(body: bytes) -> None:
    signature = webhooks.sign(KEYS.answer, "m", NOW_S, body)
    made = GateReply(UID, 200, "m", str(NOW_S), signature, 0, body)
    assert refusal(made).startswith("malformed answer")


# --- Secrets ---


@pytest.mark.parametrize(
    "change",
    [
        {"request_hmac": ANSWER_SECRET},
        {"older_request_hmac": ANSWER_SECRET},
        {"older_answer_hmac": REQUEST_SECRET},
        {"request_hmac": whsec(1, 23)},
        {"request_hmac": whsec(1, 65)},
        {"request_hmac": REQUEST_SECRET.removeprefix("whsec_")},
        {"request_hmac": REQUEST_SECRET[:-1]},
        {"request_hmac": REQUEST_SECRET[:-2] + "F="},
        {"request_hmac": REQUEST_SECRET + "\n"},
        {"request_hmac": "whsec_é"},
        {"request_hmac": None},
        {"other": REQUEST_SECRET},
    ],
)
def test_bad_secrets_are_refused_and_never_quoted(change: dict[str, Any]) -> None:
    with pytest.raises(CallerError) as caught:
        parse_gate_secrets(json.dumps(SECRETS | change).encode())
    for secret in (*SECRETS.values(), *filter(None, change.values())):
        assert secret[6:] not in str(caught.value)


def test_duplicate_secrets_are_refused() -> None:
    text = json.dumps(SECRETS)[:-1] + f', "answer_hmac": "{whsec(5)}"}}'
    with pytest.raises(CallerError, match="gate secrets must be JSON"):
        parse_gate_secrets(text.encode())


@given(st.binary(max_size=100))
def test_any_bytes_as_secrets(data: bytes) -> None:
    with contextlib.suppress(CallerError):
        parse_gate_secrets(data)


def test_keys_do_not_show_themselves() -> None:
    assert base64.b64encode(bytes([1]) * 32).decode() not in repr(KEYS)
    assert "\\x01" not in repr(KEYS)

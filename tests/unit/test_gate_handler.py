"""The reference handler as the enclave sees it: real TLS, the enclave's own verification of what it answers."""

from __future__ import annotations

import json
import pathlib
import time

import pytest

from appliance.gate.config import GateConfig, GateRules, load_config, load_secrets
from appliance.gate.handler import make_app
from appliance.signer.config import GateSettings
from appliance.signer.gate_caller import GateCaller
from enclave import wire
from enclave.gate import GateAllowed, build_call, verify_reply
from enclave.gate_keys import parse_gate_secrets
from policies.errors import CallerError, Refused
from policies.gate_messages import RequestInfo, SignerInfo
from tests.fakes.servers import serving
from tests.fakes.tls import TlsFiles

SECRETS = {
    "request_hmac": "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=",
    "answer_hmac": "whsec_" + "ZWRjYmFaWVhXVlVUU1JRUE9OTUxLSklIR0ZFRENCQWE=",
}
DESTINATION = "0x" + "ab" * 20


@pytest.fixture
def tls(tmp_path: pathlib.Path) -> TlsFiles:
    return TlsFiles.make(tmp_path)


def config_of(tls: TlsFiles, rules: GateRules) -> GateConfig:
    secrets = tls.directory / "secrets.json"
    secrets.touch(0o600)
    secrets.write_text(json.dumps(SECRETS))
    return GateConfig("127.0.0.1:0", tls.server_certificate, tls.server_key, secrets, rules=rules)


def info(blind: bool = False) -> SignerInfo:
    return SignerInfo(
        kind="Signing", key_id="key_" + "ab" * 16, public_key="02" * 33, tx_hash="11" * 32, derivation_path=(0,),
        child_public_key="03" * 33, signer_id="s", scheme="ECDSA", curve="secp256k1", key_epoch=1,
        participants=(1, 2, 3), blind=blind,
    )  # fmt: skip


def request(value: int = 1, decoded: bool = True) -> RequestInfo:
    fields = {"to": DESTINATION, "value": str(value)} if decoded else None
    return RequestInfo("alice", "first", "test", {"kind": "EthereumTransaction"}, fields)


async def ask(
    tls: TlsFiles, rules: GateRules, *, value: int = 1, blind: bool = False, secrets: dict[str, str] = SECRETS
) -> GateAllowed:
    """One exchange through the signer's caller, judged by the enclave's code."""
    keys = parse_gate_secrets(json.dumps(secrets).encode())
    now_s = int(time.time())
    call = build_call(
        info(blind), request(value, not blind), uid="ab" * 16, attempt=1, deadline_s=now_s + 30, now_s=now_s, keys=keys
    )
    message = wire.CallGate(call.uid, call.webhook_id, call.webhook_timestamp, call.webhook_signature, call.body, 5000)
    async with serving(make_app(config_of(tls, rules)), tls) as port:
        caller = GateCaller.open(GateSettings(f"https://127.0.0.1:{port}/validate", tls.ca))
        try:
            reply = await caller.call(message, 5.0)
        finally:
            await caller.close()
    assert isinstance(reply, wire.GateReply)
    verdict = verify_reply(reply, call=call, keys=keys, now_s=now_s)
    assert isinstance(verdict, GateAllowed)
    assert now_s < verdict.expires_at_s <= now_s + 62
    return verdict


async def test_the_enclave_verifies_its_yes(tls: TlsFiles) -> None:
    await ask(tls, GateRules())


async def test_rules_refuse_and_the_reason_arrives(tls: TlsFiles) -> None:
    with pytest.raises(Refused, match=f"destination {DESTINATION} is on the list"):
        await ask(tls, GateRules(refuse_destinations=(DESTINATION.upper().replace("0X", "0x"),)))


async def test_the_highest_value(tls: TlsFiles, tmp_path: pathlib.Path) -> None:
    rules = GateRules(max_wei=10**18)
    await ask(tls, rules, value=10**18)
    with pytest.raises(Refused, match=f"value {10**18 + 1} wei is more than {10**18}"):
        await ask(tls, rules, value=10**18 + 1)


async def test_blind_requests(tls: TlsFiles) -> None:
    await ask(tls, GateRules(), blind=True)
    with pytest.raises(Refused, match="it is blind"):
        await ask(tls, GateRules(refuse_blind=True), blind=True)


async def test_kinds_that_are_not_allowed(tls: TlsFiles) -> None:
    await ask(tls, GateRules(kinds=("Signing",)))
    with pytest.raises(Refused, match="nobody has allowed steps of kind Signing"):
        await ask(tls, GateRules(kinds=("KeyCreation",)))


def test_a_kind_that_does_not_exist_is_a_mistake(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("listen: 127.0.0.1:1\ncertificate: c\nkey: k\nsecrets: s\nrules:\n  kinds: [Signign]\n")
    with pytest.raises(CallerError, match=r"gate.yaml:6:11: .*Signign"):
        load_config(path)


async def test_a_request_of_somebody_else_gets_401(tls: TlsFiles) -> None:
    swapped = {"request_hmac": SECRETS["answer_hmac"], "answer_hmac": SECRETS["request_hmac"]}
    with pytest.raises(Refused, match="HTTP 401"):
        await ask(tls, GateRules(), secrets=swapped)


def test_configuration_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(
        "listen: 127.0.0.1:9443\ncertificate: a.pem\nkey: a.key\nsecrets: s.json\n"
        f"rules:\n  refuse_destinations: ['{DESTINATION}']\n  max_wei: 1000000000000000000000000\n"
    )
    config = load_config(path)
    assert config.secrets == tmp_path / "s.json"
    assert config.rules == GateRules(refuse_destinations=(DESTINATION,), max_wei=10**24)
    path.write_text("listen: 127.0.0.1:9443\ncertificate: a.pem\nkey: a.key\nsecrets: s.json\nallow: all\n")
    with pytest.raises(CallerError, match=r"gate.yaml:5:1: .*unknown field `allow`"):
        load_config(path)


def test_secrets_are_private_and_never_shown(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s.json"
    path.touch(0o600)
    path.write_text(json.dumps(SECRETS))
    assert "whsec" not in repr(load_secrets(path))
    path.chmod(0o644)
    with pytest.raises(CallerError, match="mode 0644: run chmod 600"):
        load_secrets(path)
    path.chmod(0o600)
    path.write_text(json.dumps({"request_hmac": "whsec_short", "answer_hmac": SECRETS["answer_hmac"]}))
    with pytest.raises(CallerError, match="are not") as caught:
        load_secrets(path)
    assert "short" not in str(caught.value)

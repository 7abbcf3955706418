"""`keymoot gate check` against the reference handler, and against handlers with exactly one fault each."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import pathlib
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import msgspec
import pytest
from aiohttp import web
from nacl.signing import SigningKey

from appliance import pki
from appliance.cli.gate_check import Kind
from appliance.gate.check.findings import Finding, Outcome
from appliance.gate.check.judge import Decision, judge
from appliance.gate.check.keys import ED25519, Key, SecretsFile, content_of, parse_keys, signed_by
from appliance.gate.check.kinds import RESERVED
from appliance.gate.check.player import Settings
from appliance.gate.check.questions import Parts, parse_parts, question
from appliance.gate.check.run import check_handler
from appliance.gate.check.samples import CHILD_KEY, PUBLIC_KEY, REQUEST_INFO, SAMPLES, SIGNER_INFO
from appliance.gate.config import GateConfig, GateRules
from appliance.gate.config import Kind as GateKind
from appliance.gate.handler import make_app
from appliance.signer.config import GateSettings
from appliance.signer.gate_caller import GateCaller
from enclave import gate_keys
from enclave.crypto import bip32
from enclave.gate import GateSaidNo, build_call, judge_status, verify_reply
from enclave.gate_keys import parse_gate_secrets
from enclave.payloads import decode_payload
from enclave.wire import GateReply
from policies.errors import CallerError, Refused
from policies.gate_messages import show_decoded
from policies.requests import EthereumTransaction
from tests.fakes.command_line import Keymoot
from tests.fakes.command_line import Outcome as CommandOutcome
from tests.fakes.gate_handlers import Ed25519Handler, FaultyHandler
from tests.fakes.payloads import encoded_transaction
from tests.fakes.servers import serving
from tests.fakes.tls import TlsFiles

SECRETS = {
    "request_hmac": "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=",
    "answer_hmac": "whsec_" + "ZWRjYmFaWVhXVlVUU1JRUE9OTUxLSklIR0ZFRENCQWE=",
}
KEYS = parse_keys(json.dumps(SECRETS).encode())
REFUSED = "0x" + "dd" * 20
REFUSED_PARTS = Parts(requestInfo={"decoded": {"to": REFUSED, "value": "1"}})


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return TlsFiles.make(tmp_path_factory.mktemp("tls"))


def reference(tls: TlsFiles) -> web.Application:
    secrets = tls.directory / "secrets.json"
    secrets.touch(0o600)
    secrets.write_text(json.dumps(SECRETS))
    rules = GateRules(refuse_destinations=(REFUSED,))
    return make_app(GateConfig("127.0.0.1:0", tls.server_certificate, tls.server_key, secrets, rules=rules))


async def check(
    app: web.Application, tls: TlsFiles, *, mutual: bool = False, shows: bool = False, **settings: Any
) -> dict[str, Finding]:
    async with serving(app, tls, mutual=mutual) as port:
        files = (tls.client_certificate, tls.client_key) if mutual or shows else (None, None)
        gate = GateSettings(f"https://127.0.0.1:{port}/validate", tls.ca, *files)
        made = {"keys": KEYS, "timeout_s": 5.0, "refused": REFUSED_PARTS} | settings
        found = [finding async for finding in check_handler(Settings(gate, **made), time.time, os.urandom)]
    assert len({finding.check for finding in found}) == len(found)
    return {finding.check: finding for finding in found}


def outcomes(findings: dict[str, Finding], outcome: Outcome) -> set[str]:
    return {name for name, finding in findings.items() if finding.outcome is outcome}


ALL = {
    "answer-status", "answer-signature", "answer-reflected", "answer-timestamp", "answer-form", "answer-echo",
    "answer-dry-run", "answer-expiry", "tls", "client-certificate", "allows", "refuses", "real", "kind-Signing",
    "kind-SigningBatch", "kind-KeyCreation", "kind-Refresh", "kind-Reshare", "kind-BackupKeyChange",
    "forged-signature", "altered-body", "no-signature", "wrong-direction", "stale-timestamp", "future-timestamp",
    "wrong-type", "unknown-version", "unknown-kind", "not-json", "several-signatures", "unknown-fields", "retry",
    "reused-uid", "largest-question", "huge-body", "slow-clients", "at-once", "latency", "connection-reuse",
}  # fmt: skip


async def test_the_reference_handler_passes_everything(tls: TlsFiles) -> None:
    found = await check(reference(tls), tls, mutual=True, real=True)
    assert outcomes(found, Outcome.PASSED) == ALL, [f for f in found.values() if f.outcome is not Outcome.PASSED]


async def test_all_questions_are_dry_runs_unless_told(tls: TlsFiles) -> None:
    seen: list[bool] = []

    @web.middleware
    async def look(request: web.Request, handler: Callable[..., Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        with contextlib.suppress(ValueError, web.HTTPException):
            seen.append(json.loads(await request.text())["dryRun"])
        return await handler(request)

    for real in (False, True):
        seen.clear()
        app = reference(tls)
        app.middlewares.append(look)
        await check(app, tls, real=real)
        assert seen.count(False) == real
        assert seen.count(True) > 50


FAILED = {
    "redirects": {"answer-status"},
    "unsigned": {"answer-signature"},
    "signs other bytes": {"answer-signature"},
    "request secret": {"answer-reflected"},
    "reflects": {"answer-reflected", "answer-form"},
    "old clock": {"answer-timestamp"},
    "html": {"answer-form"},
    "more fields": {"answer-form"},
    "other uid": {"answer-echo"},
    "never dry": {"answer-dry-run"},
    "expired yes": {"answer-expiry"},
    "ends soon": {"answer-expiry"},
    "never refuses": {"refuses"},
    "always dry": {"real"},
    "nobody needs to sign": {
        "forged-signature", "altered-body", "no-signature", "wrong-direction", "stale-timestamp", "future-timestamp",
    },
    "any signature": {"forged-signature", "altered-body", "wrong-direction"},
    "empty signatures": {"no-signature"},
    "both secrets": {"wrong-direction"},
    "old ones": {"stale-timestamp"},
    "future ones": {"future-timestamp"},
    "any type": {"wrong-type"},
    "any version": {"unknown-version"},
    "any kind": {"unknown-kind", "kind-Reshare", "kind-BackupKeyChange"},
    "knows Reshare": {"kind-Reshare"},
    "knows BackupKeyChange": {"kind-BackupKeyChange"},
    "hangs on KeyCreation": {"kind-KeyCreation"},
    "yes to nonsense": {
        "wrong-type", "unknown-version", "unknown-kind", "not-json", "kind-Reshare", "kind-BackupKeyChange",
    },
    "first signature alone": {"several-signatures"},
    "no retries": {"retry"},
    "one by one": {"slow-clients"},
    "four at once": {"at-once"},
}  # fmt: skip
HANGING = {"one by one", "hangs on KeyCreation"}
AGREES_TO_ALL = {"any kind", "yes to nonsense"}
WARNED = {
    "short yes": {"answer-expiry"},
    "403": {"refuses"},
    "always refuses": {"allows"},
    "no SigningBatch": {"kind-SigningBatch"},
    "crashes on KeyCreation": {"kind-KeyCreation"},
    "crashes on Refresh": {"kind-Refresh"},
    "crashes on BackupKeyChange": {"kind-BackupKeyChange"},
    "knows Refresh": {"kind-Refresh"},
    "crashes on strangers": {
        "forged-signature", "altered-body", "no-signature", "wrong-direction", "stale-timestamp", "future-timestamp",
    },
    "crashes on nonsense": {
        "wrong-type", "unknown-version", "unknown-kind", "not-json", "kind-Refresh", "kind-Reshare",
        "kind-BackupKeyChange",
    },
    "no new fields": {"unknown-fields"},
    "forgets": {"reused-uid"},
    "small bodies": {"largest-question"},
    "reads all": {"huge-body"},
    "slow": {"latency"},
    "closes": {"connection-reuse"},
}  # fmt: skip


async def check_faulty(tls: TlsFiles, *faults: str, **settings: Any) -> dict[str, Finding]:
    app = FaultyHandler(SECRETS, REFUSED, *faults).app()
    return await check(app, tls, mutual=True, **{"real": True} | settings)


async def test_without_a_fault_everything_passes(tls: TlsFiles) -> None:
    found = await check_faulty(tls)
    assert outcomes(found, Outcome.PASSED) == ALL


@pytest.mark.parametrize("fault", FAILED)
async def test_each_fault_fails_its_check_and_no_other(tls: TlsFiles, fault: str) -> None:
    found = await check_faulty(tls, fault, timeout_s=1.5 if fault in HANGING else 5.0)
    failed = outcomes(found, Outcome.FAILED)
    useless = any(name.startswith("answer-") for name in FAILED[fault])
    assert failed == FAILED[fault]
    assert all(found[name].means and found[name].remedy for name in failed)
    assert outcomes(found, Outcome.WARNING) == ({"kind-Refresh"} if fault in AGREES_TO_ALL else set())
    # What needs a good answer is not tried without one.
    assert ("everything else" in found) is useless


@pytest.mark.parametrize("fault", WARNED)
async def test_each_weakness_is_warned_of_and_nothing_fails(
    tls: TlsFiles, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.gate.check.manners.SLOW_S", 0.025)
    found = await check_faulty(tls, fault)
    assert outcomes(found, Outcome.FAILED) == set()
    assert outcomes(found, Outcome.WARNING) - ({"latency"} - WARNED[fault]) == WARNED[fault]


def test_every_check_is_shown_to_fail_or_warn() -> None:
    elsewhere = {"tls", "client-certificate", "kind-Signing"}
    assert set().union(*FAILED.values(), *WARNED.values()) | elsewhere == ALL


async def test_what_each_kind_gets_is_said(tls: TlsFiles) -> None:
    found = await check(reference(tls), tls)
    assert {name: found[f"kind-{name}"].what.partition(" got ")[2] for name in SAMPLES} == {
        **dict.fromkeys(("Signing", "SigningBatch", "KeyCreation"), "a yes"),
        **{name: f"a no (nobody has allowed steps of kind {name})" for name in RESERVED},
    }
    found = await check_faulty(tls, "hangs on Reshare", timeout_s=1.5)
    assert found["kind-Reshare"].what == "new shares for signers that nobody knows: no answer within 1500 ms"
    assert "a few hold up every signature" in found["kind-Reshare"].means
    found = await check_faulty(tls, "no KeyCreation")
    assert outcomes(found, Outcome.PASSED) == ALL
    assert found["kind-KeyCreation"].what.startswith("a new key got HTTP 400, a refusal. Every new key will be refused")
    found = await check_faulty(tls, "crashes on KeyCreation")
    assert found["kind-KeyCreation"].what == "a new key got no decision: HTTP 500"
    assert found["kind-KeyCreation"].means.startswith("A refusal, but it looks like a crash. Every new key")


async def test_each_kind_is_asked_as_an_enclave_asks_it_whatever_is_allowed(tls: TlsFiles) -> None:
    """`--allowed` with a logged question of a kind made every other kind pass for that one."""
    seen: dict[str, set[str]] = {}

    @web.middleware
    async def look(request: web.Request, handler: Callable[..., Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        with contextlib.suppress(ValueError, web.HTTPException):
            info = json.loads(await request.text())["signerInfo"]
            seen.setdefault(info["kind"], set()).update(info)
        return await handler(request)

    creation = msgspec.to_builtins(SAMPLES["KeyCreation"].info) | {"label": "hot/7", "signer_id": "s7"}
    app = FaultyHandler(SECRETS, REFUSED, "no Signing").app()
    app.middlewares.append(look)
    found = await check(app, tls, allowed=Parts(signerInfo=creation), refused=None)
    assert outcomes(found, Outcome.WARNING) == {"kind-Signing"}
    assert found["kind-Signing"].means == "Every signature will be refused."
    assert found["allows"].outcome is Outcome.PASSED
    for kind in SAMPLES.keys() - {"KeyCreation"}:
        assert seen[kind] == {*msgspec.to_builtins(SAMPLES[kind].info), "request_digest"}


def test_a_question_of_another_kind_keeps_only_who_asks() -> None:
    info = {"kind": "Signing", "tx_hash": "ab" * 32, "signer_id": "s7", "key_id": "key_1"}
    logged = Parts(info, {"network": "n", "decoded": {"to": ""}})
    asked = question("u", 2000, dry_run=True, parts=logged, kind="SigningBatch").message
    assert asked["signerInfo"]["kind"] == "SigningBatch"
    assert asked["signerInfo"]["signer_id"] == "s7"
    assert "tx_hash" not in asked["signerInfo"]
    assert (asked["requestInfo"]["network"], asked["requestInfo"]["decoded"]) == ("n", None)
    same = question("u", 2000, dry_run=True, parts=logged).message
    assert same["signerInfo"]["tx_hash"] == "ab" * 32
    backup = question("u", 2000, dry_run=True, parts=logged, kind="BackupKeyChange").message
    assert backup["signerInfo"]["signer_id"] == "s7"
    assert "key_id" not in backup["signerInfo"]


async def test_a_certificate_that_ends_soon(tmp_path: pathlib.Path) -> None:
    tls = TlsFiles.make(tmp_path)
    ca = pki.make_ca("test ca")
    tls.ca.unlink()
    (tmp_path / "ca.key").unlink()
    ca.write(tls.ca, tmp_path / "ca.key")
    for path in (tls.server_certificate, tls.server_key):
        path.unlink()
    server = pki.issue(ca, "localhost", pki.Purpose.SERVER, addresses=("127.0.0.1",), days=5)
    server.write(tls.server_certificate, tls.server_key)
    found = await check(reference(tls), tls)
    assert outcomes(found, Outcome.WARNING) == {"tls"}
    assert re.search("its certificate ends in [45] days", found["tls"].what)


async def test_a_handler_that_lets_strangers_in(tls: TlsFiles) -> None:
    found = await check(reference(tls), tls, shows=True)
    assert outcomes(found, Outcome.WARNING) == {"client-certificate"}
    assert outcomes(found, Outcome.FAILED) == set()


async def test_nobody_there_is_one_finding(tls: TlsFiles) -> None:
    async with serving(web.Application(), tls) as port:
        pass
    settings = Settings(GateSettings(f"https://127.0.0.1:{port}/", tls.ca), KEYS, 1.0)
    found = {finding.check: finding async for finding in check_handler(settings, time.time, os.urandom)}
    assert outcomes(found, Outcome.FAILED) == {"answer-status"}
    assert "refused" in found["answer-status"].what.lower()
    assert outcomes(found, Outcome.PASSED) == set()


async def test_a_person_who_decides(tls: TlsFiles) -> None:
    found = await check_faulty(tls, "asks people")
    assert outcomes(found, Outcome.FAILED) == set()
    assert outcomes(found, Outcome.WARNING) == {"allows", "refuses"}
    assert found["answer-status"].what.endswith("202, pending")
    assert found["pending"].what == "it answers 202 and wants to be asked again in 60 s"
    found = await check_faulty(tls, "asks people", "no Retry-After")
    assert outcomes(found, Outcome.WARNING) == {"allows", "refuses", "pending"}
    found = await check_faulty(tls, "asks people", "forgets whom it asked")
    assert outcomes(found, Outcome.FAILED) == {"pending", "retry"}


# --- Ed25519 ---

ASKS, ANSWERS = SigningKey(bytes(range(32))), SigningKey(bytes(32))
ED25519_KEYS = parse_keys(
    json.dumps(
        {
            "request_ed25519": "whsk_" + base64.b64encode(ASKS.encode()).decode(),
            "answer_ed25519": "whpk_" + base64.b64encode(ANSWERS.verify_key.encode()).decode(),
        }
    ).encode()
)


async def test_a_handler_with_ed25519_passes_everything(tls: TlsFiles) -> None:
    app = Ed25519Handler(ASKS.verify_key.encode(), ANSWERS.encode(), REFUSED).app()
    found = await check(app, tls, mutual=True, real=True, keys=ED25519_KEYS)
    assert outcomes(found, Outcome.PASSED) == ALL


async def test_an_ed25519_signature_of_somebody_else_fails(tls: TlsFiles) -> None:
    app = Ed25519Handler(ASKS.verify_key.encode(), bytes([1]) * 32, REFUSED).app()
    found = await check(app, tls, keys=ED25519_KEYS)
    assert outcomes(found, Outcome.FAILED) == {"answer-signature"}
    # And nobody is brought down to HMAC.
    found = await check(FaultyHandler(SECRETS, REFUSED, "nobody needs to sign").app(), tls, keys=ED25519_KEYS)
    assert "answer-signature" in outcomes(found, Outcome.FAILED)


# --- As strict as the enclave ---


@pytest.mark.parametrize("fault", ["", *(fault for fault in FAILED if fault != "one by one")])
async def test_it_judges_an_answer_as_the_enclave_does(tls: TlsFiles, fault: str) -> None:
    """One question, asked by the enclave's own code; both say the same of what came back."""
    handler, keys = FaultyHandler(SECRETS, REFUSED, fault), parse_gate_secrets(json.dumps(SECRETS).encode())
    for dry_run in (False, True):
        asked = question(os.urandom(16).hex(), int(time.time()) + 60, dry_run=dry_run)
        call = build_call(
            SIGNER_INFO, REQUEST_INFO, uid=asked.uid, attempt=1, deadline_s=int(time.time()) + 60,
            now_s=int(time.time()), keys=keys, dry_run=dry_run,
        )  # fmt: skip
        assert json.loads(asked.body)["signerInfo"] == json.loads(call.body)["signerInfo"]
        async with serving(handler.app(), tls) as port:
            caller = GateCaller.open(GateSettings(f"https://127.0.0.1:{port}/", tls.ca))
            reply = await caller.call(asked.call(KEYS.asks, int(time.time()), 5.0), 5.0)
            await caller.close()
        judged = judge(reply, asked, KEYS, int(time.time()))
        if isinstance(reply, GateReply):
            try:
                verify_reply(reply, call=call, keys=keys, now_s=int(time.time()))
                theirs = Decision.YES
            except Refused:
                theirs = Decision.NOTHING
            assert judged.decision is theirs
        else:
            assert judged.decision is Decision.NOTHING


def test_a_secrets_file_is_the_one_that_the_enclave_reads() -> None:
    assert SecretsFile.__struct_fields__ == gate_keys.SecretsFile.__struct_fields__


def test_questions_are_signed_as_the_enclave_signs_them() -> None:
    ed25519 = {
        "request_ed25519": "whsk_" + base64.b64encode(bytes(range(32))).decode(),
        "answer_ed25519": "whpk_" + base64.b64encode(SigningKey(bytes(32)).verify_key.encode()).decode(),
    }
    for secrets in (SECRETS, ed25519, SECRETS | ed25519):
        data = json.dumps(secrets).encode()
        asked = question("ab" * 16, 2000, dry_run=True)
        made = asked.call(parse_keys(data).asks, 1000, 1.0).webhook_signature
        theirs = build_call(
            SIGNER_INFO, REQUEST_INFO, uid="ab" * 16, attempt=1, deadline_s=2000, now_s=1000,
            keys=parse_gate_secrets(data), dry_run=True,
        )  # fmt: skip
        assert (asked.body, made) == (theirs.body, theirs.webhook_signature)
    answers = parse_keys(json.dumps(ed25519).encode()).answers
    good = Key(ED25519, bytes(32)).sign(content_of("a", "1", b"x"))
    assert signed_by(answers, "a", "1", f"v1,AAAA v1a,A {good}", b"x")
    assert not signed_by(answers, "a", "1", good, b"y")
    assert not signed_by(answers, "a", "1", good.replace("v1a,", "v1,"), b"x")


def test_the_sample_is_a_real_transaction() -> None:
    payload = decode_payload(msgspec.convert(REQUEST_INFO.payload, EthereumTransaction))
    assert payload.h.hex() == SIGNER_INFO.tx_hash
    assert show_decoded(payload.decoded) == REQUEST_INFO.decoded
    child, _ = bip32.derive(bytes.fromhex(PUBLIC_KEY), bytes(32), (0, 5))
    assert child.hex() == CHILD_KEY


@pytest.mark.parametrize(
    "secrets",
    [
        "", "{}", '{"request_hmac": "whsec_AAAA", "answer_hmac": "whsec_AAAA"}',
        json.dumps({"request_hmac": SECRETS["request_hmac"]}),
        json.dumps({"request_hmac": SECRETS["request_hmac"], "answer_hmac": SECRETS["request_hmac"]}),
        json.dumps(SECRETS | {"answer_hmac": SECRETS["answer_hmac"].removeprefix("whsec_")}),
        json.dumps(SECRETS | {"answer_hmac": SECRETS["answer_hmac"] + "="}),
        json.dumps(SECRETS | {"answer_ed25519": "whpk_AAAA"}), json.dumps(SECRETS | {"more": ""}),
    ],
)  # fmt: skip
def test_secrets_that_are_none_are_never_quoted(secrets: str) -> None:
    with pytest.raises(CallerError) as caught:
        parse_keys(secrets.encode())
    assert "QUJD" not in str(caught.value)
    assert "ZWRj" not in str(caught.value)
    assert "QUJD" not in repr(KEYS)


async def test_a_refusal_is_asked_for_with_a_body_as_clients_sign_it(tls: TlsFiles) -> None:
    transaction = "0x" + encoded_transaction({5: bytes.fromhex(REFUSED[2:])}).hex()
    body = {"kind": "EthereumTransaction", "transaction": transaction, "externalId": "e1", "derivationPath": [1]}
    parts = parse_parts(json.dumps(body).encode(), "FILE")
    found = await check(reference(tls), tls, refused=parts)
    assert found["refuses"].what == f"it said a no (destination {REFUSED} is on the list of refused ones)"
    for bad in (b'{"kind": "Other"}', b'{"label": "a/b"}', b"[]", b'{"requestInfo": {"payload": null}}'):
        with pytest.raises(CallerError, match="FILE must be the body of a request for a signature, a batch or a key"):
            parse_parts(bad, "FILE")
    with pytest.raises(Refused, match="payload/ethereum"):
        parse_parts(json.dumps(body | {"transaction": "0x02c0"}).encode(), "FILE")


def test_bodies_of_batches_and_keys_make_questions_as_enclaves_do() -> None:
    hashes = [f"0x{number:064x}" for number in (1, 2)]
    batch = {"kind": "HashBatch", "hashes": hashes, "externalId": "gate-check-2", "derivationPaths": [[0, 5]]}
    creation = {"scheme": "ECDSA", "curve": "secp256k1", "signers": 3, "tolerate": 1, "label": "gate-check/1"}
    creation["externalId"] = "gate-check-3"
    for kind, body in (("SigningBatch", batch), ("KeyCreation", creation)):
        asked = question("u", 2000, dry_run=True, parts=parse_parts(json.dumps(body).encode(), "FILE"))
        assert json.loads(asked.body) == json.loads(question("u", 2000, dry_run=True, kind=kind).body)


# --- Mode status ---


async def status_handler(http: web.Request) -> web.Response:
    """An existing handler: it reads `signerInfo`, and answers 200 or 403."""
    try:
        message = await http.json()
        refused = (message["requestInfo"]["decoded"] or {}).get("to") == REFUSED
        return web.Response(status=403 if refused or message["signerInfo"]["kind"] != "Signing" else 200)
    except (ValueError, KeyError):
        return web.Response(status=400)


def status_app() -> web.Application:
    app = web.Application(client_max_size=2**20)
    app.router.add_post("/{path:.*}", status_handler)
    return app


async def test_an_existing_handler_in_mode_status(tls: TlsFiles) -> None:
    found = await check(status_app(), tls, mutual=True, keys=None)
    assert outcomes(found, Outcome.FAILED) == set()
    assert found["allows"].outcome is found["refuses"].outcome is found["client-certificate"].outcome is Outcome.PASSED
    assert outcomes(found, Outcome.WARNING) == {"wrong-type", "unknown-version", "reused-uid"}


@pytest.mark.parametrize("status", [200, 202, 204, 400, 401, 403, 500, 503])
def test_it_judges_a_status_as_the_enclave_does(status: int) -> None:
    asked = question(os.urandom(16).hex(), int(time.time()) + 60, dry_run=True)
    reply = GateReply(asked.uid, status, "", "", "", 5, b"")
    try:
        judge_status(reply, now_s=int(time.time()))
        theirs = Decision.YES
    except GateSaidNo:
        theirs = Decision.NO
    except Refused:
        theirs = Decision.NOTHING
    assert judge(reply, asked, None, int(time.time())).decision is theirs


def always(status: int) -> web.Application:
    async def handle(http: web.Request) -> web.Response:
        await http.read()
        return web.Response(status=status)

    app = web.Application(client_max_size=2**20)
    app.router.add_post("/{path:.*}", handle)
    return app


async def test_mode_status_waits_for_nobody(tls: TlsFiles) -> None:
    """What is said of it must not make a yes of a no: 200 is a yes there, whatever comes with it."""
    found = await check(always(202), tls, mutual=True, keys=None)
    assert outcomes(found, Outcome.FAILED) == {"answer-status"}
    assert found["answer-status"].what == "HTTP 202"
    assert found["answer-status"].remedy.startswith("Answer 200 to a yes and to nothing else, 403 to a no.")
    assert "pending" not in found


async def test_a_page_that_says_200_to_everything_is_no_handler_for_mode_status(tls: TlsFiles) -> None:
    found = await check(always(200), tls, mutual=True, keys=None)
    assert outcomes(found, Outcome.FAILED) == {"refuses", "not-json"}


async def test_mode_status_without_client_certificates_fails(tls: TlsFiles) -> None:
    for shows in (False, True):
        found = await check(status_app(), tls, shows=shows, keys=None)
        assert outcomes(found, Outcome.FAILED) == {"client-certificate"}


# --- The command ---


@pytest.fixture
def keymoot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandOutcome]:
    """`keymoot gate …`, with secrets on its standard input."""
    run = Keymoot(monkeypatch, capsys)

    def gate(*words: str) -> CommandOutcome:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(SECRETS).encode())))
        return run("gate", *words)

    return gate


async def test_the_command_reports_and_exits_with_1_where_something_failed(
    tls: TlsFiles, keymoot: Callable[..., CommandOutcome]
) -> None:
    for fault, code in (("", 0), ("any type", 1)):
        async with serving(FaultyHandler(SECRETS, REFUSED, fault).app(), tls) as port:
            words = ("check", f"https://127.0.0.1:{port}/", "--ca", str(tls.ca), "--secrets", "-", "--json")
            done = await asyncio.to_thread(keymoot, *words)
        assert (done.code, done.err) == (code, "")
        report = json.loads(done.out)
        assert report["failed"] == code
        assert len(report["findings"]) == sum(report[outcome.value] for outcome in Outcome)
        assert "QUJD" not in done.out


async def test_the_command_in_words(
    tls: TlsFiles, tmp_path: pathlib.Path, keymoot: Callable[..., CommandOutcome]
) -> None:
    secrets = tmp_path / "secrets.json"
    secrets.touch(0o600)
    secrets.write_text(json.dumps(SECRETS))
    async with serving(FaultyHandler(SECRETS, REFUSED, "any kind").app(), tls) as port:
        words = ("check", f"https://127.0.0.1:{port}/", "--ca", str(tls.ca), "--secrets", str(secrets))
        done = await asyncio.to_thread(keymoot, *words)
    assert (done.code, done.err) == (1, "")
    assert "\nfailed   unknown-kind         a question of a kind that does not exist got a yes\n" in done.out
    assert "Say yes to the values of signerInfo.kind that you know" in done.out
    assert re.search(r"^\d+ passed, 3 failed, 1 warning, 1 skipped\.$", done.out, re.MULTILINE)


@pytest.mark.parametrize("ed25519", [False, True])
def test_secrets_for_a_trial_fit_each_other(
    tls: TlsFiles, tmp_path: pathlib.Path, keymoot: Callable[..., CommandOutcome], ed25519: bool
) -> None:
    words = ("trial-secrets", str(tmp_path / "g"), "--json", *(["--ed25519"] if ed25519 else []))
    made = json.loads(keymoot(*words).out)
    secrets, signer = (pathlib.Path(made[name]) for name in ("handler_copy", "signer_copy"))
    assert [path.stat().st_mode & 0o777 for path in (secrets, signer)] == [0o600, 0o600]
    again = keymoot(*words)
    assert (again.code, again.out) == (2, "")
    assert "is there already" in again.err
    app = make_app(GateConfig("127.0.0.1:0", tls.server_certificate, tls.server_key, secrets))
    found = asyncio.run(check(app, tls, keys=parse_keys(signer.read_bytes()), refused=None))
    assert outcomes(found, Outcome.PASSED) == ALL - {"refuses", "client-certificate", "real"}
    if ed25519:
        with pytest.raises(CallerError, match="the signer's half is asked for"):
            parse_keys(secrets.read_bytes())


def test_a_question_of_each_kind_is_printed(tmp_path: pathlib.Path, keymoot: Callable[..., CommandOutcome]) -> None:
    assert [kind.value for kind in Kind] == list(SAMPLES) == list(get_args(GateKind))
    for kind in SAMPLES:
        printed = keymoot("question", "--kind", kind)
        assert printed.code == 0
        assert json.loads(printed.out)["signerInfo"]["kind"] == kind
        logged = tmp_path / f"{kind}.json"
        logged.write_text(printed.out)
        again = json.loads(keymoot("question", "--request", str(logged)).out)
        assert again["signerInfo"] == json.loads(printed.out)["signerInfo"]
        assert again["requestInfo"] == json.loads(printed.out)["requestInfo"]
    both = keymoot("question", "--kind", "Signing", "--request", str(logged))
    assert (both.code, both.out) == (2, "")
    assert "give --request or --kind, not both" in both.err


def test_mistakes_of_the_caller(tls: TlsFiles, tmp_path: pathlib.Path, keymoot: Callable[..., CommandOutcome]) -> None:
    good, ca = "https://localhost:1/", ("--ca", str(tls.ca))
    open_secrets = tmp_path / "open.json"
    open_secrets.write_text(json.dumps(SECRETS))
    for words, told in (
        ((good, *ca), "give the gate's secrets with --secrets FILE"),
        (("http://localhost:1/", *ca, "--secrets", "-"), "must be https://"),
        ((good, *ca, "--secrets", str(open_secrets)), "run chmod 600"),
        ((good, *ca, "--secrets", "-", "--mode", "status"), "mode status has no secrets"),
        ((good, *ca, "--secrets", "-", "--key", "k"), "give both --certificate and --key"),
        ((good, *ca, "--secrets", "-", "--refused", "away.json"), "cannot read away.json"),
    ):
        done = keymoot("check", *words)
        assert (done.code, done.out) == (2, "")
        assert told in done.err

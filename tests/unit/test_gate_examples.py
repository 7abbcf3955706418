"""The worked handlers of `examples/`, as processes, each checked as an operator would check his."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from appliance.gate.check.findings import Finding, Outcome
from appliance.gate.check.judge import Decision, judge
from appliance.gate.check.keys import parse_keys
from appliance.gate.check.player import Settings
from appliance.gate.check.questions import Parts, Question, question
from appliance.gate.check.run import check_handler
from appliance.gate.check.samples import REQUEST_INFO, SAMPLES
from appliance.localnet.files import free_ports
from appliance.signer.config import GateSettings
from enclave.wire import GateReply
from tests.fakes.tls import TlsFiles

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
SECRETS = {
    "request_hmac": "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=",
    "answer_hmac": "whsec_" + "ZWRjYmFaWVhXVlVUU1JRUE9OTUxLSklIR0ZFRENCQWE=",
}
KEYS = parse_keys(json.dumps(SECRETS).encode())
TOO_MUCH = Parts(requestInfo={"decoded": {**(REQUEST_INFO.decoded or {}), "value": str(10**18 + 1)}})
OTHER_SIGNER = Parts(signerInfo={"signer_id": "another"})
needs_node = pytest.mark.skipif(
    not (shutil.which("node") and (EXAMPLES / "gate-node" / "node_modules").is_dir()),
    reason="no node, or no modules: npm install --no-package-lock in examples/gate-node",
)
needs_curl = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "curl", "openssl", "od"))), reason="no bash, curl, openssl or od"
)
HANDLERS = [
    pytest.param([sys.executable, EXAMPLES / "gate-python" / "gate.py"], id="python"),
    pytest.param(["node", EXAMPLES / "gate-node" / "gate.js"], id="node", marks=needs_node),
]


@pytest.fixture
def tls(tmp_path: pathlib.Path) -> TlsFiles:
    return TlsFiles.make(tmp_path)


def write_secrets(directory: pathlib.Path) -> pathlib.Path:
    path = directory / "gate-secrets.json"
    path.touch(0o600)
    path.write_text(json.dumps(SECRETS))
    return path


@asynccontextmanager
async def running(command: list[Any], tls: TlsFiles, **environment: str) -> AsyncIterator[int]:
    (port,) = free_ports(1)
    files = {
        "SECRETS": write_secrets(tls.directory), "CERTIFICATE": tls.server_certificate, "KEY": tls.server_key,
        "CLIENT_CA": tls.ca, "PORT": port,
    }  # fmt: skip
    env = os.environ | {name: str(value) for name, value in files.items()} | environment
    process = await asyncio.create_subprocess_exec(*map(str, command), env=env)
    try:
        async with asyncio.timeout(30):
            await _listening(port, process)
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    while True:
        assert process.returncode is None, "it ended"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


def gate_at(port: int, tls: TlsFiles) -> GateSettings:
    return GateSettings(f"https://127.0.0.1:{port}/validate", tls.ca, tls.client_certificate, tls.client_key)


async def findings(settings: Settings) -> list[Finding]:
    return [finding async for finding in check_handler(settings, time.time, os.urandom)]


@pytest.mark.parametrize("command", HANDLERS)
async def test_a_worked_handler_passes_every_check(command: list[Any], tls: TlsFiles) -> None:
    async with running(command, tls) as port:
        found = await findings(Settings(gate_at(port, tls), KEYS, 10.0, refused=TOO_MUCH, real=True))
    assert [finding for finding in found if finding.outcome is not Outcome.PASSED] == []
    said = {finding.check: finding.what for finding in found}
    assert said["refuses"] == f"it said a no (not a transaction of at most {10**18} wei)"
    assert said["kind-Signing"] == "a signature got a yes"
    for kind in SAMPLES.keys() - {"Signing"}:
        assert said[f"kind-{kind}"].endswith(f" got a no (this gate does not know {kind})")


async def test_the_handler_of_mode_status_passes(tls: TlsFiles) -> None:
    command = [sys.executable, EXAMPLES / "gate-status" / "gate.py"]
    async with running(command, tls, SIGNERS="gate-check") as port:
        found = await findings(Settings(gate_at(port, tls), None, 10.0, refused=OTHER_SIGNER))
    outcomes = {finding.check: finding.outcome for finding in found}
    assert Outcome.FAILED not in outcomes.values()
    assert outcomes["allows"] is outcomes["refuses"] is outcomes["slow-clients"] is Outcome.PASSED


# --- curl and openssl ---


def by_hand(*words: object, status: int = 0) -> str:
    command = ["bash", str(EXAMPLES / "gate-curl" / "gate.sh"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def write_question(directory: pathlib.Path) -> tuple[pathlib.Path, Question]:
    command = [sys.executable, "-m", "appliance.cli", "gate", "question"]
    body = subprocess.run(command, capture_output=True, check=True).stdout
    path = directory / "question.json"
    path.write_bytes(body)
    message = json.loads(body)
    return path, Question(message["uid"], body, message)


@needs_curl
def test_a_recorded_question_is_verified_by_hand(tmp_path: pathlib.Path) -> None:
    secrets, (path, asked), headers = write_secrets(tmp_path), write_question(tmp_path), tmp_path / "headers"
    for late_s, told in ((0, "the signature fits"), (301, "it is 30[0-9] s old: more than 300 are refused")):
        call = asked.call(KEYS.asks, int(time.time()) - late_s, 1.0, signature=None)
        signature = f"v1a,AAAA v1,AAAA {call.webhook_signature}"
        lines = (f"Webhook-Id: {asked.uid}", f"Webhook-Timestamp: {call.webhook_timestamp}")
        headers.write_text("\r\n".join((*lines, f"Webhook-Signature: {signature}", "")))
        assert re.search(told, by_hand("verify", secrets, "request", path, headers, status=int(late_s > 300)))
    assert "no signature fits" in by_hand("verify", secrets, "answer", path, headers, status=1)
    path.write_bytes(asked.body.replace(b"gate-check", b"gate-Check", 1))
    assert "no signature fits" in by_hand("verify", secrets, "request", path, headers, status=1)


@needs_curl
@pytest.mark.parametrize("kind", SAMPLES)
def test_an_answer_made_by_hand_is_one(tmp_path: pathlib.Path, kind: str) -> None:
    secrets, path = write_secrets(tmp_path), tmp_path / "question.json"
    asked = question("ab" * 16, int(time.time()) + 60, dry_run=True, kind=kind)
    path.write_bytes(asked.body)
    for say, decision in (("yes", Decision.YES), ("no", Decision.NO)):
        head, _, body = by_hand("answer", secrets, path, say, "as you like").partition("\n\n")
        headers = dict(line.split(": ") for line in head.splitlines())
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        reply = GateReply(asked.uid, 200, *(headers[name] for name in names), 0, body.encode())
        judged = judge(reply, asked, KEYS, int(time.time()))
        assert (judged.decision, judged.said) == (decision, "as you like")
    assert "without quotes" in by_hand("answer", secrets, path, "no", 'a "reason"', status=1)


@needs_curl
async def test_a_handler_is_asked_by_hand(tls: TlsFiles) -> None:
    path, _ = write_question(tls.directory)
    command = [sys.executable, EXAMPLES / "gate-python" / "gate.py"]
    async with running(command, tls) as port:
        shown = ("--cert", tls.client_certificate, "--key", tls.client_key)
        words = ("ask", write_secrets(tls.directory), path, f"https://127.0.0.1:{port}/validate", tls.ca, *shown)
        answered = await asyncio.to_thread(by_hand, *words)
    assert '"allowed": true' in answered
    assert "the signature fits" in answered


@needs_curl
def test_a_secret_that_is_none_is_never_shown(tmp_path: pathlib.Path) -> None:
    secrets, (path, _) = write_secrets(tmp_path), write_question(tmp_path)
    for bad, told in (("whsec_QUJDRA==", "4 bytes, not 24 to 64"), ("QUJDREVGR0hJ", "has no request_hmac")):
        secrets.write_text(json.dumps(SECRETS | {"request_hmac": bad}))
        said = by_hand("sign", secrets, "request", path, status=1)
        assert told in said
        assert "QUJD" not in said

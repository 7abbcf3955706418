"""`keymoot gate check` against the reference handler, and against handlers with exactly one fault each."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook

from appliance.gate.check.findings import Finding, Outcome
from appliance.gate.check.keys import parse_keys
from appliance.gate.check.player import Settings
from appliance.gate.check.questions import Parts
from appliance.gate.check.run import check_handler
from appliance.gate.config import GateConfig, GateRules
from appliance.gate.handler import make_app
from appliance.signer.config import GateSettings
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
    "answer-dry-run", "answer-expiry", "tls", "client-certificate", "allows", "refuses", "batch", "real",
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
        try:
            seen.append(json.loads(await request.text())["dryRun"])
        except (ValueError, web.HTTPException):
            pass
        return await handler(request)

    for real in (False, True):
        seen.clear()
        app = reference(tls)
        app.middlewares.append(look)
        await check(app, tls, real=real)
        assert seen.count(False) == real
        assert seen.count(True) > 50

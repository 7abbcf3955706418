"""Whether a signer's gate does what an enclave relies on: `keymoot gate check`, as one check of the doctor."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path

from appliance.checkup.checks import Looked
from appliance.checkup.findings import problem, warning
from appliance.gate.check.findings import Finding, Outcome
from appliance.gate.check.keys import parse_keys
from appliance.gate.check.player import Settings
from appliance.gate.check.run import check_handler
from appliance.gate.config import read_secrets
from appliance.signer.config import GateSettings

EXCHANGE_TIMEOUT_S = 5.0


def check_gate(name: str, gate: GateSettings, secrets: Path) -> Looked:
    """Questions that are dry runs, good and bad ones. `secrets`: the handler's copy; the enclave gives out none.

    Raises `CallerError` for unusable secrets and TLS files.
    """
    settings = Settings(gate, parse_keys(read_secrets(secrets)), EXCHANGE_TIMEOUT_S)
    told = asyncio.run(_collect(settings))
    made = {Outcome.FAILED: problem, Outcome.WARNING: warning}
    found = [
        made[one.outcome](name, f"the gate at {gate.url}: {one.check}: {one.what}", one.remedy or one.means)
        for one in told
        if one.outcome in made
    ]
    passed = Counter(one.outcome for one in told)[Outcome.PASSED]
    return Looked(f"{gate.url} does what an enclave relies on ({passed} checks)", found)


async def _collect(settings: Settings) -> list[Finding]:
    return [finding async for finding in check_handler(settings, time.time, os.urandom)]

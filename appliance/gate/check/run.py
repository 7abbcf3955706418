"""All checks of a handler, in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from appliance.gate.check.answers import check_answer, check_decisions, check_pending, check_real
from appliance.gate.check.findings import Finding, Outcome, failed, skipped
from appliance.gate.check.kinds import check_kinds
from appliance.gate.check.manners import (
    check_huge,
    check_largest,
    check_load,
    check_reuse,
    check_slow_clients,
    check_tls,
)
from appliance.gate.check.player import Player, Settings
from appliance.gate.check.refusals import check_bad_signatures, check_not_for_it, check_repeats, check_tolerance
from appliance.http_failures import describe
from appliance.signer.gate_caller import GateCaller

Check = Callable[[Player], AsyncIterator[Finding]]
CHECKS: tuple[Check, ...] = (
    check_tls,
    check_bad_signatures,
    check_not_for_it,
    check_huge,
    check_slow_clients,
    check_load,
    check_reuse,
)
# Those that mean nothing before a good question gets a good answer.
WITH_ANSWERS: tuple[Check, ...] = (
    check_decisions,
    check_pending,
    check_kinds,
    check_real,
    check_tolerance,
    check_repeats,
    check_largest,
)


async def check_handler(
    settings: Settings, clock: Callable[[], float], random: Callable[[int], bytes]
) -> AsyncIterator[Finding]:
    """What each check found. Where nobody answers the first question, nothing else is checked.

    Raises `CallerError` for unusable TLS files.
    """
    player = Player(settings, GateCaller.open(settings.gate), clock, random)
    try:
        wrong = False
        async for finding in check_answer(player):
            wrong |= finding.outcome is Outcome.FAILED
            yield finding
        if wrong:
            yield skipped("everything else", "what needs a good answer is tried once there is one")
        if not player.answered:
            return
        for check in CHECKS if wrong else (*WITH_ANSWERS, *CHECKS):
            try:
                async for finding in check(player):
                    yield finding
            except (OSError, TimeoutError) as error:
                yield _lost(describe(error))
    finally:
        await player.caller.close()


def _lost(why: str) -> Finding:
    means = "What was to be checked then could not be."
    return failed("connection", f"it answered before, and then a connection failed: {why}", means, "See its log.")

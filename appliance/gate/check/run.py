"""All checks of a handler, in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from appliance.gate.check.answers import check_answer, check_batch, check_decisions, check_real
from appliance.gate.check.findings import Finding, Outcome, failed, skipped
from appliance.gate.check.judge import Part
from appliance.gate.check.manners import check_load, check_reuse, check_sizes, check_slow_clients, check_tls
from appliance.gate.check.player import Player, Settings
from appliance.gate.check.refusals import check_bad_signatures, check_not_for_it, check_repeats, check_tolerance
from appliance.http_failures import describe
from appliance.signer.gate_caller import GateCaller

Check = Callable[[Player], AsyncIterator[Finding]]
CHECKS: tuple[Check, ...] = (
    check_tls,
    check_decisions,
    check_batch,
    check_real,
    check_bad_signatures,
    check_not_for_it,
    check_tolerance,
    check_repeats,
    check_sizes,
    check_slow_clients,
    check_load,
    check_reuse,
)


async def check_handler(
    settings: Settings, clock: Callable[[], float], random: Callable[[int], bytes]
) -> AsyncIterator[Finding]:
    """What each check found. Where nobody answers the first question, there is nothing else to check.

    Raises `CallerError` for unusable TLS files.
    """
    player = Player(settings, GateCaller.open(settings.gate), clock, random)
    try:
        async for finding in check_answer(player):
            yield finding
            nobody = finding.check == Part.STATUS.value and finding.outcome is Outcome.FAILED and not player.answered
            if nobody:
                yield skipped("everything else", "it gave no answer at all")
                return
        for check in CHECKS:
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

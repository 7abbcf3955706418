"""How the handler answers good questions: each part of its answer, and whether yes and no can be had."""

from __future__ import annotations

from collections.abc import AsyncIterator

from appliance.gate.check.findings import Finding, failed, passed, skipped, warning
from appliance.gate.check.judge import Decision, Judged, Part
from appliance.gate.check.player import Player
from policies.gate_messages import LONGEST_YES_S

SHORTEST_YES_S = 10
NO_ANSWER = "Whatever your handler decides, the enclave counts it as a refusal."
IN_MODE_STATUS = "Answer 200 to a yes and to nothing else, 403 to a no. Nobody waits for a person: 202 is a refusal."

# By part: what is well, what else it means, what to do.
PARTS: dict[Part, tuple[str, str, str]] = {
    Part.STATUS: (
        "it answers a good question",
        NO_ANSWER,
        "Answer 200 to yes and to no, 202 while a person decides. After 401, compare the secrets of both sides.",
    ),
    Part.SIGNATURE: (
        "its answer is signed",
        NO_ANSWER,
        "Sign the very bytes of the body you send with answer_hmac: webhook-id, webhook-timestamp and "
        "webhook-signature are headers of the answer, too.",
    ),
    Part.REFLECTED: (
        "its answer is its own, signed with its own secret",
        f"{NO_ANSWER} If it counted, whoever sees a question could answer it.",
        "Sign answers with answer_hmac; request_hmac is for verifying questions alone.",
    ),
    Part.TIMESTAMP: (
        "its answer is fresh",
        NO_ANSWER,
        "Sign with the time of the answer, in Unix seconds, and have both clocks set by NTP.",
    ),
    Part.FORM: (
        "its answer has the right form",
        NO_ANSWER,
        "Send one JSON object with the fields of `keymoot gate openapi`, no others, none twice.",
    ),
    Part.ECHO: (
        "its answer says what it answers",
        f"{NO_ANSWER} Without the echo, one yes could serve for another request.",
        "Copy uid from the question, and request_digest, signer_id and kind from its signerInfo; "
        "type is validation.answer.",
    ),
    Part.DRY_RUN: (
        "it says whether it was a dry run",
        f"{NO_ANSWER} Without it, the yes to a check could serve for a signature.",
        "Copy dryRun from the question.",
    ),
    Part.EXPIRY: (
        "its yes has an end",
        NO_ANSWER,
        "Set expiresAt to a UTC time such as 2026-01-01T00:00:00Z, a minute ahead.",
    ),
}
ANY_BODY = (Part.SIGNATURE, Part.REFLECTED, Part.TIMESTAMP, Part.FORM)  # the others need a body that was understood


async def check_answer(player: Player) -> AsyncIterator[Finding]:
    """One good question, and what is wrong with its answer, part by part."""
    judged = await player.ask()
    for part in PARTS if player.signed else (Part.STATUS,):
        well, means, remedy = PARTS[part]
        if part in judged.faults:
            remedy = remedy if player.signed else IN_MODE_STATUS
            yield failed(part.value, judged.faults[part], means, remedy)
        elif part is Part.STATUS:
            yield passed(part.value, f"{well}: {judged.told}" if judged.decision is not Decision.NOTHING else well)
        elif judged.status != 200 or (judged.answer is None and part not in ANY_BODY):
            yield skipped(part.value, f"there is no answer to look at: {judged.told}")
        elif part is Part.EXPIRY:
            yield _expiry(judged)
        else:
            yield passed(part.value, well)


async def check_decisions(player: Player) -> AsyncIterator[Finding]:
    """A yes, and a no where one can be had."""
    settings = player.settings
    allowed = await player.ask()
    more = "the body of a signing request, a question that your handler logged, or what differs from the sample"
    if allowed.decision is Decision.YES:
        yield passed("allows", "it said yes to " + ("the sample" if settings.allowed is None else "--allowed"))
    else:
        yield warning(
            "allows",
            f"no yes was seen: {allowed.told}",
            "Whether it can say yes is not known.",
            f"Give a request that it allows with --allowed FILE: {more}.",
        )
    refused = allowed if settings.refused is None else await player.ask(player.question(parts=settings.refused))
    if refused.decision is Decision.NO:
        yield passed("refuses", f"it said {refused.told}")
    elif settings.refused is None:
        yield skipped(
            "refuses", "no refusal was asked for", f"Give a request that it refuses with --refused FILE: {more}."
        )
    elif refused.decision is Decision.YES:
        yield failed(
            "refuses",
            "it said yes to the request of --refused",
            "It does not refuse what you expect it to refuse.",
            "Look at its rules, and at whether it reads signerInfo and requestInfo.decoded.",
        )
    else:
        yield warning(
            "refuses",
            f"it refused with {refused.told}",
            "That is a refusal, but nobody is told why, and after 429, 502, 503 or 504 the signer asks again.",
            "Answer 200 with allowed: false and the reason in status.reason, signed."
            if player.signed
            else "Answer 403.",
        )


async def check_pending(player: Player) -> AsyncIterator[Finding]:
    """Where a person decides: when the question is to come again, and that it may."""
    asked = player.question()
    first = await player.ask(asked)
    if first.decision is not Decision.PENDING:
        return
    again = await player.ask(player.question(uid=asked.uid, attempt=2))
    if again.decision is Decision.NOTHING:
        yield failed(
            "pending",
            f"it answered 202, and to the same question again: {again.told}",
            "No decision of a person ever arrives.",
            "Answer each attempt: 202 until the person has decided, then 200 with the answer.",
        )
    elif first.retry_after_s == 0:
        means = "Signers ask again every second, until the deadline."
        yield warning("pending", "its 202 has no Retry-After in seconds", means, "Add Retry-After, such as 30.")
    else:
        yield passed("pending", f"it answers 202 and wants to be asked again in {first.retry_after_s} s")


async def check_real(player: Player) -> AsyncIterator[Finding]:
    """A question that is no dry run, where the operator has allowed one."""
    if not player.settings.real:
        return
    judged = await player.ask(player.question(dry_run=False))
    if judged.faults:
        means = "Dry runs pass, and yet no signature will come of it."
        yield failed(
            "real", f"a real question: {judged.told}", means, "Copy dryRun from the question; look at its log."
        )
    else:
        yield passed("real", f"a real question got {judged.told}")


def _expiry(judged: Judged) -> Finding:
    well, means, remedy = PARTS[Part.EXPIRY]
    name = Part.EXPIRY.value
    assert judged.answer is not None
    if not judged.answer.allowed:
        return skipped(name, "it said no, which needs no end", "Give a request that it allows with --allowed FILE.")
    if judged.lives_s < SHORTEST_YES_S:
        means = "A signature that takes longer than this fails, and is asked for again."
        return warning(name, f"its yes ends {judged.lives_s} s after the question", means, remedy)
    if judged.lives_s > LONGEST_YES_S:
        means = "The enclave counts it for a day at most."
        return warning(name, f"its yes lives for {judged.lives_s} s", means, remedy)
    return passed(name, f"{well}, {judged.lives_s} s ahead")

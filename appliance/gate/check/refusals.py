"""What a handler must not say yes to, and what must not stop it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from appliance.gate.check.findings import Finding, failed, passed, warning
from appliance.gate.check.judge import Decision, Judged, looks_like
from appliance.gate.check.keys import HMAC, Key, header_of
from appliance.gate.check.player import Player
from appliance.gate.check.questions import Question
from policies.gate_messages import ANSWER_TYPE

HOUR_S = 3600
STRANGER = "Whoever reaches your handler is answered, and whatever it does on a yes, it does for them."
VERIFY = "Verify the signature over the raw bytes of the body, before you parse them."


@dataclass(frozen=True)
class Bad:
    """A question that must get no yes. `what` it is; `means`, `remedy` where it got one. `genuine`: it is signed as it
    should be, so that a signed no is as good as an HTTP error. `newer`: than handlers of mode `status`, which cannot be
    blamed for it."""

    name: str
    what: str
    send: Callable[[Player], Awaitable[Judged]]
    means: str
    remedy: str
    genuine: bool = False
    newer: bool = False


async def _forged(player: Player) -> Judged:
    return await player.ask(keys=tuple(Key(key.version, player.random(32)) for key in player.asks))


async def _altered(player: Player) -> Judged:
    first = player.question()
    second = player.question(uid=first.uid, info_changes={"tx_hash": "ee" * 32})
    return await player.ask(second, body=first.body)


async def _wrong_direction(player: Player) -> Judged:
    assert player.settings.keys is not None
    # Who verifies answers with a public key cannot sign with it.
    answers = tuple(key for key in player.settings.keys.answers if key.version == HMAC)
    return await player.ask(keys=answers or (Key(HMAC, player.random(32)),))


async def _unsigned(player: Player) -> Judged:
    return await player.ask(signature="")


async def _not_json(player: Player) -> Judged:
    asked = player.question()
    return await player.ask(Question(asked.uid, b"hello", asked.message))


BAD_SIGNATURES = (
    Bad("forged-signature", "a question signed with a secret that is none", _forged, STRANGER, VERIFY),
    Bad(
        "altered-body",
        "a recorded signature with another body",
        _altered,
        "Whoever has seen one question can change what it asks for.",
        VERIFY,
    ),
    Bad(
        "no-signature",
        "a question without a signature",
        _unsigned,
        STRANGER,
        "Answer 401 where the header webhook-signature is missing or empty.",
    ),
    Bad(
        "wrong-direction",
        "a question signed with the secret of the answers",
        _wrong_direction,
        "An answer of your handler could be sent back to it as a question.",
        "Verify questions with request_hmac alone.",
    ),
    Bad(
        "stale-timestamp",
        "a question signed an hour ago",
        lambda player: player.ask(late_s=HOUR_S),
        "Whoever has recorded a question can send it again, for ever.",
        "Refuse a webhook-timestamp that is more than five minutes off.",
    ),
    Bad(
        "future-timestamp",
        "a question signed an hour ahead",
        lambda player: player.ask(late_s=-HOUR_S),
        "Whoever has recorded a question can send it again, later.",
        "Refuse a webhook-timestamp that is more than five minutes off, in either direction.",
    ),
)
NOT_FOR_IT = (
    Bad(
        "wrong-type",
        "a message of another type than validation.request",
        lambda player: player.ask(player.question(type=ANSWER_TYPE)),
        "Its own answers, or messages yet unknown, pass for questions.",
        "Refuse every type but validation.request.",
        genuine=True,
        newer=True,
    ),
    Bad(
        "unknown-version",
        "a question of version 2",
        lambda player: player.ask(player.question(version="2")),
        "It agrees to what it cannot have understood.",
        'Refuse every version but "1".',
        genuine=True,
        newer=True,
    ),
    Bad(
        "unknown-kind",
        "a question of a kind that does not exist",
        lambda player: player.ask(player.question(info_changes={"kind": "GateCheckUnknown"})),
        "It agrees to whatever later versions ask for, such as other backup keys, without having looked.",
        "Say yes to the values of signerInfo.kind that you know, and refuse the others.",
        genuine=True,
        newer=True,
    ),
    Bad(
        "not-json",
        "a signed body that is not JSON",
        _not_json,
        "It agrees to what it cannot have understood.",
        "Answer 400.",
        genuine=True,
    ),
)


async def check_bad_signatures(player: Player) -> AsyncIterator[Finding]:
    """Questions that no enclave has signed, or not now."""
    if player.signed:
        for bad in BAD_SIGNATURES:
            yield await _refused(player, bad)


async def check_not_for_it(player: Player) -> AsyncIterator[Finding]:
    """Questions that are signed, and not for it."""
    for bad in NOT_FOR_IT:
        yield await _refused(player, bad)


async def _refused(player: Player, bad: Bad) -> Finding:
    judged = await bad.send(player)
    told = f"HTTP {judged.status}" if judged.status else judged.told
    if judged.agreed and bad.newer and not player.signed:
        return warning(bad.name, f"{bad.what} got a yes", bad.means, bad.remedy)
    if judged.agreed:
        return failed(bad.name, f"{bad.what} got a yes", bad.means, bad.remedy)
    if judged.decision is Decision.PENDING:
        return failed(bad.name, f"{bad.what} got 202", "People are asked about what nobody wants.", bad.remedy)
    if judged.refused:
        return passed(bad.name, f"{bad.what} got {told}")
    if judged.decision is Decision.NO and (bad.genuine or not player.signed):
        return passed(bad.name, f"{bad.what} got {judged.told}")
    if judged.decision is Decision.NO:
        means = "It puts its signature under words of strangers; no yes, so no harm by itself."
        return warning(bad.name, f"{bad.what} got a signed no", means, f"{bad.remedy} Answer 401.")
    if judged.status == 200:
        means = "No enclave takes it for a yes; but what the handler does on a yes, it may have done."
        return warning(bad.name, f"{bad.what} got 200 with {judged.told}", means, f"{bad.remedy} Answer 401.")
    return warning(bad.name, f"{bad.what} got {told}", looks_like(judged), f"{bad.remedy} Answer 400 or 401.")


async def check_tolerance(player: Player) -> AsyncIterator[Finding]:
    """What a good question may look like during a rotation of secrets, or from a later version."""
    if player.signed:
        asked = player.question()
        at_s = player.now_s
        strange = f"v1,{'A' * 43}= v9,AAAA"
        signature = f"{strange} {header_of(player.asks, asked.uid, str(at_s), asked.body)}"
        judged = await player.ask(asked, signature=signature)
        if judged.decision is Decision.NOTHING:
            yield failed(
                "several-signatures",
                f"a question whose good signature is not the first one: {judged.told}",
                "Nothing is signed while you rotate secrets.",
                "webhook-signature holds several signatures, with a space between: accept where one verifies, pass "
                "over versions you do not know.",
            )
        else:
            yield passed("several-signatures", "it looks at each signature of a question")
    new: dict[str, Any] = {"gateCheckUnknown": 1}
    asked = player.question()
    judged = await player.ask(
        player.question(requestInfo={**asked.message["requestInfo"], **new}, info_changes=new, **new)
    )
    if judged.decision is Decision.NOTHING:
        yield warning(
            "unknown-fields",
            f"a question with fields that are new: {judged.told}",
            "A later Keymoot may say more than this one: all would be refused after its upgrade.",
            "Pass over fields you do not know, if your rules can do without them.",
        )
    else:
        yield passed("unknown-fields", "it passes over fields that it does not know")


async def check_repeats(player: Player) -> AsyncIterator[Finding]:
    """One question twice, as after an answer that was lost; and another question in its name."""
    first = player.question()
    before = await player.ask(first)
    again = player.question(uid=first.uid, attempt=2)
    after = await player.ask(again)
    if before.decision is after.decision:
        yield passed("retry", f"a second attempt at the same question got the same: {after.told}")
    else:
        yield failed(
            "retry",
            f"a second attempt at the same question got {after.told}, after {before.told}",
            "An answer that is lost on the way loses the request: signers ask again under the same uid.",
            "Give the answer of the first attempt again, with a fresh signature; uid is the same, attempt grows.",
        )
    other = player.question(uid=first.uid, attempt=3, info_changes={"tx_hash": "ee" * 32})
    judged = await player.ask(other)
    if judged.decision is Decision.YES:
        yield warning(
            "reused-uid",
            "another question under the uid of one that was answered got a yes",
            "No enclave asks so. Where a person's yes is kept by uid, it would count for what nobody has seen.",
            "Keep uid and request_digest of what you answered for some minutes; refuse a uid with another digest.",
        )
    else:
        yield passed("reused-uid", f"another question under the uid of one that was answered got {judged.told}")

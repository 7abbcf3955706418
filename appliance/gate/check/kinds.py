"""What the handler makes of each kind of question, of those too that no enclave asks yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from appliance.gate.check.findings import Finding, failed, passed, warning
from appliance.gate.check.judge import Decision, Judged, looks_like
from appliance.gate.check.player import Player
from appliance.signer.gate_caller import MAX_CONNECTIONS

NOT_YET = "No enclave asks it yet, but one of a later version may."


class Asked(NamedTuple):
    """A kind that enclaves ask. `lost` comes of it where no decision does; `remedy`: what to decide on. `always`: not
    only where the configuration says so."""

    what: str
    lost: str
    remedy: str
    always: bool = True


class Reserved(NamedTuple):
    """A kind that is described only. `means`, `remedy`: where the sample, which is about strangers, gets a yes;
    `given_away`: whether such a yes alone would give shares away."""

    what: str
    means: str
    remedy: str
    given_away: bool


ASKED = {
    "Signing": Asked(
        "a signature", "Every signature will be refused.", "Decide on signerInfo and requestInfo.decoded."
    ),
    "SigningBatch": Asked(
        "a batch of hashes",
        "Every batch will be refused.",
        "Fine where you sign none. Else decide on signerInfo.items, each with tx_hash and derivation_path.",
    ),
    "KeyCreation": Asked(
        "a new key",
        "Every new key will be refused, where enclave.yaml says key_creation: true.",
        "Fine where it does not. Else decide on signerInfo.label and participants.",
        always=False,
    ),
}
RESERVED = {
    "Refresh": Reserved(
        "new shares for the same signers",
        f"{NOT_YET} It agrees to new shares of every key, whenever anybody asks.",
        "Refuse it until you know when you want one.",
        given_away=False,
    ),
    "Reshare": Reserved(
        "new shares for signers that nobody knows",
        f"{NOT_YET} Whoever asks then gets every key for signers of his own.",
        "Refuse it, or compare signerInfo.fingerprints with those that their operators told you.",
        given_away=True,
    ),
    "BackupKeyChange": Reserved(
        "backups for a recipient that nobody knows",
        f"{NOT_YET} Whoever asks then can read this signer's backups.",
        "Refuse it, or compare signerInfo.recipients with the keys that you made.",
        given_away=True,
    ),
}


async def check_kinds(player: Player) -> AsyncIterator[Finding]:
    """One question of each kind: any decision will do for those that are asked today, and no yes for the others."""
    for kind in (*ASKED, *RESERVED):
        judged = await player.ask(player.question(kind=kind))
        # In mode status 200 is a yes, whatever comes with it.
        no = "200 with allowed: false, or 400" if player.signed else "403"
        if judged.hung:
            yield _hung(kind, judged, no)
        else:
            yield _asked(kind, judged) if kind in ASKED else _reserved(kind, judged, no)


def _hung(kind: str, judged: Judged, no: str) -> Finding:
    what = (ASKED.get(kind) or RESERVED[kind]).what
    return failed(
        f"kind-{kind}",
        f"{what}: {judged.told}",
        f"Each such question holds one of its signer's {MAX_CONNECTIONS} connections until time is up: a few hold up "
        "every signature.",
        f"Answer at once: {no}.",
    )


def _asked(kind: str, judged: Judged) -> Finding:
    what, lost, remedy, always = ASKED[kind]
    if judged.decision is not Decision.NOTHING:
        return passed(f"kind-{kind}", f"{what} got {judged.told}")
    if judged.refused and not always:
        return passed(f"kind-{kind}", f"{what} got {judged.told}, a refusal. {lost}")
    if not judged.refused and judged.status != 200:
        lost = f"{looks_like(judged)} {lost}"
    return warning(f"kind-{kind}", f"{what} got no decision: {judged.told}", lost, remedy)


def _reserved(kind: str, judged: Judged, no: str) -> Finding:
    what, means, remedy, given_away = RESERVED[kind]
    if judged.agreed:
        # Handlers of mode `status` were there before these messages.
        report = failed if given_away and judged.answer is not None else warning
        return report(f"kind-{kind}", f"{what} got a yes", means, remedy)
    if judged.refused or judged.decision is not Decision.NOTHING:
        return passed(f"kind-{kind}", f"{what} got {judged.told}")
    if judged.status == 200:
        means = "A refusal, as no enclave takes this answer; and it says nothing of why."
        return warning(f"kind-{kind}", f"{what}: {judged.told}", means, "Answer as to every other question, or 400.")
    means = f"{NOT_YET} {looks_like(judged)}"
    return warning(f"kind-{kind}", f"{what} got no decision: {judged.told}", means, f"Answer {no}.")

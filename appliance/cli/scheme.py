"""`keymoot scheme`: what a scheme means, said before anybody relies on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from appliance.cli.output import Json, show_json
from policies.errors import CallerError
from policies.roster import describe_scheme
from policies.scheme import Power, Scheme, analyse

MAX_COALITIONS_SHOWN = 24


def show(
    signers: Annotated[int, typer.Option(help="Signers in the network (n).")],
    tolerate: Annotated[int, typer.Option(help="How many may be corrupted (t).")],
    operators: Annotated[str, typer.Option(help="Who runs how many signers: A=2,B=3.")] = "",
    as_json: Json = False,
) -> None:
    """Say who can sign alone, reconstruct the key alone, or veto, and how many signers may be away."""
    scheme = analyse(signers, tolerate, parse_operators(operators))
    if as_json:
        show_json(scheme)
        return
    for line in sentences(scheme):
        typer.echo(line)


def parse_operators(text: str) -> dict[str, int]:
    """`A=2,B=3` as a mapping, in that order. Raises `CallerError`."""
    counts: dict[str, int] = {}
    for part in text.split(",") if text.strip() else ():
        name, equals, count = (piece.strip() for piece in part.rpartition("="))
        if not (equals and name and count.isascii() and count.isdigit() and len(count) <= 3):
            raise CallerError(f"--operators {text}: write it as NAME=SIGNERS,NAME=SIGNERS, such as A=2,B=3")
        if name in counts:
            raise CallerError(f"--operators names {name} twice")
        counts[name] = int(count)
    return counts


def sentences(scheme: Scheme) -> Iterator[str]:
    """The scheme in plain sentences, a line each."""
    yield describe_scheme(scheme.signers, scheme.tolerate) + "."
    yield _away(scheme)
    yield f"Making a key needs all {scheme.signers} signers online."
    yield (
        f"Any {scheme.shares_that_reconstruct} shares are the key: whoever takes them out of that many signers passes "
        "every policy, every gate and every audit, unseen."
    )
    if not scheme.operators:
        return
    yield ""
    for power in scheme.operators:
        yield from _power(scheme, power)
    yield from _coalitions(scheme)
    yield from _vetoes(scheme)


def _away(scheme: Scheme) -> str:
    if scheme.may_be_away == 0:
        return "No signer may be away: with one away nothing is signed until it is back."
    return f"Up to {_signers(scheme.may_be_away)} may be away, and the others still sign."


def _power(scheme: Scheme, power: Power) -> Iterator[str]:
    who = _names(power.operators)
    yield f"{who} ({_signers(power.signers)}):"
    if power.signs_alone:
        yield "  can sign alone: only its own policies and gates are asked."
    else:
        yield f"  cannot sign alone: {scheme.online_to_sign} signers must be online, and it has {power.signers}."
    if power.reconstructs_alone:
        yield "  can reconstruct the key alone, and so sign past every policy and gate, its own and the others'."
    else:
        yield f"  cannot reconstruct the key alone: that takes {scheme.shares_that_reconstruct} shares."
    others = scheme.signers - power.signers
    if others == 0:
        yield "  has no one beside it: every power is its own."
    elif power.has_veto:
        yield f"  has a veto: the others ({_signers(others)}) can neither sign nor reconstruct without it."
    elif power.stops_signing:
        yield (
            f"  has NO veto: without it the others ({_signers(others)}) cannot sign by the protocol, "
            "but together they hold shares that reconstruct the key."
        )
    else:
        yield f"  has no veto: the others ({_signers(others)}) can sign without it."


def _coalitions(scheme: Scheme) -> Iterator[str]:
    if not scheme.coalitions:
        return
    yield ""
    yield "Together:"
    for power in scheme.coalitions[:MAX_COALITIONS_SHOWN]:
        yield f"  {_names(power.operators)} ({_signers(power.signers)}): {_in_short(power)}."
    if (more := len(scheme.coalitions) - MAX_COALITIONS_SHOWN) > 0:
        yield f"  and {more} more; --json lists all."


def _in_short(power: Power) -> str:
    veto = "have no veto against the rest"
    if power.has_veto:
        veto = "have a veto"
    elif power.veto_is_empty:
        veto = "can stop the others' signing, but have NO veto, since the others can reconstruct"
    return ", ".join(
        (
            "sign alone" if power.signs_alone else "cannot sign alone",
            "reconstruct alone past every policy and gate" if power.reconstructs_alone else "cannot reconstruct",
            veto,
        )
    )


def _vetoes(scheme: Scheme) -> Iterator[str]:
    """Where a veto is promised that does not exist, and why there never are two."""
    if len(scheme.operators) < 2:
        return
    yield ""
    empty = tuple(power.operators[0] for power in scheme.operators if power.veto_is_empty)
    if empty:
        yield (
            f"Do not promise {_names(empty)} a veto: staying away stops honest signers alone, not those who put "
            f"{scheme.shares_that_reconstruct} shares together."
        )
    yield (
        "Two organisations cannot each have a veto here. Each would have to leave the others at most t shares, which "
        "takes n ≤ 2t signers; no honest-majority protocol covers that, and so Keymoot does not."
    )


def _signers(count: int) -> str:
    return "1 signer" if count == 1 else f"{count} signers"


def _names(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

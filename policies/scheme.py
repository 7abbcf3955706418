"""What a scheme means for the organisations that share a network: who can sign, reconstruct, or stop the others.

`n` signers tolerate `t` corrupted ones: `2t + 1` must be online to sign, and any `t + 1` shares are the key.
Only the number of signers in one hand counts. A set of signers stops the others where these are fewer than
`2t + 1`; that is a veto only where they are also fewer than `t + 1`, since otherwise they hold the key itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from math import comb

import msgspec

from policies.errors import CallerError
from policies.roster import MAX_SEEDS, MAX_SIGNERS

MAX_OPERATOR_NAME = 128


class Power(msgspec.Struct, frozen=True):
    """What one operator, or several together, can do without the others and against them.

    `stops_signing`: the others cannot sign without it, as long as they follow the protocol.
    `has_veto`: the others can neither sign nor reconstruct, so that they cannot do without it at all.
    """

    operators: tuple[str, ...]
    signers: int
    signs_alone: bool
    reconstructs_alone: bool
    stops_signing: bool
    has_veto: bool

    @property
    def veto_is_empty(self) -> bool:
        """Whether it looks as if there were a veto, and there is none: the others hold the key's shares."""
        return self.stops_signing and not self.has_veto


class Scheme(msgspec.Struct, frozen=True):
    """A scheme in numbers, and the powers of every operator and of every proper coalition (two or more, not all)."""

    signers: int
    tolerate: int
    online_to_sign: int
    shares_that_reconstruct: int
    may_be_away: int
    operators: tuple[Power, ...]
    coalitions: tuple[Power, ...]


def analyse(signers: int, tolerate: int, operators: Mapping[str, int] | None = None) -> Scheme:
    """What `signers` that tolerate `tolerate` mean, where `operators` says how many signers each one runs.

    Raises `CallerError` for a scheme that cannot be, and for operators that do not run exactly these signers.
    """
    check_scheme(signers, tolerate)
    counts = dict(operators or {})
    if counts:
        _check_operators(signers, counts)
    return Scheme(
        signers=signers,
        tolerate=tolerate,
        online_to_sign=2 * tolerate + 1,
        shares_that_reconstruct=tolerate + 1,
        may_be_away=signers - (2 * tolerate + 1),
        operators=tuple(_power(signers, tolerate, counts, (name,)) for name in counts),
        coalitions=tuple(_power(signers, tolerate, counts, names) for names in _proper_coalitions(tuple(counts))),
    )


def check_scheme(signers: int, tolerate: int) -> None:
    """Raises `CallerError` for a scheme that no roster can have; the message names the nearest possible one."""
    if tolerate < 1:
        raise CallerError(f"a scheme tolerates at least 1 corrupted signer, not {tolerate}")
    if signers > MAX_SIGNERS:
        raise CallerError(f"a network has at most {MAX_SIGNERS} signers, not {signers}")
    if signers < 2 * tolerate + 1:
        possible = (signers - 1) // 2
        remedy = f"; {signers} tolerate at most {possible}" if possible >= 1 else ""
        raise CallerError(
            f"{signers} signers cannot tolerate {tolerate}: an honest majority is needed, which is "
            f"{2 * tolerate + 1} signers or more{remedy}"
        )
    seeds = comb(signers - 1, tolerate) + 2 * (signers - 1)
    if seeds > MAX_SEEDS:
        raise CallerError(
            f"{signers} signers that tolerate {tolerate} need {seeds} seeds each, and {MAX_SEEDS} are possible: "
            "take fewer signers, or tolerate fewer"
        )


def _check_operators(signers: int, counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        if not name.isprintable() or not 1 <= len(name) <= MAX_OPERATOR_NAME:
            raise CallerError(f"an operator's name has 1 to {MAX_OPERATOR_NAME} printable characters")
        if count < 1:
            raise CallerError(f"operator {name} runs {count} signers: leave out who runs none")
    if (total := sum(counts.values())) != signers:
        raise CallerError(f"the operators run {total} signers together, and the scheme has {signers}")


def _proper_coalitions(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Smallest first, in the order of `names`."""
    for size in range(2, len(names)):
        yield from combinations(names, size)


def _power(n: int, t: int, counts: Mapping[str, int], names: tuple[str, ...]) -> Power:
    held = sum(counts[name] for name in names)
    others = n - held
    return Power(
        operators=names,
        signers=held,
        signs_alone=held >= 2 * t + 1,
        reconstructs_alone=held >= t + 1,
        stops_signing=others < 2 * t + 1,
        has_veto=others < t + 1,
    )

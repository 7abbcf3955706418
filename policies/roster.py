"""The roster: which signers form a network, and how many of them may be corrupted. Pinned by every operator.

Its digest is part of every ceremony's context, of every key certificate and of every authorization.
"""

from __future__ import annotations

import base64
from math import comb
from typing import Annotated

import msgspec

from policies.errors import CallerError
from policies.transcript import Tag, digest

MAX_SIGNERS = 16
MAX_SEEDS = 900  # of one signer, which must fit one sealed record
P256_POINT_BYTES = 65

Index = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIGNERS)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)")]


class RosterSigner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signer. `identity_key`: base64 of the 65-byte uncompressed P-256 point of its HSM identity key."""

    index: Index
    name: Name
    operator: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    identity_key: Annotated[str, msgspec.Meta(max_length=128)]

    def __post_init__(self) -> None:
        if len(self.identity_point) != P256_POINT_BYTES or self.identity_point[0] != 4:
            raise ValueError(f"signer {self.name}: identity_key is not a base64 uncompressed P-256 point")

    @property
    def identity_point(self) -> bytes:
        """The 65-byte uncompressed P-256 point."""
        try:
            return base64.b64decode(self.identity_key, validate=True)
        except ValueError as error:
            raise ValueError(f"signer {self.name}: identity_key is not base64") from error

    @property
    def fingerprint(self) -> str:
        """What operators compare out of band, and the signer's name to the others."""
        return identity_fingerprint(self.identity_point)


class Roster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network's signers: indices exactly `1..n`, distinct names and keys; `tolerate` is the paper's t."""

    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    network: Name
    tolerate: Annotated[int, msgspec.Meta(ge=1, le=(MAX_SIGNERS - 1) // 2)]
    signers: Annotated[tuple[RosterSigner, ...], msgspec.Meta(min_length=3, max_length=MAX_SIGNERS)]

    def __post_init__(self) -> None:
        if [signer.index for signer in self.signers] != list(range(1, self.n + 1)):
            raise ValueError("signers must be listed in order of their indices 1..n, without gaps")
        if len({signer.name for signer in self.signers}) != self.n:
            raise ValueError("two signers have the same name")
        if len({signer.identity_point for signer in self.signers}) != self.n:
            raise ValueError("two signers have the same identity key")
        if self.n < self.committee_size:
            raise ValueError(
                f"{self.n} signers cannot tolerate {self.tolerate}: KU25 needs {self.committee_size} online"
            )
        seeds = comb(self.n - 1, self.tolerate) + 2 * (self.n - 1)
        if seeds > MAX_SEEDS:
            raise ValueError(
                f"{self.n} signers that tolerate {self.tolerate} need {seeds} seeds each, at most {MAX_SEEDS}"
            )

    @property
    def n(self) -> int:
        """Number of signers."""
        return len(self.signers)

    @property
    def committee_size(self) -> int:
        """Signers online to sign: `2t + 1`."""
        return 2 * self.tolerate + 1

    @property
    def indices(self) -> tuple[int, ...]:
        """All party indices, `1..n`."""
        return tuple(range(1, self.n + 1))

    def signer(self, index: int) -> RosterSigner:
        """The signer with party index `index`. Raises `CallerError` where there is none."""
        if not 1 <= index <= self.n:
            raise CallerError(f"no signer {index} in the roster of network {self.network}")
        return self.signers[index - 1]

    def is_committee(self, committee: tuple[int, ...]) -> bool:
        """Whether `committee` is exactly `2t + 1` distinct signers of the roster, in ascending order."""
        return (
            len(committee) == self.committee_size
            and committee[0] >= 1
            and committee[-1] <= self.n
            and list(committee) == sorted(set(committee))
        )

    def digest(self) -> bytes:
        """32 bytes that pin every field of the roster."""
        return digest(Tag.ROSTER, msgspec.msgpack.encode(msgspec.to_builtins(self, order="sorted")))


def identity_fingerprint(point: bytes) -> str:
    """Fingerprint of a 65-byte identity point: eight groups of four hex digits (128 bits)."""
    hexed = digest(Tag.FINGERPRINT, point).hex()[:32]
    return ":".join(hexed[start : start + 4] for start in range(0, 32, 4))


def describe_scheme(n: int, t: int) -> str:
    """What a scheme means to a user, in the sentence shown wherever a scheme is shown."""
    online = "all" if n == 2 * t + 1 else "any"
    return f"{n} signers, tolerate {t}: {online} {2 * t + 1} online to sign, {t + 1} shares reconstruct"

"""The PRSS seeds this enclave works with: loaded at attachment, replaced by a setup (SPEC 1.6)."""

from __future__ import annotations

from collections.abc import Mapping

from enclave.crypto.prss import pairs, subsets
from enclave.errors import Unavailable
from enclave.protocol.presign_material import derive_sub_seed
from enclave.protocol.setup import Seeds

# Whose seeds are looked up once: so many are in use at once.
MAX_COMMITTEES = 64


class PrssState:
    """Current seeds, or none before the first setup. `epoch` is 0 then."""

    def __init__(self, me: int, tolerate: int) -> None:
        self._me, self._t = me, tolerate
        self._seeds: Seeds | None = None
        # By committee, from `_seeds`.
        self._online: dict[tuple[int, ...], Mapping[int, bytes]] = {}

    @property
    def epoch(self) -> int:
        """The PRSS epoch in force, 0 before the first setup."""
        return self._seeds.epoch if self._seeds else 0

    @property
    def context(self) -> bytes:
        """The context of the setup that made the seeds: tells two setups of one epoch apart."""
        return self._current().context

    def install(self, seeds: Seeds) -> None:
        """Use these seeds from now on. The pools of the older epoch are gone by then (SPEC 1.6)."""
        self._seeds = seeds
        self._online.clear()

    def sub_seeds(
        self, committee: tuple[int, ...], sid: bytes
    ) -> tuple[tuple[tuple[tuple[int, ...], bytes], ...], tuple[tuple[tuple[int, ...], bytes], ...]]:
        """SPEC 3.2: sub-seeds of one batch for the subsets and for the pairs of this member in the committee."""
        seeds = self._current()
        return (
            tuple(
                (A, derive_sub_seed(seeds.of("subset", A), sid)) for A in subsets(committee, self._t) if self._me in A
            ),
            tuple(
                (pair, derive_sub_seed(seeds.of("presign-pair", pair), sid))
                for pair in pairs(committee)
                if self._me in pair
            ),
        )

    def online_seeds(self, committee: tuple[int, ...]) -> Mapping[int, bytes]:
        """SPEC 4.5: `o_{me,i}` for every other member `i` of the committee."""
        found, seeds = self._online.get(committee), self._current()
        if found is None:
            others = (i for i in committee if i != self._me)
            found = {i: seeds.of("online-pair", (min(i, self._me), max(i, self._me))) for i in others}
            if len(self._online) >= MAX_COMMITTEES:
                self._online.clear()
            self._online[committee] = found
        return found

    def _current(self) -> Seeds:
        if self._seeds is None:
            raise Unavailable("no PRSS seeds yet", "all signers must be online once, for the network's setup")
        return self._seeds

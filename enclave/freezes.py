"""SPEC 4.11: which labels this signer is frozen for, by whose order. What is frozen is neither signed for nor created.

The state is a file of the enclave's own (`FreezeStore`), which the signer process cannot reach: what cannot be read, or
is missing where it should be there, freezes everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from enclave.errors import CallerError, Refused
from enclave.requests import verifies
from enclave.wire import MAX_FREEZES, Freeze, UnixMilliseconds
from policies.globs import check_label_glob, label_matches
from policies.operators import Operators
from policies.signed_requests import parse_strictly
from policies.stop_orders import EVERYTHING, StopOrder, UnverifiedStop, split_order

Tell = Callable[[str, dict[str, str | int]], None]


class FreezeStore(Protocol):
    """Where the state is kept."""

    def read(self) -> bytes | None:
        """What was written last; None where nothing ever was. Raises `CallerError` where it cannot be read."""

    def write(self, data: bytes) -> None:
        """Returns once `data` is on disk in place of what was. Raises `CallerError`; then the old state is there."""


class FreezeState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`serial`: of the last order carried out, 0 before the first. `freezes`: those in force, the oldest first."""

    network: str
    signer: str
    serial: UnixMilliseconds
    freezes: tuple[Freeze, ...]


class Freezes:
    """What is frozen now. Orders change it, and nothing else does."""

    def __init__(
        self,
        network: str,
        signer: str,
        operators: Callable[[], Operators | None],
        store: FreezeStore,
        wall_clock: Callable[[], float],
        tell: Tell,
        unkept: FreezeState | None = None,
    ) -> None:
        """`operators()`: those of the policy in force. `tell(event, facts)`: for the log and the audit chain. `unkept`:
        the state of this process, where it could not be written; it is newer than that on disk."""
        self._network, self._signer, self._operators = network, signer, operators
        self._store, self._clock, self._tell = store, wall_clock, tell
        self.counters: dict[str, int] = {}
        self._begun = False
        self.unkept = unkept
        self._state, self._kept = (unkept, True) if unkept is not None else self._read()

    @property
    def in_force(self) -> tuple[Freeze, ...]:
        """Every freeze, the oldest first."""
        return self._state.freezes

    @property
    def serial(self) -> int:
        """That of the last order carried out."""
        return self._state.serial

    def check(self, label: str) -> None:
        """Raises `Refused` with rule `frozen` where `label` is."""
        # SPEC 4.11
        for freeze in self._state.freezes:
            if label_matches(freeze.pattern, label):
                by = f" by {freeze.operator}" if freeze.operator else ""
                why = f": {freeze.reason}" if freeze.reason else ""
                raise Refused("frozen", f"signer {self._signer} was frozen for {_named(freeze.pattern)}{by}{why}")

    def begin(self, chain_length: int) -> None:
        """The audit chain is known: it has `chain_length` entries. An enclave that has been at work and may be frozen
        has kept a state; where it is missing, nobody knows what was frozen."""
        # SPEC 4.11
        begun, self._begun = self._begun, True
        if begun or self._kept or self._operators() is None:
            return
        lost = "its file is missing"
        if not chain_length:
            try:
                self.keep()
            except CallerError as error:
                lost = str(error)
            else:
                return
        self._state = self._everything(f"what is frozen cannot be known: {lost}")
        self._tell_lost()

    def keep(self) -> None:
        """Write the state where there is none yet. Raises `CallerError` where that cannot be."""
        if not self._kept:
            self._write(self._state)

    def carry_out(self, texts: tuple[str, ...]) -> StopOrder:
        """Freeze or unfreeze by an order with the signatures `texts`. Raises `Refused`; nothing has changed then."""
        try:
            return self._carry_out(texts)
        except Refused:
            self._count("stop_orders|refused")
            raise

    def _carry_out(self, texts: tuple[str, ...]) -> StopOrder:
        # SPEC 4.11
        parts = split_order(texts)
        order = parts[0].order
        names = self._verified(parts)
        now_s = self._clock()
        order.check(network=self._network, signer=self._signer, after_serial=self._state.serial, now_s=now_s)
        if order.action == "freeze":
            freezes = self._frozen(order, names[0])
        else:
            self._check_enough(names)
            freezes = self._unfrozen(order)
        try:
            self._write(msgspec.structs.replace(self._state, serial=order.serial, freezes=freezes))
        except CallerError as error:
            raise self._not_kept(order, freezes, error) from None
        self._count("stop_orders|freeze" if order.action == "freeze" else "stop_orders|unfreeze")
        facts: dict[str, str | int] = {"labels": " ".join(order.labels), "operators": ", ".join(names)}
        self._tell(order.action, facts | {"serial": order.serial, "reason": order.reason})
        return order

    def _verified(self, parts: tuple[UnverifiedStop, ...]) -> tuple[str, ...]:
        """The operators whose signatures they are, each once. Raises `Refused` unless all of them verify."""
        operators = self._operators()
        if operators is None:
            raise Refused("stop/operator", "this signer's policy names no operators: nobody may freeze it")
        names = tuple(part.header.kid for part in parts)
        if len(set(names)) != len(names):
            raise Refused("stop/operator", "one operator signed twice")
        for part in parts:
            operator = operators.operator(part.header.kid)
            if operator is None:
                raise Refused("stop/operator", f"the policy knows no operator {part.header.kid}")
            part.check_algorithm(operator)
            if not verifies(operator, part.signed, part.signature):
                raise Refused("stop/signature", f"the signature of operator {operator.id} does not verify")
        return names

    def _check_enough(self, names: tuple[str, ...]) -> None:
        operators = self._operators()
        needed = operators.unfreeze if operators is not None else 0
        if not needed or len(names) < needed:
            told = f"to unfreeze takes {needed} operators' signatures, the order has {len(names)}"
            raise Refused("stop/operator", told)

    def _frozen(self, order: StopOrder, operator: str) -> tuple[Freeze, ...]:
        # Everything needs no pattern beside it, and always fits: only an unfreezing of everything ends it.
        before = () if EVERYTHING in order.labels else self._state.freezes
        kept = [freeze for freeze in before if freeze.pattern not in order.labels]
        new = [Freeze(pattern, operator, order.serial, order.reason) for pattern in order.labels]
        if len(kept) + len(new) > MAX_FREEZES:
            raise Refused("stop/order", f"{MAX_FREEZES} patterns are frozen: freeze everything (`{EVERYTHING}`)")
        return (*kept, *new)

    def _unfrozen(self, order: StopOrder) -> tuple[Freeze, ...]:
        """`**` ends every freeze; any other pattern the freeze of that very pattern."""
        if EVERYTHING in order.labels:
            return ()
        known = {freeze.pattern for freeze in self._state.freezes}
        for pattern in order.labels:
            if pattern not in known:
                told = ", ".join(sorted(known)) or "nothing"
                raise Refused("stop/order", f"there is no freeze of `{pattern}`; frozen: {told}"[:500])
        return tuple(freeze for freeze in self._state.freezes if freeze.pattern not in order.labels)

    # --- on disk ---

    def _read(self) -> tuple[FreezeState, bool]:
        """The state, and whether there is one on disk."""
        try:
            data = self._store.read()
            if data is None:
                return FreezeState(self._network, self._signer, 0, ()), False
            return self._parsed(data), True
        except (CallerError, Refused, ValueError) as error:
            state = self._everything(f"what was frozen is not known: {error}")
            self._state = state
            self._tell_lost()
            return state, True

    def _parsed(self, data: bytes) -> FreezeState:
        state = parse_strictly(data, FreezeState, "freeze-state")
        if (state.network, state.signer) != (self._network, self._signer):
            raise Refused("freeze-state", "the file is another signer's")
        for freeze in state.freezes:
            check_label_glob(freeze.pattern)
        return state

    def _everything(self, reason: str) -> FreezeState:
        """All is frozen; no order that was made before now ends it."""
        serial = int(self._clock() * 1000)
        return FreezeState(self._network, self._signer, serial, (Freeze(EVERYTHING, "", serial, reason[:300]),))

    def _write(self, state: FreezeState) -> None:
        self._store.write(msgspec.json.encode(state))
        self._state, self._kept, self.unkept = state, True, None

    def _not_kept(self, order: StopOrder, freezes: tuple[Freeze, ...], error: CallerError) -> Refused:
        """A freeze holds in memory at least; an unfreeze that is not kept would come undone, so it is none."""
        if order.action == "freeze":
            self._state = self.unkept = msgspec.structs.replace(self._state, freezes=freezes)
            self._tell("freeze-not-kept", {"reason": str(error)[:300]})
            return Refused("stop/kept", f"frozen until the next restart, since this could not be written: {error}")
        return Refused("stop/kept", f"not unfrozen, since this could not be written: {error}")

    def _tell_lost(self) -> None:
        self._tell("freeze-state-lost", {"reason": self._state.freezes[0].reason})

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1


def _named(pattern: str) -> str:
    return "everything" if pattern == EVERYTHING else f"`{pattern}`"

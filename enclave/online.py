"""SPEC 4.2 to 4.5 and, for batches, SPEC 4.8 and 4.9: the one place where presignatures are spent.

The order of effects: with everybody's authorizations checked, the presignatures leave the pool *before* anything else
is done; then the share is unsealed and the signature shares are computed; the audit entry goes out with them, to be
committed first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from enclave.asked import Pause
from enclave.attempts import Outstanding, RequestState
from enclave.audit import AuditLog
from enclave.channels.frames import verify_digest
from enclave.channels.handshake import PeerSession
from enclave.counting import Counting
from enclave.crypto.curve import SECP256K1
from enclave.effects import Effects
from enclave.errors import CallerError, Refused, Unavailable
from enclave.members import OwnSession
from enclave.pool import PresignaturePool
from enclave.protocol import sign
from enclave.prss_state import PrssState
from enclave.request_book import RequestBook
from enclave.request_log import RequestLog
from enclave.shares import Opening, Vault
from enclave.terms import audit_facts, authorization_digest
from enclave.wire import (
    Answer,
    Authorization,
    AuthorizationTerms,
    BatchOnlineOrder,
    BatchShareReport,
    BatchTerms,
    Kept,
    OnlineOrder,
    OnlineRefused,
    Record,
    ShareReport,
    SignedAuthorization,
    SignedBatchAuthorization,
    encode,
)
from policies.counters import Charge
from policies.signed_requests import CLOCK_SKEW_S

SHARES_AT_ONCE = 16
"""So many shares of a batch are computed before other work has its turn."""


@dataclass(frozen=True)
class Holdings:
    """What signing spends and proves with: the shares, the presignatures, the seeds, and who the others are.

    `peer(coordinator, index)`: the session proved by the present link, if there is one. `pause()`: returns after other
    work had its turn.
    """

    session: OwnSession
    vault: Vault
    pool: PresignaturePool
    prss: PrssState
    peer: Callable[[str, int], PeerSession | None]
    pause: Pause


PHASES = tuple(f"online_us|{phase}" for phase in ("authorizations", "unsealing", "share", "report"))
"""Wall time of the phases of one online step, as it is counted, in their order. `unsealing`: what of it the check of
the authorizations, during which it goes on, did not cover."""


class OnlineStep:
    """Gives signature shares for outstanding authorizations."""

    def __init__(
        self,
        holdings: Holdings,
        book: RequestBook,
        audit: AuditLog,
        effects: Effects,
        wall_clock: Callable[[], float],
        count: Callable[[str, int], None],
        log: RequestLog,
        counting: Counting,
    ) -> None:
        """`count(name, amount)` adds to the enclave's counters."""
        self._log, self._counting = log, counting
        self._holdings, self._book = holdings, book
        self._audit, self._effects, self._clock, self._count = audit, effects, wall_clock, count

    async def give(self, coordinator: str, order: OnlineOrder | BatchOnlineOrder, record: Record | None) -> None:
        """Answer all members' authorizations: `ShareReport`, `BatchShareReport` or `OnlineRefused`."""
        started_cpu_ns, phases_ns = time.process_time_ns(), [time.perf_counter_ns()]
        spent, opening, holdings = False, None, self._holdings
        state: RequestState | None = None
        try:
            # SPEC 4.2, 4.8
            state, outstanding = self._find_own(order)
            # The HSM unseals while the others' signatures are verified.
            opening = holdings.vault.begin_to_open(record, order.key_id)
            self._check_others(coordinator, order, outstanding)
            phases_ns.append(time.perf_counter_ns())
            charge = state.check_permitted()
            holdings.vault.require_hsm()
            terms = outstanding.authorization.terms
            presignatures = self._spend(state, outstanding, charge)
            spent = True
            # SPEC 4.10: until the share is out, nobody is told that there is none.
            state.outstanding, state.answering = None, True
            shares = await self._shares(order, opening, outstanding, presignatures, phases_ns)
            phases_ns.append(time.perf_counter_ns())
            # SPEC 4.11: while it was computed, its label may have been frozen.
            state.check_permitted()
        except (Refused, CallerError, Unavailable) as error:
            if spent and charge:
                # SPEC 7.4: nothing is given back.
                self._counting.charge(terms.request_digest)
            if opening is not None:
                opening.discard()
            self._count("online_refused", 1)
            digest = order.authorizations[0].authorization.terms.request_digest
            known = self._book.get(digest)
            request_id = known.attempt.request_id if known is not None and known.attempt is not None else ""
            self._log.refused(coordinator, "share refused", digest, request_id, reason=str(error)[:300], spent=spent)
            self._effects.report(coordinator, OnlineRefused(order.ceremony, str(error)[:500], spent))
            if state is not None:
                state.answering = False
            return
        facts = audit_facts(terms)
        if isinstance(order, OnlineOrder):
            (name,) = outstanding.presignatures
            facts["presignature"] = f"{name.sid.hex()}/{name.index}"
        charged: dict[str, int | list[str]] = {}
        if charge:
            charged, state.charged = self._counting.charge(terms.request_digest), charge
        entry = self._audit.record("share", request=terms.request_digest.hex(), **facts, **charged)
        self._count("shares_given", len(shares))
        report, kept = self._report(order, shares), Kept(state.name, state.body, state.digest, terms.committee)
        self._book.answers.keep(Answer(kept, report))
        state.answering, state.done = False, True
        self._effects.report(coordinator, report, (entry,), kept)
        request_id = state.attempt.request_id if state.attempt is not None else ""
        self._log.told("share given", terms.request_digest, request_id, count=len(shares))
        phases_ns.append(time.perf_counter_ns())
        for phase, (began_ns, ended_ns) in zip(PHASES, pairwise(phases_ns), strict=True):
            self._count(phase, (ended_ns - began_ns) // 1000)
        self._count("online_cpu_us_total", (time.process_time_ns() - started_cpu_ns) // 1000)

    def _spend(self, state: RequestState, outstanding: Outstanding, charge: Charge) -> list[sign.Presignature]:
        """SPEC 4.3, 4.8, 7.4: before anything else. Gone even if what follows fails. Raises `Refused` where nothing
        was spent."""
        terms, ledger = outstanding.authorization.terms, self._counting.ledger
        if charge:
            ledger.seize(state.digest, charge)
        try:
            return self._holdings.pool.take_all(outstanding.presignatures, terms.committee, terms.prss_epoch)
        except Refused:
            ledger.give_up(state.digest)
            raise

    def _report(
        self, order: OnlineOrder | BatchOnlineOrder, shares: list[sign.SignatureShare]
    ) -> ShareReport | BatchShareReport:
        me = self._holdings.session.index
        if isinstance(order, BatchOnlineOrder):
            numbers = tuple(share.s.to_bytes(32, "big") for share in shares)
            return BatchShareReport(order.ceremony, me, tuple(share.R for share in shares), numbers)
        (share,) = shares
        return ShareReport(order.ceremony, me, share.R, share.s.to_bytes(32, "big"))

    def _find_own(self, order: OnlineOrder | BatchOnlineOrder) -> tuple[RequestState, Outstanding]:
        """SPEC 4.2: our own outstanding authorization. Raises `Refused`; nothing has changed then."""
        now_s = self._clock()
        state = self._book.get(order.authorizations[0].authorization.terms.request_digest)
        outstanding = state.outstanding if state is not None else None
        if state is None or outstanding is None or outstanding.authorization.expires_at_s <= now_s:
            raise Refused("authorization", "no outstanding authorization of ours for this request")
        own = outstanding.authorization
        if isinstance(own, Authorization) != isinstance(order, OnlineOrder):
            raise Refused("authorization", "a batch and a single signature never stand for each other")
        # The pool was replaced by a new epoch's since.
        if own.terms.prss_epoch != self._holdings.prss.epoch:
            raise Refused("epoch", "a new PRSS epoch has begun")
        indices = tuple([signed.authorization.index for signed in order.authorizations])
        if indices != own.terms.committee or order.key_id != own.terms.key_id:
            raise Refused("authorization", "one authorization of each committee member, in order")
        return state, outstanding

    def _check_others(self, coordinator: str, order: OnlineOrder | BatchOnlineOrder, outstanding: Outstanding) -> None:
        """SPEC 4.2: everybody authorised the very same. Raises `Refused`; nothing has changed then."""
        own, me, now_s = outstanding.authorization, self._holdings.session, self._clock()
        for signed in order.authorizations:
            theirs = signed.authorization
            if theirs.index == me.index:
                if theirs != own:
                    raise Refused("authorization", "not our outstanding authorization")
            else:
                self._check_peer(coordinator, signed, own.terms, now_s)

    def _check_peer(
        self,
        coordinator: str,
        signed: SignedAuthorization | SignedBatchAuthorization,
        terms: AuthorizationTerms | BatchTerms,
        now_s: float,
    ) -> None:
        theirs = signed.authorization
        peer = self._holdings.peer(coordinator, theirs.index)
        if peer is None or peer.boot_nonce != theirs.boot_nonce:
            raise Refused("authorization", f"no link with the present session of signer {theirs.index}")
        # Every message decodes from one encoding only, so equal structs are equal bytes.
        if theirs.terms != terms:
            raise Refused("authorization", f"signer {theirs.index} authorised something else")
        if theirs.expires_at_s + CLOCK_SKEW_S <= now_s:
            raise Refused("authorization", f"the authorization of signer {theirs.index} has expired")
        if not verify_digest(peer.frame_key, authorization_digest(theirs), signed.signature):
            raise Refused("authorization", f"the authorization of signer {theirs.index} does not verify")

    async def _shares(
        self,
        order: OnlineOrder | BatchOnlineOrder,
        opening: Opening,
        outstanding: Outstanding,
        presignatures: list[sign.Presignature],
        phases_ns: list[int],
    ) -> list[sign.SignatureShare]:
        terms, holdings = outstanding.authorization.terms, self._holdings
        # Of this epoch: a new one must not come in between the shares of a batch.
        seeds = holdings.prss.online_seeds(terms.committee)
        opened = await holdings.vault.opened(opening)
        phases_ns.append(time.perf_counter_ns())
        acknowledgement = opened.acknowledgement
        if not opened.active or (acknowledgement.public_key, acknowledgement.key_epoch) != (
            terms.public_key,
            terms.key_epoch,
        ):
            raise Refused("key", "the record is not of the key that was authorised")
        x, me = int.from_bytes(opened.share, "big"), holdings.session.index
        if isinstance(order, OnlineOrder):
            (item,), (presignature,) = outstanding.items, presignatures
            bodies = [signed.authorization for signed in order.authorizations]
            return [
                sign.online_share(SECP256K1, me, terms.committee, presignature, bodies, item.h, item.epsilon, x, seeds)
            ]
        # SPEC 4.9
        encoded = [encode(signed.authorization) for signed in order.authorizations]
        shares = []
        for number, (item, presignature) in enumerate(zip(outstanding.items, presignatures, strict=True), 1):
            ctx = sign.batch_context(encoded, number, item.epsilon, presignature.R)
            shares.append(
                sign.share_under(ctx, SECP256K1, me, terms.committee, presignature, item.h, item.epsilon, x, seeds)
            )
            if number % SHARES_AT_ONCE == 0:
                await holdings.pause()
        return shares

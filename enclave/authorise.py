"""SPEC 4 in this enclave: who may have what signed, and the one place where a presignature is spent.

The order of effects, which is the point of this module:

1. the client's request verifies, the policy allows it, the gate says yes (nothing is reserved, nothing is spent);
2. an authorization is signed and remembered: at most one outstanding, three in a request's life;
3. with everybody's authorizations checked, the presignature leaves the pool *before* anything else is done;
4. the share is unsealed, the signature share computed; the audit entry goes out with it, to be committed first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from enclave.asking import Gate
from enclave.attempts import Approval, Attempt, Outstanding, RequestBook, RequestState
from enclave.audit import AuditLog
from enclave.channels.frames import sign_digest, verify_digest
from enclave.channels.handshake import PeerSession
from enclave.crypto import bip32
from enclave.crypto.curve import SECP256K1
from enclave.effects import Effects
from enclave.errors import CallerError, Refused, Unavailable
from enclave.gate import GateSaidNo, RequestInfo, SignerInfo, show_decoded
from enclave.members import OwnSession
from enclave.payloads import Payload, decode_payload
from enclave.pool import PresignaturePool
from enclave.protocol import sign
from enclave.prss_state import PrssState
from enclave.requests import VerifiedRequest, parse_signing_body, verify_request
from enclave.shares import KeyFacts, Vault
from enclave.wire import (
    AuditEntry,
    Authorization,
    AuthorizationTerms,
    Authorized,
    ClientRequest,
    GatePending,
    OnlineOrder,
    OnlineRefused,
    Record,
    RequestRefused,
    ShareReport,
    SignedAuthorization,
    SignOrder,
    UnknownPresignature,
    encode,
)
from policies.decide import Refuse, decide
from policies.model import Action, Counters, Policy, Request
from policies.requests import SigningBody, signatures_path
from policies.roster import Roster
from policies.transcript import Tag, digest

AUTHORIZATION_S = 30
CLOCK_SKEW_S = 30


@dataclass(frozen=True)
class SigningRules:
    """What this enclave's own configuration says about signing."""

    roster: Roster
    policy: Policy
    gate_mode: str
    gate_deadline_s: int
    boot_s: int


class Authoriser:
    """SPEC 4.1 to 4.5 for all requests of this boot."""

    def __init__(
        self,
        rules: SigningRules,
        session: OwnSession,
        vault: Vault,
        pool: PresignaturePool,
        prss: PrssState,
        gate: Gate,
        audit: AuditLog,
        effects: Effects,
        peer: Callable[[str, int], PeerSession | None],
        book: RequestBook,
        wall_clock: Callable[[], float],
        random: Callable[[int], bytes],
    ) -> None:
        """`peer(coordinator, index)`: the session proved by the present link, if there is one."""
        self._rules, self._session, self._vault, self._pool, self._prss = rules, session, vault, pool, prss
        self.gate, self._audit, self._effects, self._peer = gate, audit, effects, peer
        self._clock, self._random = wall_clock, random
        self.book = book
        self.counters: dict[str, int] = {}

    # --- SPEC 4.1 ---

    async def authorise(self, coordinator: str, order: SignOrder, record: Record | None) -> None:
        """Answer a signing request: `Authorized`, `RequestRefused`, `UnknownPresignature`; nothing while an earlier
        attempt of the same request is being decided, which then answers the newest one."""
        state: RequestState | None = None
        try:
            self._vault.require_hsm()
            # A request that is known was verified, and may have been approved long after its JWS expired.
            state, request = self.book.get(order.request.digest(self._rules.roster.network)), None
            if state is None:
                request = self._verify(order.request)
                state = self.book.open(request.digest, self._keep_until_s(request))
            self._begin_attempt(coordinator, state, order)
            if state.asking:
                return
            if not self._is_approved(state, order):
                await self._approve(coordinator, state, order, request or self._verify(order.request), record)
            self._authorize(state)
        except Refused as refusal:
            self._refuse(coordinator, order, state, refusal.rule, refusal.reason)
        except CallerError as error:
            self._refuse(coordinator, order, state, "record", str(error))
        except Unavailable as error:
            self._refuse(coordinator, order, state, "unavailable", str(error))

    def _keep_until_s(self, request: VerifiedRequest) -> int:
        return request.expires_at_s + self._rules.gate_deadline_s + AUTHORIZATION_S + CLOCK_SKEW_S

    def _begin_attempt(self, coordinator: str, state: RequestState, order: SignOrder) -> None:
        if not self._rules.roster.is_committee(order.committee) or self._session.index not in order.committee:
            raise Refused("committee", "not a committee of 2t + 1 signers with this one among them")
        if state.closed:
            raise Refused("request/replayed", "this request was decided before")
        if order.request.path != signatures_path(order.key_id):
            raise Refused("request/path", "the signed path is not that of this key's signatures")
        self.book.begin(state, Attempt(coordinator, order.ceremony, order.committee, order.presignature))

    def _is_approved(self, state: RequestState, order: SignOrder) -> bool:
        approval = state.approval
        return approval is not None and approval.committee == order.committee and approval.until_s > self._clock()

    async def _approve(
        self,
        coordinator: str,
        state: RequestState,
        order: SignOrder,
        request: VerifiedRequest,
        record: Record | None,
    ) -> None:
        state.count_question()
        state.asking = True
        try:
            state.approval = await self._decide(coordinator, order, request, record)
        except GateSaidNo:
            state.closed = True
            raise
        finally:
            state.asking = False

    def _verify(self, request: ClientRequest) -> VerifiedRequest:
        return verify_request(
            request,
            policy=self._rules.policy,
            network=self._rules.roster.network,
            now_s=int(self._clock()),
            boot_s=self._rules.boot_s,
        )

    async def _decide(
        self, coordinator: str, order: SignOrder, request: VerifiedRequest, record: Record | None
    ) -> Approval:
        body = parse_signing_body(request)
        key = await self._key(order.key_id, record)
        payload = decode_payload(body)
        sign.message_scalar(payload.h, SECP256K1)
        acknowledgement = key.acknowledgement
        child, epsilon = bip32.derive(acknowledgement.public_key, acknowledgement.chain_code, body.derivation_path)
        asked = Request(
            client_id=request.client_id,
            action=Action.SIGN,
            label=acknowledgement.label,
            kind=payload.kind,
            blind=payload.blind,
            derivation_path=body.derivation_path,
            decoded=payload.decoded,
        )
        decision = decide(self._rules.policy, asked, Counters(), int(self._clock()))
        if isinstance(decision, Refuse):
            raise Refused(decision.rule, decision.reason)
        until_s = request.expires_at_s
        if self._rules.gate_mode != "none":
            info = self._signer_info(order, key, child, body, payload)
            told = self._request_info(request, body, payload)
            until_s = await self._ask_gate(coordinator, order, info, told)
        return Approval(request.client_id, key, body.derivation_path, epsilon, payload.h, order.committee, until_s)

    async def _key(self, key_id: str, record: Record | None) -> KeyFacts:
        key = await self._vault.key_facts(record, key_id)
        if not key.active:
            raise Refused("key/pending", f"{key_id} is not activated here: its certificate is missing")
        if key.acknowledgement.roster_digest != self._rules.roster.digest():
            raise Refused("key/roster", f"{key_id} belongs to another roster")
        return key

    async def _ask_gate(self, coordinator: str, order: SignOrder, info: SignerInfo, told: RequestInfo) -> int:
        def pending(until_s: int) -> None:
            self._effects.report(coordinator, GatePending(order.ceremony, until_s))

        deadline_s = int(self._clock()) + self._rules.gate_deadline_s
        allowed = await self.gate.ask(info, told, deadline_s, pending)
        return allowed.expires_at_s

    def _authorize(self, state: RequestState) -> None:
        """Sign the terms of the newest attempt, which may have come while the gate was asked."""
        attempt, approval = state.attempt, state.approval
        if attempt is None or approval is None or attempt.committee != approval.committee:
            raise Refused("committee", "another committee was named while the gate was asked: try again")
        acknowledgement = approval.key.acknowledgement
        terms = AuthorizationTerms(
            scheme="KU25",
            curve=acknowledgement.curve,
            roster_digest=acknowledgement.roster_digest,
            prss_epoch=self._prss.epoch,
            key_epoch=acknowledgement.key_epoch,
            key_id=acknowledgement.key_id,
            public_key=acknowledgement.public_key,
            path=approval.path,
            h=approval.h,
            request_digest=state.digest,
            committee=attempt.committee,
            presignature=attempt.presignature,
        )
        if not self._pool.holds(terms.presignature, terms.committee, terms.prss_epoch):
            unknown = UnknownPresignature(attempt.ceremony, attempt.presignature)
            self._effects.report(attempt.coordinator, unknown)
            return
        authorization = Authorization(
            terms,
            self._session.index,
            self._session.boot_nonce,
            self._random(32),
            min(int(self._clock()) + AUTHORIZATION_S, approval.until_s),
        )
        state.count_attempt(Outstanding(authorization, approval.epsilon))
        signed = SignedAuthorization(
            authorization, sign_digest(self._session.frame_secret, authorization_digest(authorization))
        )
        entry = self._audit.record(
            "authorized",
            client=approval.client_id,
            request=state.digest.hex(),
            key_id=terms.key_id,
            hash=terms.h.hex(),
            committee=list(attempt.committee),
        )
        self._count("requests_authorized")
        self._effects.report(attempt.coordinator, Authorized(attempt.ceremony, signed), (entry,))

    def _refuse(self, coordinator: str, order: SignOrder, state: RequestState | None, rule: str, reason: str) -> None:
        """Answer the newest attempt. Only a request that verified goes into the audit chain: others cost nothing to
        send, and would fill the disk."""
        self._count(f"requests_refused_{rule.split('/')[0]}")
        entries: tuple[AuditEntry, ...] = ()
        ceremony = order.ceremony
        if state is not None:
            entries = (self._audit.record("refused", request=state.digest.hex(), rule=rule, reason=reason[:300]),)
            if state.attempt is not None:
                coordinator, ceremony = state.attempt.coordinator, state.attempt.ceremony
        self._effects.report(coordinator, RequestRefused(ceremony, rule, reason[:500]), entries)

    # --- SPEC 4.2 to 4.5 ---

    async def give_share(self, coordinator: str, order: OnlineOrder, record: Record | None) -> None:
        """Answer all members' authorizations: `ShareReport` or `OnlineRefused`."""
        started_ns, started_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
        spent = False
        try:
            # SPEC 4.2
            state, outstanding = self._check_authorizations(coordinator, order)
            self._vault.require_hsm()
            terms = outstanding.authorization.terms
            # SPEC 4.3: before anything else. Gone even if what follows fails.
            presignature = self._pool.take(terms.presignature, terms.committee, terms.prss_epoch)
            spent = True
            state.outstanding = None
            share = await self._share(order, record, outstanding, presignature)
        except (Refused, CallerError, Unavailable) as error:
            self._count("online_refused")
            self._effects.report(coordinator, OnlineRefused(order.ceremony, str(error)[:500], spent))
            return
        entry = self._audit.record(
            "share",
            request=terms.request_digest.hex(),
            key_id=terms.key_id,
            hash=terms.h.hex(),
            presignature=f"{terms.presignature.sid.hex()}/{terms.presignature.index}",
        )
        self._count("shares_given")
        report = ShareReport(order.ceremony, self._session.index, share.R, share.s.to_bytes(32, "big"))
        self._effects.report(coordinator, report, (entry,))
        self._count("online_us_total", (time.perf_counter_ns() - started_ns) // 1000)
        # All threads of this process, so the HSM's too; a step of its own only while steps do not overlap.
        self._count("online_cpu_us_total", (time.process_time_ns() - started_cpu_ns) // 1000)

    def _check_authorizations(self, coordinator: str, order: OnlineOrder) -> tuple[RequestState, Outstanding]:
        """SPEC 4.2. Returns our own outstanding authorization. Raises `Refused`; nothing has changed then."""
        me, now_s = self._session, self._clock()
        terms = order.authorizations[0].authorization.terms
        state = self.book.get(terms.request_digest)
        outstanding = state.outstanding if state is not None else None
        if state is None or outstanding is None or outstanding.authorization.expires_at_s <= now_s:
            raise Refused("authorization", "no outstanding authorization of ours for this request")
        own = outstanding.authorization
        # The pool was replaced by a new epoch's since.
        if own.terms.prss_epoch != self._prss.epoch:
            raise Refused("epoch", "a new PRSS epoch has begun")
        indices = tuple(signed.authorization.index for signed in order.authorizations)
        if indices != own.terms.committee or order.key_id != own.terms.key_id:
            raise Refused("authorization", "one authorization of each committee member, in order")
        expected_terms = encode(own.terms)
        for signed in order.authorizations:
            theirs = signed.authorization
            if theirs.index == me.index:
                if theirs != own:
                    raise Refused("authorization", "not our outstanding authorization")
            else:
                self._check_peer(coordinator, signed, expected_terms, now_s)
        return state, outstanding

    def _check_peer(self, coordinator: str, signed: SignedAuthorization, expected_terms: bytes, now_s: float) -> None:
        theirs = signed.authorization
        peer = self._peer(coordinator, theirs.index)
        if peer is None or peer.boot_nonce != theirs.boot_nonce:
            raise Refused("authorization", f"no link with the present session of signer {theirs.index}")
        if encode(theirs.terms) != expected_terms:
            raise Refused("authorization", f"signer {theirs.index} authorised something else")
        if theirs.expires_at_s + CLOCK_SKEW_S <= now_s:
            raise Refused("authorization", f"the authorization of signer {theirs.index} has expired")
        if not verify_digest(peer.frame_key, authorization_digest(theirs), signed.signature):
            raise Refused("authorization", f"the authorization of signer {theirs.index} does not verify")

    async def _share(
        self,
        order: OnlineOrder,
        record: Record | None,
        outstanding: Outstanding,
        presignature: sign.Presignature,
    ) -> sign.SignatureShare:
        terms = outstanding.authorization.terms
        opened = await self._vault.open_key(record, order.key_id)
        acknowledgement = opened.acknowledgement
        if not opened.active or (acknowledgement.public_key, acknowledgement.key_epoch) != (
            terms.public_key,
            terms.key_epoch,
        ):
            raise Refused("key", "the record is not of the key that was authorised")
        return sign.online_share(
            SECP256K1,
            self._session.index,
            terms.committee,
            presignature,
            [signed.authorization for signed in order.authorizations],
            terms.h,
            outstanding.epsilon,
            int.from_bytes(opened.share, "big"),
            self._prss.online_seeds(terms.committee),
        )

    # --- what the gate is told ---

    def _signer_info(
        self, order: SignOrder, key: KeyFacts, child: bytes, body: SigningBody, payload: Payload
    ) -> SignerInfo:
        acknowledgement = key.acknowledgement
        return SignerInfo(
            kind="Signing",
            key_id=acknowledgement.key_id,
            public_key=acknowledgement.public_key.hex(),
            tx_hash=payload.h.hex(),
            derivation_path=body.derivation_path,
            child_public_key=child.hex(),
            signer_id=self._rules.roster.signer(self._session.index).name,
            scheme="ECDSA",
            curve=acknowledgement.curve,
            key_epoch=acknowledgement.key_epoch,
            participants=order.committee,
            blind=payload.blind,
        )

    def _request_info(self, request: VerifiedRequest, body: SigningBody, payload: Payload) -> RequestInfo:
        return RequestInfo(
            requester=request.client_id,
            external_id=body.external_id,
            network=self._rules.roster.network,
            payload=msgspec.to_builtins(body),
            decoded=show_decoded(payload.decoded),
        )

    def _count(self, name: str, amount: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + amount


def authorization_digest(authorization: Authorization) -> bytes:
    """SPEC 4.1: the 32 bytes that a member's frame key signs."""
    return digest(Tag.AUTHORIZATION, encode(authorization))

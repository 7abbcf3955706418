"""Every field of every message of signing, altered one at a time: the orders, and in them what the others authorised.

The cases come from the message types by inspection, the verdicts from `VERDICTS`: a field without a verdict fails
`test_every_field_has_a_verdict`. Whatever the outcome, no presignature is spent unless a share is given for exactly the
one request that everybody authorised.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import coincurve
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import utils

from enclave import wire
from enclave.channels.frames import sign_digest
from enclave.crypto import polynomials
from enclave.crypto.bip32 import derive
from enclave.crypto.curve import SECP256K1
from enclave.terms import authorization_digest
from policies.requests import HashBatch, signature_batches_path
from tests.adversarial.conftest import Desk, make_net
from tests.fakes.clients import TestClient
from tests.fakes.enclaves import Clock, authorizations_of
from tests.fakes.mutations import Path, altered, fields_of

H = hashlib.sha256(b"fields").digest()
SIGN_KINDS = (wire.SignOrder, wire.BatchSignOrder)
ONLINE_KINDS = (wire.OnlineOrder, wire.BatchOnlineOrder)


class ApprovedDesk(Desk):
    """Its policy wants each request approved by two clients, who approve each."""

    approvers: tuple[TestClient, ...]

    def approved(self, request: wire.ClientRequest) -> wire.ClientRequest:
        """With the least number of approvals."""
        return msgspec.structs.replace(request, approvals=tuple(one.approval(request) for one in self.approvers))


def make_desk(n: int, t: int) -> ApprovedDesk:
    """A network with one key and one batch of presignatures."""
    clock = Clock()
    approvers = TestClient(clock, "alice"), TestClient(clock, "bob")
    net, client, gate = make_net(n, t, clock=clock, approvers=approvers)
    net.start()
    net.setup()
    key = net.keygen(client.create_key(n=n, t=t))[1].certificates[0][0].acknowledgement
    sid = net.presign(committee_of(n, t), 4)[1].sid
    net.drain()
    desk = ApprovedDesk(net, client, gate, key, sid)
    desk.approvers = approvers
    return desk


def committee_of(n: int, t: int) -> tuple[int, ...]:
    return tuple(range(1, 2 * t + 2))


def orders(desk: ApprovedDesk, committee: tuple[int, ...], kind: type[Any]) -> tuple[Any, Any]:
    """Honest orders: the sign order, and the online order that follows from it (given to nobody yet)."""
    names = (desk.name(1), desk.name(2))
    if kind in (wire.BatchSignOrder, wire.BatchOnlineOrder):
        body = HashBatch(("0x" + H.hex(), "0x" + H[::-1].hex()), os.urandom(8).hex(), ((), (1,)))
        request = desk.approved(desk.client.request(signature_batches_path(desk.key_id), body))
        first: Any = wire.BatchSignOrder(b"s" * 16, desk.key_id, request, committee, names)
    else:
        request = desk.approved(desk.client.sign_hash(desk.key_id, H, (7,)))
        first = wire.SignOrder(b"s" * 16, desk.key_id, request, committee, names[0])
    if kind in SIGN_KINDS:
        return first, None
    for j in committee:
        desk.net.order(j, first)
    desk.net.run()
    reports = desk.net.drain()
    if isinstance(first, wire.BatchSignOrder):
        signed = tuple(r.authorization for j in committee for r in reports[j] if isinstance(r, wire.BatchAuthorized))
        return first, wire.BatchOnlineOrder(b"o" * 16, desk.key_id, signed)
    return first, wire.OnlineOrder(b"o" * 16, desk.key_id, authorizations_of(reports))


@dataclass(frozen=True)
class Case:
    """One alteration of one field."""

    kind: type[Any]
    path: Path
    mutation: str
    change: Callable[[Any], Any]

    def __str__(self) -> str:
        return f"{self.kind.__name__}.{'.'.join(self.path)}-{self.mutation}"


def cases(kinds: tuple[type[Any], ...]) -> Iterator[Case]:
    for kind in kinds:
        for path, mutations in fields_of(kind):
            for mutation, change in mutations.items():
                yield Case(kind, path, mutation, change)


def tell(desk: Desk, j: int, order: Any) -> str:
    """What member `j` makes of an order: a report in short, or that the bytes are no message."""
    try:
        wire.decode(wire.encode(order), wire.OrderBody)  # type: ignore[arg-type]
    except wire.Malformed:
        return "malformed"
    desk.net.order(j, order)
    desk.net.run()
    reports = desk.net.drain()[j]
    if not reports:
        return "nothing"
    (report,) = reports
    if isinstance(report, wire.RequestRefused):
        return report.rule
    if isinstance(report, wire.OnlineRefused):
        assert not report.spent
        return report.reason
    return type(report).__name__


def pools(desk: Desk, committee: tuple[int, ...]) -> list[int]:
    return [len(desk.net.members[j].core.pool) for j in committee]


# --- what each alteration ends in ---

SIZES = {"short": "malformed", "long": "malformed"}


def fixed(verdict: str) -> dict[str, str]:
    """Verdicts on bytes of a fixed size."""
    return {"flip": verdict, "zeros": verdict, "ones": verdict, **SIZES}


def several(drop: str, extra: str, empty: str) -> dict[str, str]:
    """Verdicts on a tuple."""
    return {"drop": drop, "extra": extra, "empty": empty}


def approvals(given: str) -> dict[str, dict[str, str]]:
    """Both are needed, each counts once, and one that does not verify is as if it were not there."""
    lacks = "policy/approvals"
    return {"request.approvals": several(lacks, given, lacks), "request.approvals.[]": {"other": lacks}}


REQUEST = {
    "request.method": {"other": "request/path"},
    "request.path": {"other": "request/path"},
    "request.body": dict.fromkeys(("flip", "zeros", "ones", "short", "long"), "request/signature"),
    "request.jws": {"other": "request/jws"},
    "request.request_id": {"other": "malformed"},
    "key_id": {"other": "malformed"},
    "committee": several("malformed", "committee", "malformed"),
    "committee.[]": {"other": "committee"},
}
SIGN_VERDICTS: dict[type[Any], dict[str, dict[str, str]]] = {
    # `ceremony` is the coordinator's own; which presignature is named is too.
    wire.SignOrder: {
        **REQUEST,
        **approvals("Authorized"),
        "ceremony": fixed("Authorized"),
        "after": {"given": "Authorized"},
        "presignature.sid": fixed("UnknownPresignature"),
        "presignature.index": {"other": "Authorized"},
    },
    wire.BatchSignOrder: {
        **REQUEST,
        **approvals("BatchAuthorized"),
        "ceremony": fixed("BatchAuthorized"),
        "after": {"given": "BatchAuthorized"},
        "presignatures": several("presignature", "presignature", "malformed"),
        "presignatures.[].sid": fixed("UnknownPresignatures"),
        "presignatures.[].index": {"other": "presignature"},
    },
}

NONE_OF_OURS = "authorization: no outstanding authorization of ours for this request"
NOT_ALL = "authorization: one authorization of each committee member, in order"
NOT_OURS = "authorization: not our outstanding authorization"
OTHER_TERMS = "authorization: signer 1 authorised something else"
NO_SESSION = "authorization: no link with the present session of signer 1"
UNSIGNED = "authorization: the authorization of signer 1 does not verify"


def online_verdicts(kind: type[Any], terms: str, session: str, body: str, signature: str) -> dict[str, dict[str, str]]:
    """Verdicts on the first authorization, signer 1's: on its terms, boot nonce, the rest of it, and its signature."""
    place = "authorizations.[].authorization."
    either = {
        "scheme": {"other": "malformed"},
        "curve": {"other": "malformed"},
        "roster_digest": fixed(terms),
        "prss_epoch": {"other": terms},
        "key_epoch": {"other": terms},
        "key_id": {"other": "malformed"},
        "public_key": fixed(terms),
        "request_digest": fixed(NONE_OF_OURS),
        "committee": several("malformed", terms, "malformed"),
        "committee.[]": {"other": terms},
    }
    single = {
        "path": several(terms, terms, terms),
        "path.[]": {"other": terms},
        "h": fixed(terms),
        "presignature.sid": fixed(terms),
        "presignature.index": {"other": terms},
    }
    batch = {"count": {"other": terms}, "items": fixed(terms)}
    own = single if kind is wire.OnlineOrder else batch
    given = "ShareReport" if kind is wire.OnlineOrder else "BatchShareReport"
    return {
        "ceremony": fixed(given),
        "key_id": {"other": "malformed"},
        "authorizations": several("malformed", NOT_ALL, "malformed"),
        **{f"{place}terms.{name}": verdict for name, verdict in {**either, **own}.items()},
        f"{place}index": {"other": NOT_ALL},
        f"{place}boot_nonce": fixed(session),
        f"{place}rho": fixed(body or given),
        f"{place}expires_at_s": {"other": body or given},
        "authorizations.[].signature": fixed(signature or given),
    }


# Whose authorization it is that was altered: the receiver's own (it compares, and needs no signature), that of an
# honest peer (the coordinator altered it), or that of a cheater who signs what it altered (`ρ` and expiry are its own
# choice).
ONLINE_VERDICTS = {
    (kind, whose): verdicts
    for kind in ONLINE_KINDS
    for whose, verdicts in {
        "own": online_verdicts(kind, NOT_OURS, NOT_OURS, NOT_OURS, ""),
        "peer": online_verdicts(kind, OTHER_TERMS, NO_SESSION, UNSIGNED, UNSIGNED),
        "cheater": online_verdicts(kind, OTHER_TERMS, NO_SESSION, "", UNSIGNED),
    }.items()
}


def test_every_field_has_a_verdict() -> None:
    for kind in SIGN_KINDS:
        found = {(".".join(case.path), case.mutation) for case in cases((kind,))}
        assert found == {(path, name) for path, each in SIGN_VERDICTS[kind].items() for name in each}
    for (kind, _), verdicts in ONLINE_VERDICTS.items():
        found = {(".".join(case.path), case.mutation) for case in cases((kind,))}
        assert found == {(path, name) for path, each in verdicts.items() for name in each}


SCHEMES = [(3, 1), (5, 2)]


def expected(verdicts: dict[str, dict[str, str]], case: Case, n: int) -> str:
    """The verdict. One member less is fewer than any committee has where three sign, and a wrong one where five do."""
    each = verdicts[".".join(case.path)]
    members = case.path[-1] in ("committee", "authorizations")
    return each["extra" if case.mutation == "drop" and members and n > 3 else case.mutation]


@pytest.mark.parametrize(("n", "t"), SCHEMES)
@pytest.mark.parametrize("kind", SIGN_KINDS)
def test_altered_sign_orders(kind: type[Any], n: int, t: int) -> None:
    """All fields, one after the other; then the unaltered order is authorised."""
    desk, committee = make_desk(n, t), committee_of(n, t)
    for case in cases((kind,)):
        order, _ = orders(desk, committee, kind)  # each a request of its own
        verdict = expected(SIGN_VERDICTS[kind], case, n)
        assert tell(desk, 1, altered(order, case.path, case.change)) == verdict, str(case)
    assert pools(desk, committee) == [4] * len(committee)
    order, _ = orders(desk, committee, kind)
    assert tell(desk, 1, order) == {wire.SignOrder: "Authorized", wire.BatchSignOrder: "BatchAuthorized"}[kind]


@pytest.mark.parametrize(("n", "t"), SCHEMES)
@pytest.mark.parametrize("whose", ["own", "peer", "cheater"])
@pytest.mark.parametrize("kind", ONLINE_KINDS)
def test_altered_online_orders(kind: type[Any], whose: str, n: int, t: int) -> None:
    """One alteration after the other at the same member: what is refused costs nothing, so the honest one at the end is
    served. With t cheaters all of them alter their own alike, and the first is named."""
    desk, committee = make_desk(n, t), committee_of(n, t)
    receiver = 1 if whose == "own" else committee[-1]
    given = "ShareReport" if kind is wire.OnlineOrder else "BatchShareReport"
    _, order = orders(desk, committee, kind)
    for case in cases((kind,)):
        verdict = expected(ONLINE_VERDICTS[kind, whose], case, n)
        there, told = desk, order
        if verdict == given:
            # A share is given, for the request that everybody authorised: on a network of its own.
            there = make_desk(n, t)
            _, told = orders(there, committee, kind)
        changed = altered(told, case.path, case.change)
        if whose == "cheater" and case.path[:3] == ("authorizations", "[]", "authorization"):
            changed = resigned(there, told, changed, case, t)
        assert tell(there, receiver, changed) == verdict, str(case)
    assert pools(desk, committee) == [4] * len(committee)
    assert tell(desk, receiver, order) == given


def resigned(desk: Desk, order: Any, changed: Any, case: Case, t: int) -> Any:
    """The first `t` members alter theirs alike, and sign them with their frame keys."""
    found = list(changed.authorizations)
    for place in range(t):
        theirs = found[place] if place == 0 else altered(order.authorizations[place], case.path[2:], case.change)
        secret = desk.net.members[place + 1].core._session.frame_secret
        signature = sign_digest(secret, authorization_digest(theirs.authorization))
        found[place] = msgspec.structs.replace(theirs, signature=signature)
    return msgspec.structs.replace(changed, authorizations=tuple(found))


@pytest.mark.parametrize(("n", "t"), SCHEMES)
def test_a_cheater_that_shows_each_another_rho_gets_shares_that_never_combine(n: int, t: int) -> None:
    """`ρ` is its maker's choice, so each gives its share; under contexts of their own (SPEC 4.5)."""
    desk, committee = make_desk(n, t), committee_of(n, t)
    _, order = orders(desk, committee, wire.OnlineOrder)
    case = next(c for c in cases((wire.OnlineOrder,)) if c.path[-1] == "rho" and c.mutation == "flip")
    other = resigned(desk, order, altered(order, case.path, case.change), case, t)
    for j in committee:
        desk.net.order(j, other if j == committee[-1] else order)
    desk.net.run()
    shares = {j: report for j, (report,) in desk.net.drain().items() if isinstance(report, wire.ShareReport)}
    assert sorted(shares) == list(committee)
    s = polynomials.interpolate({j: int.from_bytes(share.s, "big") for j, share in shares.items()}, SECP256K1.q)
    assert not any(verifies(desk, share.r_point, s) for share in shares.values())


@pytest.mark.parametrize(("n", "t"), SCHEMES)
def test_wrong_shares_give_no_signature(n: int, t: int) -> None:
    """The last message of all: one or t cheaters' shares, each of its bytes altered. Whoever combines verifies."""
    desk, committee = make_desk(n, t), committee_of(n, t)
    _, order = orders(desk, committee, wire.OnlineOrder)
    for j in committee:
        desk.net.order(j, order)
    desk.net.run()
    shares = {j: report for j, (report,) in desk.net.drain().items()}
    right = {j: int.from_bytes(share.s, "big") for j, share in shares.items()}
    R = shares[1].r_point
    assert verifies(desk, R, polynomials.interpolate(right, SECP256K1.q))
    for cheaters in (committee[:1], committee[-t:]):
        for bit in range(0, 256, 8):
            wrong = {j: value ^ (1 << bit) if j in cheaters else value for j, value in right.items()}
            assert not verifies(desk, R, polynomials.interpolate(wrong, SECP256K1.q))


def verifies(desk: Desk, R: bytes, s: int) -> bool:
    """Whether `s` with the nonce point `R` signs `H` under the child key of path `m/7`."""
    if s == 0:
        return False
    public, _ = derive(desk.key.public_key, desk.key.chain_code, (7,))
    der = utils.encode_dss_signature(SECP256K1.x_mod_q(R), min(s, SECP256K1.q - s))
    return coincurve.verify_signature(der, H, public, hasher=None)

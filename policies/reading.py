"""A request's body, read as an enclave reads it: for people who ask what a policy would say to it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from policies.errors import CallerError, Refused
from policies.facts import Request
from policies.model import Action, Kind, Policy
from policies.payloads import decode_payload
from policies.requests import HashBatch, KeyCreation, SigningBody
from policies.signed_requests import parse_strictly


@dataclass(frozen=True)
class Asker:
    """What a body does not say. `label`: of the key that is to sign. `approvers`: who approved."""

    client_id: str
    label: str = ""
    approvers: frozenset[str] = frozenset()


def check_asker(policy: Policy, asker: Asker) -> None:
    """Raises `Refused` where an enclave with `policy` knows no such client, and `CallerError` for such an approver."""
    if policy.client(asker.client_id) is None:
        raise Refused("request/client", f"the policy lists no client {asker.client_id}")
    for approver in sorted(asker.approvers):
        if policy.client(approver) is None:
            raise CallerError(f"the policy lists no client {approver}, so nobody can have approved as that")


class _Tagged(msgspec.Struct):
    kind: str = ""


def read_body(body: bytes, asker: Asker, keccak256: Callable[[bytes], bytes]) -> tuple[Request, ...]:
    """What is asked for: one `Request`, for a batch one a derivation path.

    Raises `Refused` for what an enclave refuses before it looks at its policy, and `CallerError` without a label.
    """
    kind = parse_strictly(body, _Tagged, "request/body").kind
    if not kind:
        creation = parse_strictly(body, KeyCreation, "request/body")
        return (Request(asker.client_id, Action.CREATE_KEY, creation.label),)
    if not asker.label:
        raise CallerError("say with which key: its label")
    if kind == Kind.HASH_BATCH:
        return tuple(_batch(parse_strictly(body, HashBatch, "request/body"), asker))
    parsed: SigningBody = parse_strictly(body, SigningBody, "request/body")  # type: ignore[arg-type]
    payload = decode_payload(parsed, keccak256)
    return (
        Request(
            client_id=asker.client_id,
            action=Action.SIGN,
            label=asker.label,
            kind=payload.kind,
            blind=payload.blind,
            derivation_path=parsed.derivation_path,
            decoded=payload.decoded,
            approvers=asker.approvers,
        ),
    )


def _batch(body: HashBatch, asker: Asker) -> Iterator[Request]:
    paths = body.paths()
    for path in dict.fromkeys(paths):
        yield Request(
            client_id=asker.client_id,
            action=Action.SIGN,
            label=asker.label,
            kind=Kind.HASH_BATCH,
            blind=True,
            derivation_path=path,
            signatures=paths.count(path),
            approvers=asker.approvers,
        )

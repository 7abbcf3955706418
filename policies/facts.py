"""What a decision is made on: a request, what was counted before, and the time."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from policies.counters import Counters
from policies.decoded import Decoded
from policies.model import Action, Kind, Policy


class Request(msgspec.Struct, frozen=True):
    """What `decide` sees: a request whose client signature has been verified and whose payload was parsed.

    `label` is the key's label: from the body for `create-key`, from the stored key for `sign`. `kind` and
    `decoded` are None where there is nothing to sign or to read; `signatures`: how many of a batch this is.
    `approvers`: the clients whose approvals of it have been verified; `approved_at_s`: when they signed them (Unix
    seconds; left out: just now). `lifetime_s`: for how long it was signed.
    """

    client_id: str
    action: Action
    label: str
    kind: Kind | None = None
    blind: bool = False
    derivation_path: tuple[int, ...] = ()
    decoded: Decoded | None = None
    signatures: int = 1
    approvers: frozenset[str] = frozenset()
    approved_at_s: Mapping[str, int] = {}
    lifetime_s: int = 0


class Situation(msgspec.Struct, frozen=True):
    """All that a check sees beside its rule. `now_s`: Unix seconds by this signer's own clock."""

    policy: Policy
    request: Request
    counters: Counters
    now_s: int

"""What the API answers. Requests are in `policies.requests`, since enclaves parse the same structs."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ApiStruct(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Base of every answer: camelCase names."""


class KeyState(StrEnum):
    """A key is shown with its public key once it is `Active`, never before."""

    PENDING = "Pending"
    ACTIVE = "Active"
    FAILED = "Failed"
    REJECTED = "Rejected"


class SignatureState(StrEnum):
    """`Pending` → `Executing` → `Signed` | `Failed` | `Rejected` | `AwaitingApprovals`, from where another
    client's approval makes it `Pending` again, and its end `Failed` (`approvals/late`). Where too many of its client
    wait already it is `Failed` (`approvals/too-many`)."""

    PENDING = "Pending"
    EXECUTING = "Executing"
    SIGNED = "Signed"
    FAILED = "Failed"
    REJECTED = "Rejected"
    AWAITING = "AwaitingApprovals"


class Certificate(ApiStruct, frozen=True):
    """The `n` acknowledgements of a key, each the hex of an encoded `wire.SignedAcknowledgement`."""

    acknowledgements: tuple[str, ...]


class Reason(ApiStruct, frozen=True):
    """Why something failed or was rejected. `signer` is the name of the signer that said so, if one did."""

    code: str
    message: str
    signer: str = ""


class Key(ApiStruct, frozen=True):
    """A key. Before `Active`, `id`, `public_key` and `certificate` are absent."""

    request_id: str
    status: KeyState
    scheme: str
    curve: str
    signers: int
    tolerate: int
    scheme_statement: str
    label: str
    external_id: str
    created_at: str
    id: str | None = None
    public_key: str | None = None
    chain_code: str | None = None
    certificate: Certificate | None = None
    reason: Reason | None = None


class KeyList(ApiStruct, frozen=True):
    """One page of keys, oldest first."""

    items: tuple[Key, ...]
    next_cursor: str | None = None


class SignatureValue(ApiStruct, frozen=True):
    """A low-s ECDSA signature. All hex strings have a 0x prefix; `rsv` is 65 bytes r‖s‖recid."""

    r: str
    s: str
    recid: int
    der: str
    rsv: str
    public_key: str
    hash: str


class Signature(ApiStruct, frozen=True):
    """A signing request and where it stands."""

    id: str
    key_id: str
    status: SignatureState
    kind: str
    derivation_path: tuple[int, ...]
    external_id: str
    created_at: str
    signature: SignatureValue | None = None
    reason: Reason | None = None


class SignatureList(ApiStruct, frozen=True):
    """One page of a key's signing requests, oldest first."""

    items: tuple[Signature, ...]
    next_cursor: str | None = None


class Health(ApiStruct, frozen=True):
    """Whether signatures can be made now: `ready` or `degraded`. To readers alone: `trouble` says why not; `online`:
    names of signers; `presignatures`: how many there are of each committee, which is named by its indices."""

    status: str
    trouble: str = ""
    online: tuple[str, ...] = ()
    presignatures: dict[str, int] = msgspec.field(default_factory=dict)


class Readiness(ApiStruct, frozen=True):
    """Signatures can be made now; where not, a problem is shown. To readers alone: the committees that can sign, each
    as the indices of its members."""

    committees: tuple[tuple[int, ...], ...] = ()


class Announced(ApiStruct, frozen=True):
    """What an enclave said of itself when its signer connected; `prss_epoch` (0 before setup) and policy are followed.

    `policy_digest`: 0x and the 32-byte digest of the operator's policy. `gate_mode`: `signed`, `status` or `none`.
    """

    prss_epoch: int
    gate_mode: str
    policy_digest: str
    signer_version: str
    enclave_version: str


class Condition(ApiStruct, frozen=True):
    """How a signer finds its enclave and gate, told every few seconds. `enclave`: `ready`, `waiting`, `hsm-away` or
    `silent`; `reason` says why it is not ready. `gate`: whether the operator's handler answered the last call,
    `answers` or `unreachable`; `unknown` before the first one. `clock_ahead_s`: by how many seconds its host's clock
    was ahead of the coordinator's, negative where it was behind; absent where it was not told."""

    enclave: str
    reason: str
    gate: str
    clock_ahead_s: int | None = None


class PolicyInForce(ApiStruct, frozen=True):
    """A signer's policy. `digest`: 0x and 32 bytes; `loaded_at`: when its enclave read it; `trouble`: why one that was
    read later is not in force, empty where none was. `differs`: another signer that is online has another policy, which
    it may: each decides by its own."""

    digest: str
    loaded_at: str
    trouble: str
    differs: bool


class Frozen(ApiStruct, frozen=True):
    """What a signer is frozen for: labels that match `pattern`, `**` being everything. `operator`: whose order it was,
    empty for the enclave's own doing; `since`: when it was made."""

    pattern: str
    operator: str
    since: str
    reason: str


class Convicted(ApiStruct, frozen=True):
    """Of what a signer was convicted (`step` of the protocols' specification), when, by the enclaves of which signers,
    and the digest that names their files of evidence; empty where none could be kept."""

    at: str
    ceremony: str
    step: str
    reason: str
    by: tuple[str, ...]
    evidence: str


class Signer(ApiStruct, frozen=True):
    """A signer of the roster. `links`: names of the signers its enclave says it has a channel to. `announced` and
    `condition` are absent while it is away. `since`: when it came, or went; absent where it was not there since the
    coordinator's start. `away_reason`: why it is away, as far as the coordinator knows. `convicted`: it broke a
    protocol, and is left out of committees where enough others are there. `policy`: the one in force, absent until
    it is told; `frozen`: what it refuses by its operators' order. All this is the coordinator's
    word: no enclave has signed it for the reader."""

    index: int
    name: str
    operator: str
    fingerprint: str
    online: bool
    links: tuple[str, ...]
    announced: Announced | None = None
    condition: Condition | None = None
    since: str | None = None
    away_reason: str = ""
    certificate_expires: str | None = None
    convicted: Convicted | None = None
    policy: PolicyInForce | None = None
    frozen: tuple[Frozen, ...] = ()


class SignerList(ApiStruct, frozen=True):
    """All signers of the roster, in its order; always one page."""

    items: tuple[Signer, ...]


class Pool(ApiStruct, frozen=True):
    """The presignatures of one committee, given by its members' indices. Below `low` it is filled up to `high`, where
    it is `kept_filled`; other pools are used up. `ready`: the members can sign together now. `filling`: a batch is
    being made. `failure`: why the last batch failed; empty where it did not. `spent_per_s`: over the last minute;
    `seconds_to_empty`: at that rate and without a refill, absent where nothing is spent. `filled_per_s`: how fast the
    last whole batch was made. `busiest_minute`: most spent in one minute since the coordinator's start.
    `recommended_low`, `recommended_high`: marks for this pool's part of the burst that was asked about, at most
    what the signers' memory allows."""

    committee: tuple[int, ...]
    available: int
    low: int
    high: int
    kept_filled: bool
    ready: bool
    filling: bool = False
    failure: str = ""
    spent_per_s: float = 0.0
    seconds_to_empty: float | None = None
    filled_per_s: float | None = None
    busiest_minute: int = 0
    recommended_low: int = 0
    recommended_high: int = 0


class PoolList(ApiStruct, frozen=True):
    """The pools of this coordinator that are kept filled, hold something or gave something in the last minute, in order
    of their committees; always one page. `waiting`: requests that wait for a presignature. `burst`: for how many
    signatures at once marks are recommended: as asked, else the busiest minute of each pool."""

    items: tuple[Pool, ...]
    waiting: int = 0
    burst: int | None = None


class CertificateExpiry(ApiStruct, frozen=True):
    """A certificate that the coordinator shows or trusts: its file's name and when it ends."""

    file: str
    expires: str


class Coordinator(ApiStruct, frozen=True):
    """The coordinator itself. `time`: its clock. `trouble` and `remedy`: why nothing can be signed now and what to do,
    empty where something can. `avoided`: names of the signers that are left out of committees for a while, since they
    failed or were slow. `awaiting_approvals`: requests that await other clients' approvals."""

    name: str
    network: str
    version: str
    roster_digest: str
    time: str
    started_at: str
    trouble: str
    remedy: str
    avoided: tuple[str, ...]
    certificates: tuple[CertificateExpiry, ...]
    awaiting_approvals: int = 0


class Problem(ApiStruct, frozen=True):
    """An error as RFC 9457 problem document (`application/problem+json`); `code` is stable, `requestId` finds the
    request in logs."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str = ""

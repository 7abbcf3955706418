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
    """`Pending` → `Executing` → `Signed` | `Failed` | `Rejected`."""

    PENDING = "Pending"
    EXECUTING = "Executing"
    SIGNED = "Signed"
    FAILED = "Failed"
    REJECTED = "Rejected"


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


class Problem(ApiStruct, frozen=True):
    """An error as RFC 9457 problem document (`application/problem+json`); `code` is stable."""

    type: str
    title: str
    status: int
    code: str
    detail: str

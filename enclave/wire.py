"""The socket between signer and enclave: every message that exists on it, and the codec of all wire structs.

A frame is a 4-byte big-endian length and one message. A message is one msgpack array whose first element is its
type; it is refused unless it is the canonical encoding of what it decodes to. There is no message that exports a
share, and none that signs a digest outside the signing flow.

Who says what:

- signer → enclave: `Attach` first, then `Presence`, `PeerFrame`, `Order`, `GateReply`, `GateUnreachable`,
  `Stored`, `StatusQuery`, `StopOrders`, `AuditPage`;
- enclave → signer: `Attached` first, then `ToPeer`, `Report`, `Store`, `CallGate`, `Audit`, `Status`, `EvidencePart`,
  `Stopped`, `WantAudit`.

`Order`s come from a coordinator, `Report`s go back to it, `PeerFrame`/`ToPeer` carry opaque frames between
enclaves. The signer reads of an order only `key_id` (to attach the sealed record) and alters nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from enclave.errors import Malformed as Malformed  # the appliance imports it from here
from policies.requests import MAX_HASHES
from policies.roster import MAX_SIGNERS, Index, Name
from policies.transcript import Tag, digest

PROTOCOL_VERSION: Final = 1
MAX_PEER_FRAME_BYTES: Final = 2 * 1024 * 1024
MAX_MESSAGE_BYTES: Final = MAX_PEER_FRAME_BYTES + 64 * 1024
LENGTH_BYTES: Final = 4
MAX_BODY_BYTES: Final = 128 * 1024
MAX_GATE_BODY_BYTES: Final = 64 * 1024
MAX_GATE_REQUEST_BYTES: Final = 512 * 1024
EVIDENCE_PART_BYTES: Final = 1024 * 1024
MAX_EVIDENCE_PARTS: Final = 49
MAX_BATCH: Final = 16_384
# What one enclave holds at most, of all committees and coordinators.
MAX_PRESIGNATURES: Final = 200_000
MAX_KEYS_PER_CEREMONY: Final = 64
# An enclave ends a ceremony after so long, and finding out who broke one after as long again.
CEREMONY_DEADLINE_S: Final = 60.0
MAX_STATUS_VALUES: Final = 1024
# What an enclave may be frozen for at once (SPEC 4.11), and who may sign one order.
MAX_FREEZES: Final = 64
MAX_STOP_SIGNATURES: Final = 16
MAX_APPROVALS: Final = 16
# In one message. All of them as large as they may be still fit into it.
MAX_AUDIT_ENTRIES: Final = 256
# Sealed records of the counters (SPEC 7.5), all in one message.
MAX_COUNTER_RECORDS: Final = 32
# Upper bounds of what `Status.durations` counts, in microseconds: 10 µs to 60 s.
DURATION_BOUNDS_US: Final = (
    *(10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
    *(1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000),
)

Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Point33 = Annotated[bytes, msgspec.Meta(min_length=33, max_length=33)]
Signature64 = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Epoch = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
# Until the year 6300: all of them can be shown as dates.
UnixSeconds = Annotated[int, msgspec.Meta(ge=0, le=2**37)]
UnixMilliseconds = Annotated[int, msgspec.Meta(ge=0, le=2**47)]
Buckets = Annotated[tuple[Count, ...], msgspec.Meta(min_length=23, max_length=23)]
RoundNumber = Annotated[int, msgspec.Meta(ge=0, le=9)]
ShortText = Annotated[str, msgspec.Meta(max_length=512)]
Committee = Annotated[tuple[Index, ...], msgspec.Meta(min_length=3, max_length=MAX_SIGNERS)]
# Some of the signers, or none.
Signers = Annotated[tuple[Index, ...], msgspec.Meta(max_length=MAX_SIGNERS)]
DerivationPath = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)], ...], msgspec.Meta(max_length=10)]
KeyId = Annotated[str, msgspec.Meta(pattern=r"^key_[0-9a-f]{32}$(?!\n)")]
# What a client or a coordinator calls a request in logs. Nothing vouches for it: the request's digest names it.
REQUEST_ID: Final = r"[A-Za-z0-9][A-Za-z0-9._:=-]{7,63}"
RequestId = Annotated[str, msgspec.Meta(pattern=rf"^({REQUEST_ID})?$(?!\n)")]
Jws = Annotated[str, msgspec.Meta(max_length=4096)]
Label = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,95}$(?!\n)")]
RecordKind = Literal["key", "prss", "peers", "counters"]
SealedBytes = Annotated[bytes, msgspec.Meta(max_length=64 * 1024)]


class Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of everything that is encoded with `encode` and decoded with `decode`."""


# --- Pieces that several messages carry ---


class Record(Wire, frozen=True):
    """A sealed record as the signer's store keeps it: opaque to the signer. `name`: a key id, `prss`, `peers` or
    `counters-0` to `counters-31`."""

    kind: RecordKind
    name: Annotated[str, msgspec.Meta(max_length=64)]
    version: Count
    sealed: SealedBytes


class AuditEntry(Wire, frozen=True):
    """One link of the audit chain: `hash = H(previous, seq, body)`; `head_signature` (64 bytes) or empty."""

    seq: Count
    body: Annotated[bytes, msgspec.Meta(max_length=8192)]
    hash: Bytes32
    head_signature: Annotated[bytes, msgspec.Meta(max_length=64)]


class ClientRequest(Wire, frozen=True):
    """A client's request exactly as it came: method, path, body bytes, and the detached JWS over the body.

    `request_id` is for logs alone, and no part of the digest. Neither are `approvals`: detached JWS of other clients
    over the same body and path (SPEC 4.13), which may come after it.
    """

    method: Annotated[str, msgspec.Meta(max_length=8)]
    path: Annotated[str, msgspec.Meta(max_length=256)]
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_BODY_BYTES)]
    jws: Jws
    request_id: RequestId = ""
    approvals: Annotated[tuple[Jws, ...], msgspec.Meta(max_length=MAX_APPROVALS)] = ()

    def digest(self, network: str) -> bytes:
        """32 bytes naming this request: what authorizations and reports refer to.

        Holds all that is signed (the JWS's protected header with its `jti`, and the body) but not the signature: an
        ECDSA signature has a second valid form, which must not be a second request.
        """
        return digest(
            Tag.CLIENT_REQUEST,
            network.encode(),
            self.method.encode(),
            self.path.encode(),
            self.body,
            self.jws.partition(".")[0].encode(),
        )


class SignedNonce(Wire, frozen=True):
    """A member's fresh ceremony nonce (SPEC 0.4, 3.1), signed with its frame key; serves one ceremony."""

    index: Index
    purpose: Annotated[str, msgspec.Meta(pattern=r"^(setup|keygen|presign)$(?!\n)")]
    boot_nonce: Bytes32
    nonce: Bytes32
    signature: Signature64


Nonces = Annotated[tuple[SignedNonce, ...], msgspec.Meta(max_length=MAX_SIGNERS)]


class PresignatureName(Wire, frozen=True):
    """`(sid, l)`: one presignature of one batch."""

    sid: Bytes32
    index: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)]


class Acknowledgement(Wire, frozen=True):
    """SPEC 2.4: what signer `index` holds of a key. All `n` of them, signed, are the key's certificate.

    Points are compressed secp256k1; `public_shares[j-1]` is `X_j`.
    """

    network: Name
    roster_digest: Bytes32
    key_id: KeyId
    label: Label
    curve: Literal["secp256k1"]
    public_key: Point33
    public_shares: Annotated[tuple[Point33, ...], msgspec.Meta(max_length=MAX_SIGNERS)]
    chain_code: Bytes32
    tolerate: Annotated[int, msgspec.Meta(ge=1, le=7)]
    key_epoch: Epoch
    index: Index

    def digest(self) -> bytes:
        """The 32-byte digest that the HSM identity key signs."""
        return digest(Tag.ACKNOWLEDGEMENT, encode(self))


class SignedAcknowledgement(Wire, frozen=True):
    """An acknowledgement and its ECDSA P-256 signature (raw r‖s over the digest, by the HSM identity key)."""

    acknowledgement: Acknowledgement
    signature: Signature64


Certificate = Annotated[tuple[SignedAcknowledgement, ...], msgspec.Meta(min_length=3, max_length=MAX_SIGNERS)]


class AuthorizationTerms(Wire, frozen=True):
    """SPEC 4.1: what all committee members must say identically before anybody computes a signature share."""

    scheme: Literal["KU25"]
    curve: Literal["secp256k1"]
    roster_digest: Bytes32
    prss_epoch: Epoch
    key_epoch: Epoch
    key_id: KeyId
    public_key: Point33
    path: DerivationPath
    h: Bytes32
    request_digest: Bytes32
    committee: Committee
    presignature: PresignatureName


class Authorization(Wire, frozen=True):
    """SPEC 4.1: member `index` lets these terms be signed, once, until `expires_at_s` (Unix seconds)."""

    terms: AuthorizationTerms
    index: Index
    boot_nonce: Bytes32
    rho: Bytes32
    expires_at_s: Count


class SignedAuthorization(Wire, frozen=True):
    """An authorization and its Ed25519 signature by the member's frame key of this boot."""

    authorization: Authorization
    signature: Signature64


class BatchItem(Wire, frozen=True):
    """SPEC 4.7: one hash of a batch, the path of the key it is signed with, and the presignature for it alone."""

    path: DerivationPath
    h: Bytes32
    presignature: PresignatureName


class BatchTerms(Wire, frozen=True):
    """SPEC 4.7: what all committee members must say identically of a batch. `items` is `batch_items_digest`."""

    scheme: Literal["KU25"]
    curve: Literal["secp256k1"]
    roster_digest: Bytes32
    prss_epoch: Epoch
    key_epoch: Epoch
    key_id: KeyId
    public_key: Point33
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_HASHES)]
    items: Bytes32
    request_digest: Bytes32
    committee: Committee


class BatchAuthorization(Wire, frozen=True):
    """SPEC 4.7: member `index` lets this batch be signed, once, until `expires_at_s` (Unix seconds)."""

    terms: BatchTerms
    index: Index
    boot_nonce: Bytes32
    rho: Bytes32
    expires_at_s: Count


class SignedBatchAuthorization(Wire, frozen=True):
    """A batch's authorization and its Ed25519 signature by the member's frame key of this boot."""

    authorization: BatchAuthorization
    signature: Signature64


class BatchState(Wire, frozen=True):
    """What is left of one batch of presignatures: bit `l-1` of `remaining` (little-endian) is presignature `l`."""

    sid: Bytes32
    committee: Committee
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)]
    remaining: Annotated[bytes, msgspec.Meta(max_length=MAX_BATCH // 8)]


# --- Orders: coordinator → enclave ---
# `ceremony` is the coordinator's own name for what it runs; reports echo it. It authenticates nothing.


class PrepareOrder(Wire, frozen=True, tag=1):
    """Asks for one signed nonce for a ceremony of `purpose`. Answer: `NonceReport`."""

    ceremony: Bytes16
    purpose: Annotated[str, msgspec.Meta(pattern=r"^(setup|keygen|presign)$(?!\n)")]


class SetupOrder(Wire, frozen=True, tag=2):
    """SPEC 1, all n signers: PRSS seeds of epoch `epoch`. Answer: `SetupDone` or `CeremonyFailed`."""

    ceremony: Bytes16
    epoch: Epoch
    nonces: Nonces


class KeygenOrder(Wire, frozen=True, tag=3):
    """SPEC 2, all n signers: one key for each request. Answer: `KeysAcknowledged`, then `KeysActivated`; or `Recalled`,
    unless `after` is the ceremony of what was answered under the request's name."""

    ceremony: Bytes16
    requests: Annotated[tuple[ClientRequest, ...], msgspec.Meta(min_length=1, max_length=MAX_KEYS_PER_CEREMONY)]
    nonces: Nonces
    after: Bytes16 | None = None


class PresignOrder(Wire, frozen=True, tag=4):
    """SPEC 3, the committee: `count` presignatures. Answer: `PresignDone` or `CeremonyFailed`."""

    ceremony: Bytes16
    committee: Committee
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)]
    nonces: Nonces


class SignOrder(Wire, frozen=True, tag=5):
    """SPEC 4.1: a client's signing request. Answer: `Authorized`, `RequestRefused`, `GatePending` or
    `UnknownPresignature`. Sent again with the same request it is the next attempt (three at most).

    Where something was answered under the request's name (SPEC 4.10), the answer is `Recalled` instead, unless
    `after` is that answer's ceremony: then it came to nothing elsewhere."""

    ceremony: Bytes16
    key_id: KeyId
    request: ClientRequest
    committee: Committee
    presignature: PresignatureName
    after: Bytes16 | None = None


class OnlineOrder(Wire, frozen=True, tag=6):
    """SPEC 4.2: the authorizations of all of the committee. Answer: `ShareReport` or `OnlineRefused`."""

    ceremony: Bytes16
    key_id: KeyId
    authorizations: Annotated[tuple[SignedAuthorization, ...], msgspec.Meta(min_length=3, max_length=MAX_SIGNERS)]


class AbandonOrder(Wire, frozen=True, tag=7):
    """The attempt of `ceremony` failed elsewhere: forget its unused authorization. No answer."""

    ceremony: Bytes16


class ActivateOrder(Wire, frozen=True, tag=8):
    """SPEC 2.4: a key's certificate, relayed by anyone. Answer: `KeysActivated` or `OrderRefused`."""

    ceremony: Bytes16
    key_id: KeyId
    acknowledgements: Certificate


class ForgetBatchOrder(Wire, frozen=True, tag=9):
    """A member has lost batch `sid`: the others may free theirs (SPEC 3.5). Answer: a `Pools` report."""

    ceremony: Bytes16
    sid: Bytes32


class PoolsOrder(Wire, frozen=True, tag=10):
    """Asks which presignatures of this coordinator's batches are left. Answer: `Pools`."""

    ceremony: Bytes16


class BatchSignOrder(Wire, frozen=True, tag=11):
    """SPEC 4.7: a client's request for a batch, with a presignature for each hash, in order, none twice. Answer:
    `BatchAuthorized`, `RequestRefused`, `GatePending` or `UnknownPresignatures`. Attempts as with `SignOrder`."""

    ceremony: Bytes16
    key_id: KeyId
    request: ClientRequest
    committee: Committee
    presignatures: Annotated[tuple[PresignatureName, ...], msgspec.Meta(min_length=1, max_length=MAX_HASHES)]
    after: Bytes16 | None = None


class BatchOnlineOrder(Wire, frozen=True, tag=12):
    """SPEC 4.8: the batch's authorizations of all of the committee. Answer: `BatchShareReport` or `OnlineRefused`."""

    ceremony: Bytes16
    key_id: KeyId
    authorizations: Annotated[tuple[SignedBatchAuthorization, ...], msgspec.Meta(min_length=3, max_length=MAX_SIGNERS)]


class RecallOrder(Wire, frozen=True, tag=13):
    """SPEC 4.10: what did this signer answer last under the name of `request`? What it has authorised under that name
    and not answered yet is withdrawn. Answer: `Recalled` or `RequestRefused`."""

    ceremony: Bytes16
    request: ClientRequest


class ConsentOrder(Wire, frozen=True, tag=14):
    """SPEC 6.11: may the key be made that `request` asks for? Asked of every signer before its `KeygenOrder`. Answer:
    `Consented`, `GatePending`, `RequestRefused`, or `Recalled` as of `KeygenOrder`."""

    ceremony: Bytes16
    request: ClientRequest
    after: Bytes16 | None = None


OrderBody = (
    PrepareOrder
    | SetupOrder
    | KeygenOrder
    | PresignOrder
    | SignOrder
    | OnlineOrder
    | AbandonOrder
    | ActivateOrder
    | ForgetBatchOrder
    | PoolsOrder
    | BatchSignOrder
    | BatchOnlineOrder
    | RecallOrder
    | ConsentOrder
)


# --- Reports: enclave → coordinator ---


class NonceReport(Wire, frozen=True, tag=1):
    """Answer to `PrepareOrder`."""

    ceremony: Bytes16
    nonce: SignedNonce


class LinkReport(Wire, frozen=True, tag=2):
    """The end-to-end channel with `peer` came up or went down (`reason` says why, `""` when up)."""

    peer: Index
    up: bool
    reason: ShortText


class SetupDone(Wire, frozen=True, tag=3):
    """PRSS seeds of `epoch` are sealed and stored; older ones and their pools are gone."""

    ceremony: Bytes16
    epoch: Epoch


class KeysAcknowledged(Wire, frozen=True, tag=4):
    """SPEC 2.4: the share is stored as pending and this signer's acknowledgements are out (one a key)."""

    ceremony: Bytes16
    acknowledgements: Annotated[tuple[SignedAcknowledgement, ...], msgspec.Meta(max_length=MAX_KEYS_PER_CEREMONY)]


class KeysActivated(Wire, frozen=True, tag=5):
    """The certificates of these keys verified here and the keys can be used. Carries every certificate."""

    ceremony: Bytes16
    certificates: Annotated[tuple[Certificate, ...], msgspec.Meta(max_length=MAX_KEYS_PER_CEREMONY)]


class PresignDone(Wire, frozen=True, tag=6):
    """Batch `sid` is in this enclave's pool, confirmed by the whole committee."""

    ceremony: Bytes16
    sid: Bytes32
    committee: Committee
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)]


class CeremonyFailed(Wire, frozen=True, tag=7):
    """A ceremony ended here without a result, or one that had one was called back (SPEC 0.9). `kind` is `link`,
    `peer`, `caller`, `unavailable`, `refused` or `timeout`; `culprits` are convicted; `suspects` is a link's peer or a
    silent member; `round` is the one whose messages were awaited last, 0 for none; `group`: where seeds differ, the
    group in which somebody cheated."""

    ceremony: Bytes16
    kind: Annotated[str, msgspec.Meta(pattern=r"^(link|peer|caller|unavailable|refused|timeout)$(?!\n)")]
    step: ShortText
    reason: ShortText
    culprits: Signers
    suspects: Signers
    round: RoundNumber = 0
    group: Signers = ()


class Authorized(Wire, frozen=True, tag=8):
    """SPEC 4.1 done: policy and gate said yes."""

    ceremony: Bytes16
    authorization: SignedAuthorization


class RequestRefused(Wire, frozen=True, tag=9):
    """Policy, gate or the enclave's own rules said no. `rule` is a stable code such as `gate` or
    `policy/blind`; no presignature was consumed."""

    ceremony: Bytes16
    rule: ShortText
    reason: ShortText


class GatePending(Wire, frozen=True, tag=10):
    """The gate has not decided (202): asked again until `deadline_s` (Unix seconds)."""

    ceremony: Bytes16
    deadline_s: Count


class UnknownPresignature(Wire, frozen=True, tag=11):
    """This enclave does not hold `presignature`: name another. The approval stays."""

    ceremony: Bytes16
    presignature: PresignatureName


class ShareReport(Wire, frozen=True, tag=12):
    """SPEC 4.2: the member's share `s_j`, 32 bytes big-endian. The presignature is gone here."""

    ceremony: Bytes16
    index: Index
    r_point: Point33
    s: Bytes32


class OnlineRefused(Wire, frozen=True, tag=13):
    """SPEC 4.2 refused. `spent` says whether this enclave's copy of the presignature is gone."""

    ceremony: Bytes16
    reason: ShortText
    spent: bool


class OrderRefused(Wire, frozen=True, tag=14):
    """Any other order that cannot be carried out, and why. Nothing has changed."""

    ceremony: Bytes16
    reason: ShortText


class Pools(Wire, frozen=True, tag=15):
    """All batches that this coordinator ordered and that are still held here."""

    batches: Annotated[tuple[BatchState, ...], msgspec.Meta(max_length=256)]


class BatchAuthorized(Wire, frozen=True, tag=16):
    """SPEC 4.7 done: policy and gate said yes to the whole batch."""

    ceremony: Bytes16
    authorization: SignedBatchAuthorization


class UnknownPresignatures(Wire, frozen=True, tag=17):
    """This enclave holds none of these presignatures of a batch: name others. The approval stays."""

    ceremony: Bytes16
    presignatures: Annotated[tuple[PresignatureName, ...], msgspec.Meta(min_length=1, max_length=MAX_HASHES)]


class BatchShareReport(Wire, frozen=True, tag=18):
    """SPEC 4.9: the member's shares of the whole batch, in its order. All its presignatures are gone here."""

    ceremony: Bytes16
    index: Index
    r_points: Annotated[tuple[Point33, ...], msgspec.Meta(min_length=1, max_length=MAX_HASHES)]
    s: Annotated[tuple[Bytes32, ...], msgspec.Meta(min_length=1, max_length=MAX_HASHES)]


class Convicted(Wire, frozen=True, tag=19):
    """This enclave has convicted `culprits` in a ceremony, or named a `group` in which somebody cheated (SPEC 0.11).
    `evidence`: the digest by which the signer's file is named. It proves nothing to the coordinator by itself."""

    ceremony: Bytes16
    kind: Annotated[str, msgspec.Meta(pattern=r"^(setup|keygen|presign)$(?!\n)")]
    context: Bytes32
    step: ShortText
    reason: ShortText
    culprits: Signers
    group: Signers
    evidence: Bytes32


class Kept(Wire, frozen=True):
    """SPEC 4.10: what an answer is to. `name`: of the client's external id; `body`: digest of what it asked for;
    `request`: digest of the request as signed; `committee`: whose answers belong together."""

    name: Bytes32
    body: Bytes32
    request: Bytes32
    committee: Committee


KeptReport = ShareReport | BatchShareReport | KeysAcknowledged | KeysActivated


class Answer(Wire, frozen=True):
    """SPEC 4.10: a report that may have left this signer, and to what it was the answer. Nothing in it is secret."""

    kept: Kept
    report: KeptReport


class Recalled(Wire, frozen=True, tag=20):
    """SPEC 4.10: the last answer under the request's name; None where there was none."""

    ceremony: Bytes16
    answer: Answer | None


class Consented(Wire, frozen=True, tag=21):
    """SPEC 6.11: policy and gate say yes to the key."""

    ceremony: Bytes16


ReportBody = (
    NonceReport
    | LinkReport
    | SetupDone
    | KeysAcknowledged
    | KeysActivated
    | PresignDone
    | CeremonyFailed
    | Authorized
    | RequestRefused
    | GatePending
    | UnknownPresignature
    | ShareReport
    | OnlineRefused
    | OrderRefused
    | Pools
    | BatchAuthorized
    | UnknownPresignatures
    | BatchShareReport
    | Convicted
    | Recalled
    | Consented
)


# --- Signer → enclave ---


class Attach(Wire, frozen=True, tag=1):
    """First message. Hands over what the store holds for the whole network and where the audit chain ends.

    `prss` is the sealed record of the PRSS seeds, None before the first setup; `peers` that of what was seen of peers
    (SPEC 0.7), None before the first link; `counters` those of what was signed within limits (SPEC 7.5), as many as
    there are. An empty chain has `audit_seq = 0` and 32 zero bytes.
    """

    protocol: int
    signer_version: ShortText
    prss: Record | None
    peers: Record | None
    audit_seq: Count
    audit_head: Bytes32
    counters: Annotated[tuple[Record, ...], msgspec.Meta(max_length=MAX_COUNTER_RECORDS)] = ()


class Presence(Wire, frozen=True, tag=2):
    """Which signers `coordinator` can reach now. An empty tuple: the connection to it is down."""

    coordinator: Name
    online: Signers


class PeerFrame(Wire, frozen=True, tag=3):
    """An opaque frame that `coordinator` says came from `sender`."""

    coordinator: Name
    sender: Index
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_PEER_FRAME_BYTES)]


class Order(Wire, frozen=True, tag=4):
    """A coordinator's order; `key` is the stored record of `body.key_id` where the order has one, `answer` what the
    store keeps under the name of its request."""

    coordinator: Name
    body: OrderBody
    key: Record | None
    answer: Answer | None = None


class GateReply(Wire, frozen=True, tag=5):
    """What the operator's handler answered to `CallGate` `uid`, verbatim. Absent headers are empty strings."""

    uid: ShortText
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    webhook_id: ShortText
    webhook_timestamp: ShortText
    webhook_signature: Annotated[str, msgspec.Meta(max_length=2048)]
    retry_after_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)]
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_GATE_BODY_BYTES)]


class GateUnreachable(Wire, frozen=True, tag=6):
    """The call got no answer that may be shown to the enclave: `reason`, never an approval. `code`: the handler was
    not reached (`connect`), its TLS was refused by either side (`tls`), it was too slow (`timeout`), it answered with
    a redirect (`redirect`), with more than `MAX_GATE_BODY_BYTES` (`too-large`), not in HTTP or with headers that
    nobody could read (`http`); the signer has too many calls waiting (`busy`), no gate (`not-configured`), or no
    client certificate where the mode needs one (`no-mtls`)."""

    uid: ShortText
    reason: ShortText
    code: Annotated[
        str,
        msgspec.Meta(pattern=r"^(connect|tls|timeout|redirect|too-large|http|busy|not-configured|no-mtls)$(?!\n)"),
    ] = "connect"


class Stored(Wire, frozen=True, tag=7):
    """The records of `Store` `ticket` are on disk."""

    ticket: Count


class StatusQuery(Wire, frozen=True, tag=8):
    """Answer: `Status`."""


class StopOrders(Wire, frozen=True, tag=9):
    """SPEC 4.11: an order to freeze or unfreeze, as operators signed it: one compact JWS each. Answer: `Stopped`."""

    ticket: Count
    signatures: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=16 * 1024)], ...],
        msgspec.Meta(min_length=1, max_length=MAX_STOP_SIGNATURES),
    ]


class AuditPage(Wire, frozen=True, tag=10):
    """Answer to `WantAudit`: the stored entries after that number, in order, as many as fit; none where there are none
    or they cannot be read."""

    entries: Annotated[tuple[AuditEntry, ...], msgspec.Meta(max_length=MAX_AUDIT_ENTRIES)]


ToEnclave = (
    Attach | Presence | PeerFrame | Order | GateReply | GateUnreachable | Stored | StatusQuery | StopOrders | AuditPage
)


# --- Enclave → signer ---


class Attached(Wire, frozen=True, tag=1):
    """Answer to `Attach`: who this enclave is. `gate_mode`: `signed`, `status` or `none`."""

    protocol: int
    enclave_version: ShortText
    network: Name
    index: Index
    name: Name
    fingerprint: ShortText
    roster_digest: Bytes32
    policy_digest: Bytes32
    gate_mode: Annotated[str, msgspec.Meta(pattern=r"^(signed|status|none)$(?!\n)")]
    boot_nonce: Bytes32
    prss_epoch: Epoch


class ToPeer(Wire, frozen=True, tag=2):
    """An opaque frame for `receiver`, through `coordinator`'s control or bulk connection."""

    coordinator: Name
    receiver: Index
    bulk: bool
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_PEER_FRAME_BYTES)]


class Report(Wire, frozen=True, tag=3):
    """A report for `coordinator`. `audit` must be committed *before* the report leaves the signer, and with it, where
    `kept` is not None, the report as the newest answer of that name (SPEC 4.10)."""

    coordinator: Name
    body: ReportBody
    audit: Annotated[tuple[AuditEntry, ...], msgspec.Meta(max_length=MAX_AUDIT_ENTRIES)]
    kept: Kept | None = None


class Store(Wire, frozen=True, tag=4):
    """Commit these records (replacing older versions of the same kind and name), then answer `Stored`: it says that all
    that was to be committed before is on disk too. Without records that is all it asks."""

    ticket: Count
    records: Annotated[tuple[Record, ...], msgspec.Meta(max_length=MAX_KEYS_PER_CEREMONY)]


class CallGate(Wire, frozen=True, tag=5):
    """One HTTP exchange with the operator's handler, exactly as given; no retry by the signer.

    `webhook_signature`: empty where the request is not signed, which only mode `status` allows. `request_id` goes into
    a header that nothing is decided by.
    """

    uid: ShortText
    webhook_id: ShortText
    webhook_timestamp: ShortText
    webhook_signature: Annotated[str, msgspec.Meta(max_length=2048)]
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_GATE_REQUEST_BYTES)]
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)]
    request_id: RequestId = ""


class Audit(Wire, frozen=True, tag=6):
    """Audit entries that go with no report."""

    entries: Annotated[tuple[AuditEntry, ...], msgspec.Meta(max_length=MAX_AUDIT_ENTRIES)]


class Freeze(Wire, frozen=True):
    """SPEC 4.11: what is frozen: labels that match `pattern`, `**` being everything. By `operator`'s order (empty: by
    the enclave itself) with this serial, which is when it was made in Unix milliseconds."""

    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=96)]
    operator: Annotated[str, msgspec.Meta(max_length=64)]
    serial: UnixMilliseconds
    reason: ShortText


Freezes = Annotated[tuple[Freeze, ...], msgspec.Meta(max_length=MAX_FREEZES)]


class Stopped(Wire, frozen=True, tag=9):
    """Answer to `StopOrders`: what is frozen now, and the last order's serial. `refused`: why the order was not carried
    out, empty where it was; a freeze that holds but could not be written says so there."""

    ticket: Count
    refused: ShortText
    serial: Count
    freezes: Freezes


class PolicyTold(Wire, frozen=True):
    """The policy in force: its digest, and when it was read (Unix seconds). `trouble`: why what was read later is not
    in force, empty where it is."""

    digest: Bytes32 = bytes(32)
    loaded_at_s: UnixSeconds = 0
    trouble: ShortText = ""


class Status(Wire, frozen=True, tag=7):
    """Counters and state, nothing secret. A name is a family, then its labels' values, joined by `|`.

    `counters` are monotonic since boot; `gauges` are present values; `durations`: how many took up to each of
    `DURATION_BOUNDS_US`, how many longer, and the sum in microseconds.
    """

    state: Annotated[str, msgspec.Meta(pattern=r"^(ready|waiting|hsm-away)$(?!\n)")]
    reason: ShortText
    counters: Annotated[dict[ShortText, Count], msgspec.Meta(max_length=MAX_STATUS_VALUES)]
    gauges: Annotated[dict[ShortText, Count], msgspec.Meta(max_length=MAX_STATUS_VALUES)]
    durations: Annotated[dict[ShortText, Buckets], msgspec.Meta(max_length=MAX_STATUS_VALUES)]
    policy: PolicyTold = PolicyTold()
    freezes: Freezes = ()


class EvidencePart(Wire, frozen=True, tag=8):
    """Keep this as a file (SPEC 0.12): part `number` of `count`, in order and without another file's between them.
    `evidence` is the digest of the whole, which names the file; the report that announces it comes after."""

    evidence: Bytes32
    kind: Annotated[str, msgspec.Meta(pattern=r"^(setup|keygen|presign)$(?!\n)")]
    number: Annotated[int, msgspec.Meta(ge=1, le=MAX_EVIDENCE_PARTS)]
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_EVIDENCE_PARTS)]
    data: Annotated[bytes, msgspec.Meta(max_length=EVIDENCE_PART_BYTES)]

    def __repr__(self) -> str:
        return f"EvidencePart({self.evidence.hex()}, {self.number} of {self.count}, …)"


class WantAudit(Wire, frozen=True, tag=10):
    """Read the audit chain back from after entry `after` (SPEC 7.5). Answer: `AuditPage`; one at a time."""

    after: Count


FromEnclave = Attached | ToPeer | Report | Store | CallGate | Audit | Status | EvidencePart | Stopped | WantAudit


# --- `python -m enclave rewrap`: `Record`s on standard input, one `Rewrapped` for each on standard output ---


class Rewrapped(Wire, frozen=True):
    """The record of the same place, sealed under the present sealing key: `sealed` is what it was where nothing was to
    do, or where nothing can be done for the `reason` given."""

    sealed: SealedBytes
    reason: ShortText = ""


# --- Codec ---

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[object, msgspec.msgpack.Decoder[object]] = {}


def encode(message: msgspec.Struct) -> bytes:
    """The canonical msgpack encoding of a wire struct."""
    return _encoder.encode(message)


def batch_items_digest(items: Iterable[BatchItem]) -> bytes:
    """SPEC 4.7: the 32 bytes by which a batch's terms name its hashes, paths and presignatures, in their order."""
    return digest(Tag.BATCH_ITEMS, *(encode(item) for item in items))


def decode(data: bytes, kind: type[T]) -> T:
    """Parse `data` as exactly one canonical `kind` (a wire struct or a union of them).

    Raises `Malformed`, and nothing else, on any input.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        message = decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise Malformed(f"not a valid {_kind_name(kind)}: {_shorten(error)}") from None
    if _encoder.encode(message) != data:
        raise Malformed(f"not the canonical encoding of a {_kind_name(kind)}")
    return message  # type: ignore[return-value]


def frame(message: msgspec.Struct) -> bytes:
    """`message` as it travels on the socket. Raises `Malformed` where it exceeds `MAX_MESSAGE_BYTES`."""
    data = encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise Malformed(f"message of {len(data)} bytes exceeds {MAX_MESSAGE_BYTES}")
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def _kind_name(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) else "message"


def _shorten(error: BaseException) -> str:
    return str(error)[:200]

"""The bodies of requests that change state: what a client signs, an enclave parses and a policy decides on.

One set of structs for the API's documentation, the coordinator's first look and the enclave's strict parse.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec

from policies.transcript import Tag, digest

KEYS_PATH = "/v1/keys"

LABEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,95}$(?!\n)"
KEY_ID_PATTERN = r"^key_[0-9a-f]{32}$(?!\n)"

ExternalId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}$(?!\n)")]
Path = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)], ...], msgspec.Meta(max_length=10)]
MAX_HASHES = 1000
MAX_MESSAGE_BYTES = 12 * 1024
Hash32 = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{64}$(?!\n)")]
HexBytes = Annotated[str, msgspec.Meta(pattern=r"^0x([0-9a-f]{2})*$(?!\n)", max_length=2 + 2 * 48 * 1024)]


class KeyCreation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """`POST /v1/keys`. `label` is immutable. `signers` and `tolerate` must be the roster's."""

    scheme: Annotated[str, msgspec.Meta(pattern=r"^ECDSA$(?!\n)")]
    curve: Annotated[str, msgspec.Meta(pattern=r"^secp256k1$(?!\n)")]
    signers: Annotated[int, msgspec.Meta(ge=3, le=16)]
    tolerate: Annotated[int, msgspec.Meta(ge=1, le=7)]
    label: Annotated[str, msgspec.Meta(pattern=LABEL_PATTERN)]
    external_id: ExternalId


class Hash(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", tag="Hash", tag_field="kind"):
    """Blind signing of a bare 32-byte hash: nobody but the client knows what it stands for."""

    hash: Hash32
    external_id: ExternalId
    derivation_path: Path = ()


class EthereumTransaction(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename="camel",
    tag="EthereumTransaction",
    tag_field="kind",
):
    """An unsigned transaction, parsed and hashed in the enclave: legacy with EIP-155's chain id
    (`rlp([..6 fields.., chainId, 0, 0])`), EIP-2930 (`0x01 ‖ rlp([..])`) or EIP-1559 (`0x02 ‖ rlp([..])`)."""

    transaction: HexBytes
    external_id: ExternalId
    derivation_path: Path = ()


class BitcoinBip143Preimage(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename="camel",
    tag="BitcoinBip143Preimage",
    tag_field="kind",
):
    """The BIP-143 signature-hash preimage of one input, parsed and double-hashed in the enclave."""

    preimage: HexBytes
    external_id: ExternalId
    derivation_path: Path = ()


class MessageHash(StrEnum):
    """How a message is hashed. `SHA-256d` is SHA-256 twice; `EIP-191` is Keccak-256 over Ethereum's prefix
    `0x19 ‖ "Ethereum Signed Message:\\n" ‖ length in decimal`, then the message."""

    SHA_256 = "SHA-256"
    KECCAK_256 = "Keccak-256"
    SHA_256D = "SHA-256d"
    EIP_191 = "EIP-191"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", tag="Message", tag_field="kind"):
    """A message of at most 12 KiB, hashed in the enclave. What would be another kind's payload is refused."""

    message: Annotated[str, msgspec.Meta(pattern=r"^0x([0-9a-f]{2})*$(?!\n)", max_length=2 + 2 * MAX_MESSAGE_BYTES)]
    hash: MessageHash
    external_id: ExternalId
    derivation_path: Path = ()


class TypedMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member of a struct of EIP-712: its name and its type, such as `address` or `Order[]`."""

    name: Annotated[str, msgspec.Meta(max_length=64)]
    type: Annotated[str, msgspec.Meta(max_length=128)]


class TypedData(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A document of EIP-712 as wallets take it. `types` holds `EIP712Domain` too. What else must hold of it:
    `policies.typed_data`."""

    types: Annotated[dict[str, tuple[TypedMember, ...]], msgspec.Meta(max_length=64)]
    primary_type: Annotated[str, msgspec.Meta(max_length=64)]
    domain: dict[str, Any]
    message: dict[str, Any]


class Eip712TypedData(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", tag="Eip712TypedData", tag_field="kind"
):
    """Typed data of EIP-712, checked and hashed in the enclave."""

    typed_data: TypedData
    external_id: ExternalId
    derivation_path: Path = ()


SigningBody = Hash | Message | EthereumTransaction | Eip712TypedData | BitcoinBip143Preimage


class HashBatch(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", tag="HashBatch", tag_field="kind"
):
    """`POST /v1/keys/{id}/signature-batches`: blind signing of up to 1,000 hashes, decided on once, all or none.

    `derivation_paths`: one path for all of the hashes, or one for each, in their order.
    """

    hashes: Annotated[tuple[Hash32, ...], msgspec.Meta(min_length=1, max_length=MAX_HASHES)]
    external_id: ExternalId
    derivation_paths: Annotated[tuple[Path, ...], msgspec.Meta(min_length=1, max_length=MAX_HASHES)] = ((),)

    def __post_init__(self) -> None:
        if len(self.derivation_paths) not in (1, len(self.hashes)):
            raise ValueError("derivationPaths must hold one path for all hashes, or one for each")

    def paths(self) -> tuple[tuple[int, ...], ...]:
        """The path of each hash."""
        return self.derivation_paths if len(self.derivation_paths) > 1 else self.derivation_paths * len(self.hashes)


def signatures_path(key_id: str) -> str:
    """The path a signing request is sent to, and that its JWS must name."""
    return f"{KEYS_PATH}/{key_id}/signatures"


def signature_batches_path(key_id: str) -> str:
    """The path a batch of hashes is sent to, and that its JWS must name."""
    return f"{KEYS_PATH}/{key_id}/signature-batches"


def may_wait(path: str) -> bool:
    """Whether a request to `path` may wait for approvals, and be signed for as long: one for signatures alone."""
    return path.startswith(KEYS_PATH + "/") and path.endswith(("/signatures", "/signature-batches"))


def request_name(network: str, client_id: str, external_id: str) -> bytes:
    """32 bytes naming what a client asks for under one external id, however often and wherever it asks (SPEC 4.10)."""
    return digest(Tag.REQUEST_NAME, network.encode(), client_id.encode(), external_id.encode())


def body_digest(path: str, body: bytes) -> bytes:
    """32 bytes by which two requests of one name are compared: what they ask for, and where."""
    return digest(Tag.REQUEST_BODY, path.encode(), body)

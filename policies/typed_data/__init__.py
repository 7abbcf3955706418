"""EIP-712 typed data: checked strictly and hashed. Pure; Keccak-256 is an argument. Source: EIP-712.

Here, since more than the enclave needs it: a client computes the hash that it asked for by the same code.

Stricter than wallets are, so that nobody reads a document in two ways: every type is used and no member is missing,
unknown or null; integers beyond 2^53 are strings; `uint` and `int` without a size do not exist; the domain has some of
EIP-712's own fields, in their order.
"""

from __future__ import annotations

from collections.abc import Callable

from policies.decoded import TypedDataDecoded
from policies.requests import TypedData
from policies.typed_data.types import DOMAIN, TypedDataInvalid, TypeTable
from policies.typed_data.values import Encoder

__all__ = ["TypedDataInvalid", "hash_typed_data"]


def hash_typed_data(data: TypedData, keccak256: Callable[[bytes], bytes]) -> tuple[bytes, TypedDataDecoded]:
    """Signing hash (32 bytes) and meaning of typed data. Raises `TypedDataInvalid`, and nothing else."""
    table = TypeTable(data)
    encoder = Encoder(table, keccak256)
    separator, domain = encoder.hash_struct(DOMAIN, data.domain)
    content, message = encoder.hash_struct(data.primary_type, data.message)
    said = {field.name: field.value for field in domain}
    decoded = TypedDataDecoded(
        primary_type=data.primary_type,
        encode_type=table.encode_type(data.primary_type),
        name=said.get("name"),
        version=said.get("version"),
        chain_id=said.get("chainId"),
        verifying_contract=said.get("verifyingContract"),
        salt=said.get("salt"),
        message=message,
    )
    return keccak256(b"\x19\x01" + separator + content), decoded

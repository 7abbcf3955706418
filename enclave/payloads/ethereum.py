"""Unsigned EIP-1559 transactions: `0x02 ‖ rlp([chainId, nonce, maxPriorityFeePerGas, maxFeePerGas, gasLimit, to,
value, data, accessList])`, parsed strictly and hashed here. Source: EIP-1559, EIP-2930.
"""

from __future__ import annotations

from Crypto.Hash import keccak

from enclave.errors import Refused
from enclave.payloads import rlp
from policies.model import AccessEntry, EthereumDecoded

TYPE_EIP_1559 = 2
FIELDS = 9


def parse_transaction(data: bytes) -> tuple[bytes, EthereumDecoded]:
    """Signing hash (32 bytes) and meaning of an unsigned EIP-1559 transaction. Raises `Refused`."""
    if data[:1] != bytes([TYPE_EIP_1559]):
        raise Refused("payload/ethereum", "only EIP-1559 transactions (type 2) are understood")
    fields = rlp.decode(data[1:])
    if not isinstance(fields, list) or len(fields) != FIELDS:
        raise Refused("payload/ethereum", f"an unsigned EIP-1559 transaction has {FIELDS} fields")
    decoded = EthereumDecoded(
        chain_id=rlp.integer(fields[0], "chainId"),
        nonce=rlp.integer(fields[1], "nonce", max_bytes=8),
        max_priority_fee_per_gas=rlp.integer(fields[2], "maxPriorityFeePerGas"),
        max_fee_per_gas=rlp.integer(fields[3], "maxFeePerGas"),
        gas_limit=rlp.integer(fields[4], "gasLimit", max_bytes=8),
        to=rlp.fixed(fields[5], "to", 0, 20),
        value=rlp.integer(fields[6], "value"),
        data=_data(fields[7]),
        access_list=_access_list(fields[8]),
    )
    if decoded.chain_id == 0:
        raise Refused("payload/ethereum", "chainId is zero: the transaction could be replayed on any chain")
    if decoded.max_priority_fee_per_gas > decoded.max_fee_per_gas:
        raise Refused("payload/ethereum", "maxPriorityFeePerGas is above maxFeePerGas")
    return keccak.new(digest_bits=256, data=data).digest(), decoded


def _data(item: rlp.Item) -> bytes:
    if not isinstance(item, bytes):
        raise Refused("payload/ethereum", "data is not bytes")
    return item


def _access_list(item: rlp.Item) -> tuple[AccessEntry, ...]:
    if not isinstance(item, list):
        raise Refused("payload/ethereum", "accessList is not a list")
    return tuple(_access_entry(entry) for entry in item)


def _access_entry(entry: rlp.Item) -> AccessEntry:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], list):
        raise Refused("payload/ethereum", "an accessList entry is not [address, [storageKey, ...]]")
    return AccessEntry(
        rlp.fixed(entry[0], "accessList address", 20),
        tuple(rlp.fixed(key, "accessList storage key", 32) for key in entry[1]),
    )

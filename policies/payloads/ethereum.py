"""Unsigned Ethereum transactions, parsed strictly and hashed. Source: EIP-155, EIP-2930, EIP-1559.

| type | what is hashed |
| --- | --- |
| 0, legacy | `rlp([nonce, gasPrice, gasLimit, to, value, data, chainId, 0, 0])` |
| 1 | `0x01 ‖ rlp([chainId, nonce, gasPrice, gasLimit, to, value, data, accessList])` |
| 2 | `0x02 ‖ rlp([chainId, nonce, maxPriorityFeePerGas, maxFeePerGas, gasLimit, to, value, data, accessList])` |

A legacy transaction without chain id (six fields) is refused: it could be replayed on any chain.
"""

from __future__ import annotations

from collections.abc import Callable

from policies.decoded import AccessEntry, EthereumDecoded
from policies.errors import Refused
from policies.payloads import rlp

LEGACY, EIP_2930, EIP_1559 = 0, 1, 2
FIELDS = {LEGACY: 9, EIP_2930: 8, EIP_1559: 9}
NAMES = {LEGACY: "legacy (EIP-155)", EIP_2930: "EIP-2930", EIP_1559: "EIP-1559"}
FIRST_LIST_BYTE = 0xC0


def parse_transaction(data: bytes, keccak256: Callable[[bytes], bytes]) -> tuple[bytes, EthereumDecoded]:
    """Signing hash (32 bytes) and meaning of an unsigned transaction. Raises `Refused`."""
    kind = LEGACY if data[:1] >= bytes([FIRST_LIST_BYTE]) else int.from_bytes(data[:1], "big")
    # A first byte of zero is no type; legacy has none.
    if not data or data[0] == LEGACY or kind not in FIELDS:
        raise Refused("payload/ethereum", "only legacy (EIP-155), EIP-2930 and EIP-1559 transactions are understood")
    fields = rlp.decode(data if kind == LEGACY else data[1:])
    if not isinstance(fields, list) or len(fields) != FIELDS[kind]:
        raise Refused("payload/ethereum", f"an unsigned {NAMES[kind]} transaction has {FIELDS[kind]} fields")
    decoded = _legacy(fields) if kind == LEGACY else _typed(kind, fields)
    if decoded.chain_id == 0:
        raise Refused("payload/ethereum", "chainId is zero: the transaction could be replayed on any chain")
    return keccak256(data), decoded


def _legacy(fields: list[rlp.Item]) -> EthereumDecoded:
    if fields[7:] != [b"", b""]:
        raise Refused("payload/ethereum", "a legacy transaction to be signed ends with chainId, 0, 0")
    return EthereumDecoded(
        type=LEGACY,
        chain_id=rlp.integer(fields[6], "chainId"),
        nonce=rlp.integer(fields[0], "nonce", max_bytes=8),
        gas_price=rlp.integer(fields[1], "gasPrice"),
        gas_limit=rlp.integer(fields[2], "gasLimit", max_bytes=8),
        to=rlp.fixed(fields[3], "to", 0, 20),
        value=rlp.integer(fields[4], "value"),
        data=_data(fields[5]),
    )


def _typed(kind: int, fields: list[rlp.Item]) -> EthereumDecoded:
    """Types 1 and 2, which differ in their fees alone."""
    gas_limit, to, value, data, access_list = fields[-5:]
    price = priority = limit = None
    if kind == EIP_2930:
        price = rlp.integer(fields[2], "gasPrice")
    else:
        priority = rlp.integer(fields[2], "maxPriorityFeePerGas")
        limit = rlp.integer(fields[3], "maxFeePerGas")
        if priority > limit:
            raise Refused("payload/ethereum", "maxPriorityFeePerGas is above maxFeePerGas")
    return EthereumDecoded(
        type=kind,
        chain_id=rlp.integer(fields[0], "chainId"),
        nonce=rlp.integer(fields[1], "nonce", max_bytes=8),
        gas_price=price,
        max_priority_fee_per_gas=priority,
        max_fee_per_gas=limit,
        gas_limit=rlp.integer(gas_limit, "gasLimit", max_bytes=8),
        to=rlp.fixed(to, "to", 0, 20),
        value=rlp.integer(value, "value"),
        data=_data(data),
        access_list=_access_list(access_list),
    )


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

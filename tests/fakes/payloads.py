"""Builders of payloads: Ethereum transactions and the example of BIP-143, with single fields changed."""

from __future__ import annotations

from typing import Any

import rlp

TO = bytes.fromhex("d8da6bf26964af9d7eed9e03e53415d37aa96045")
# chainId, nonce, maxPriorityFeePerGas, maxFeePerGas, gasLimit, to, value, data, accessList
FIELDS: list[Any] = [1, 7, 10**9, 3 * 10**10, 21_000, TO, 15 * 10**17, b"", []]


# nonce, gasPrice, gasLimit, to, value, data, chainId, 0, 0
LEGACY_FIELDS: list[Any] = [7, 3 * 10**10, 21_000, TO, 15 * 10**17, b"", 1, b"", b""]
# chainId, nonce, gasPrice, gasLimit, to, value, data, accessList
EIP_2930_FIELDS: list[Any] = [1, 7, 3 * 10**10, 21_000, TO, 15 * 10**17, b"", []]


def encoded_transaction(
    changes: dict[int, Any] | None = None, fields: list[Any] = FIELDS, prefix: bytes = b"\x02"
) -> bytes:
    return prefix + bytes(rlp.encode([(changes or {}).get(i, field) for i, field in enumerate(fields)]))


def legacy_transaction(changes: dict[int, Any] | None = None) -> bytes:
    return encoded_transaction(changes, LEGACY_FIELDS, b"")


def eip2930_transaction(changes: dict[int, Any] | None = None) -> bytes:
    return encoded_transaction(changes, EIP_2930_FIELDS, b"\x01")


# Source: BIP-143, "Native P2WPKH".
VERSION = bytes.fromhex("01000000")
PREVOUTS = bytes.fromhex("96b827c8483d4e9b96712b6713a7b68d6e8003a781feba36c31143470b4efd37")
SEQUENCES = bytes.fromhex("52b0a642eea2fb7ae638c36f6252b6750293dbe574a806984b8e4d8548339a3b")
TXID = bytes.fromhex("ef51e1b804cc89d182d279655c3aa89e815b1b309fe287d9b2b55d57b90ec68a")
SCRIPT = bytes.fromhex("76a9141d0f172a0ecb48aee1be1f2687d2963ae33f71a188ac")
OUTPUTS = bytes.fromhex("863ef3e1a92afbfdb97f31ad0fc7683ee943e9abcf2501590ff8f6551f47e5e5")
SIGHASH = bytes.fromhex("c37af31116d1b27caf68aae9e3ac82f1477929014d5b917657d0eb49478cb670")
ZERO = bytes(32)


def preimage(
    script: bytes = b"\x19" + SCRIPT,
    kind: int = 1,
    prevouts: bytes = PREVOUTS,
    sequences: bytes = SEQUENCES,
    outputs: bytes = OUTPUTS,
    amount: int = 600_000_000,
) -> bytes:
    head = VERSION + prevouts + sequences + TXID + (1).to_bytes(4, "little") + script
    tail = amount.to_bytes(8, "little") + b"\xff" * 4 + outputs + (17).to_bytes(4, "little")
    return head + tail + kind.to_bytes(4, "little")

"""BIP-143 signature-hash preimages of one segwit v0 input, parsed strictly and double-hashed here. Source: BIP-143.

`version 4 ‖ hashPrevouts 32 ‖ hashSequence 32 ‖ outpoint 36 ‖ scriptCode (compactSize, bytes) ‖ amount 8 ‖
sequence 4 ‖ hashOutputs 32 ‖ locktime 4 ‖ sighash type 4`, integers little-endian.
"""

from __future__ import annotations

from policies.decoded import BitcoinDecoded
from policies.errors import Refused
from policies.payloads.hashes import sha256d

HEAD_BYTES, TAIL_BYTES = 4 + 32 + 32 + 36, 8 + 4 + 32 + 4 + 4
MAX_SCRIPT_BYTES = 10_000
MAX_SATOSHI = 21_000_000 * 100_000_000
_ALL, _NONE, _SINGLE, _ANYONE_CAN_PAY = 1, 2, 3, 0x80
SIGHASH_TYPES = frozenset(base | flag for base in (_ALL, _NONE, _SINGLE) for flag in (0, _ANYONE_CAN_PAY))


def parse_preimage(data: bytes) -> tuple[bytes, BitcoinDecoded]:
    """Signature hash (32 bytes) and meaning of a BIP-143 preimage. Raises `Refused`."""
    script_start, script_bytes = _compact_size(data, HEAD_BYTES)
    tail = script_start + script_bytes
    if script_bytes > MAX_SCRIPT_BYTES or len(data) != tail + TAIL_BYTES:
        raise _bad(f"{len(data)} bytes do not fit a scriptCode of {script_bytes}")
    decoded = BitcoinDecoded(
        version=_number(data[0:4]),
        hash_prevouts=data[4:36],
        hash_sequence=data[36:68],
        outpoint_txid=data[68:100],
        outpoint_index=_number(data[100:104]),
        script_code=data[script_start:tail],
        amount=_number(data[tail : tail + 8]),
        sequence=_number(data[tail + 8 : tail + 12]),
        hash_outputs=data[tail + 12 : tail + 44],
        locktime=_number(data[tail + 44 : tail + 48]),
        sighash_type=_number(data[tail + 48 :]),
    )
    _check_sighash(decoded)
    if decoded.amount > MAX_SATOSHI:
        raise _bad("the amount is above 21 million bitcoin")
    return sha256d(data), decoded


def _check_sighash(decoded: BitcoinDecoded) -> None:
    """The hashes that a type leaves out are zero, as BIP-143 has it."""
    if decoded.sighash_type not in SIGHASH_TYPES:
        raise _bad(f"unknown sighash type {decoded.sighash_type:#x}")
    base, anyone = decoded.sighash_type & 0x7F, bool(decoded.sighash_type & _ANYONE_CAN_PAY)
    zero = bytes(32)
    if (decoded.hash_prevouts == zero) != anyone:
        raise _bad("hashPrevouts does not fit the sighash type")
    if (decoded.hash_sequence == zero) != (anyone or base != _ALL):
        raise _bad("hashSequence does not fit the sighash type")
    if base != _SINGLE and (decoded.hash_outputs == zero) != (base == _NONE):
        raise _bad("hashOutputs does not fit the sighash type")


def _compact_size(data: bytes, at: int) -> tuple[int, int]:
    """Where the content begins and its length, from the shortest compactSize. Raises `Refused`."""
    first = data[at : at + 1]
    if first and first[0] < 0xFD:
        return at + 1, first[0]
    encoded = data[at + 1 : at + 3]
    if first != b"\xfd" or len(encoded) != 2 or _number(encoded) < 0xFD:
        raise _bad("scriptCode has no canonical compactSize")
    return at + 3, _number(encoded)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _bad(reason: str) -> Refused:
    return Refused("payload/bitcoin", f"not a BIP-143 preimage: {reason}")

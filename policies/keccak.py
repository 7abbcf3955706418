"""Keccak-256 in plain Python: for names of methods and checksums of addresses in policy files, and for tools.

A policy may import nothing but the standard library, which has SHA-3 but not Keccak's padding. Slow: what is signed is
hashed by the enclave's library. Source: the Keccak reference; FIPS 202.
"""

from __future__ import annotations

RATE_BYTES = 136
DIGEST_BYTES = 32
_MASK = 2**64 - 1


def keccak256(data: bytes) -> bytes:
    """Keccak-256 (32 bytes) with Ethereum's padding, which is not SHA3-256's."""
    padded = bytearray(data + b"\x01" + bytes(-(len(data) + 1) % RATE_BYTES))
    padded[-1] |= 0x80
    lanes = [0] * 25
    for start in range(0, len(padded), RATE_BYTES):
        for place in range(RATE_BYTES // 8):
            at = start + 8 * place
            lanes[place] ^= int.from_bytes(padded[at : at + 8], "little")
        lanes = _permute(lanes)
    return b"".join(lane.to_bytes(8, "little") for lane in lanes[: DIGEST_BYTES // 8])


def _rotated(lane: int, by: int) -> int:
    return (lane << by | lane >> (64 - by)) & _MASK


def _round_constants() -> tuple[int, ...]:
    """FIPS 202, 3.2.5: bits of a linear feedback shift register."""
    constants, register = [], 1
    for _ in range(24):
        constant = 0
        for j in range(7):
            if register & 1:
                constant |= 1 << (2**j - 1)
            register = (register << 1) ^ (0x171 if register & 0x80 else 0)
        constants.append(constant)
    return tuple(constants)


def _lane_moves() -> tuple[tuple[int, int, int], ...]:
    """FIPS 202, 3.2.2 and 3.2.3: from which place, to which place, rotated by how much."""
    moves, x, y = [(0, 0, 0)], 1, 0
    for t in range(24):
        to_x, to_y = y, (2 * x + 3 * y) % 5
        moves.append((x + 5 * y, to_x + 5 * to_y, (t + 1) * (t + 2) // 2 % 64))
        x, y = to_x, to_y
    return tuple(moves)


_CONSTANTS = _round_constants()
_MOVES = _lane_moves()
# FIPS 202, 3.2.4: each lane with the next two of its row.
_ROWS = tuple((i, i - i % 5 + (i + 1) % 5, i - i % 5 + (i + 2) % 5) for i in range(25))


def _permute(lanes: list[int]) -> list[int]:
    """Keccak-f[1600] on 25 lanes, the lane (x, y) at x + 5·y."""
    for constant in _CONSTANTS:
        parity = [lanes[x] ^ lanes[x + 5] ^ lanes[x + 10] ^ lanes[x + 15] ^ lanes[x + 20] for x in range(5)]
        mixed = [parity[x - 1] ^ _rotated(parity[(x + 1) % 5], 1) for x in range(5)]
        moved = [0] * 25
        for source, target, by in _MOVES:
            lane = lanes[source] ^ mixed[source % 5]
            moved[target] = (lane << by | lane >> (64 - by)) & _MASK
        lanes = [moved[i] ^ (~moved[one] & moved[two]) for i, one, two in _ROWS]
        lanes[0] ^= constant
    return lanes

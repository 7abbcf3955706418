"""Messages: hashed under the hash that the client names, and refused where they would be another kind's payload.

A raw hash separates nothing: Keccak-256 over the right message *is* an Ethereum transaction's hash. A client that may
sign messages only must not get a transaction signed that way, so the forms below are refused, whatever is in them.
EIP-191 has a prefix of its own and needs none of this.
"""

from __future__ import annotations

from collections.abc import Callable

from policies.decoded import MessageDecoded
from policies.errors import Refused
from policies.payloads import hashes, rlp
from policies.requests import MessageHash

# A legacy preimage of one input without a script and no outputs (SIGHASH_NONE); BIP-143's are 157 bytes and more.
SMALLEST_BITCOIN_PREIMAGE_BYTES = 55


def parse_message(
    message: bytes, name: MessageHash, keccak256: Callable[[bytes], bytes]
) -> tuple[bytes, MessageDecoded]:
    """Hash (32 bytes) and meaning of a message. Raises `Refused`."""
    if (other := _other_kind(message, name)) is not None:
        raise Refused("payload/message", f"under {name} this message would be {other}: ask with that kind")
    return _hashed(message, name, keccak256), MessageDecoded(message, name.value)


def _hashed(message: bytes, name: MessageHash, keccak256: Callable[[bytes], bytes]) -> bytes:
    match name:
        case MessageHash.SHA_256:
            return hashes.sha256(message)
        case MessageHash.KECCAK_256:
            return keccak256(message)
        case MessageHash.SHA_256D:
            return hashes.sha256d(message)
        case MessageHash.EIP_191:
            return hashes.eip191(message, keccak256)


def _other_kind(message: bytes, name: MessageHash) -> str | None:
    if name is MessageHash.KECCAK_256:
        # EIP-2718: a type below 0x80 and a payload, which in every type so far is one list; legacy has no type.
        if rlp.spans_list(message) or (message[:1] < b"\x80" and rlp.spans_list(message[1:])):
            return "an Ethereum transaction"
        if message[:1] == b"\x19":
            return "an EIP-191 message or EIP-712 typed data"
    elif name is MessageHash.SHA_256D:
        # Every preimage of Bitcoin ends with the sighash type, one byte wide in four.
        if len(message) >= SMALLEST_BITCOIN_PREIMAGE_BYTES and message[-3:] == bytes(3):
            return "a Bitcoin input"
    elif name is MessageHash.SHA_256 and len(message) == hashes.DIGEST_BYTES:
        return "a hash hashed again, as Bitcoin's inputs are: blind"
    return None

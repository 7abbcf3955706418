"""The one tagged, length-prefixed hash of Keymoot, and every tag it is used with.

`H(tag, p_1, .., p_k) = SHA-256(len(tag) ‖ tag ‖ len(p_1) ‖ p_1 ‖ .. )`, each length 8 bytes big-endian. Two
different part lists never give the same input, and two purposes never share a tag.
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256

DIGEST_BYTES = 32


class Tag(StrEnum):
    """Every purpose something is hashed or a key derived for. A new purpose gets a new line here."""

    # identities and files
    ROSTER = "keymoot/v1/roster"
    POLICY = "keymoot/v1/policy"
    FINGERPRINT = "keymoot/v1/identity-fingerprint"
    # requests
    CLIENT_REQUEST = "keymoot/v1/client-request"
    REQUEST_NAME = "keymoot/v1/request-name"
    REQUEST_BODY = "keymoot/v1/request-body"
    GATE_REQUEST = "keymoot/v1/gate-signer-info"
    # channels (TRANSPORT)
    HANDSHAKE = "keymoot/v1/channel/handshake"
    HANDSHAKE_SIGNATURE = "keymoot/v1/channel/handshake-signature"
    LINK_KEY = "keymoot/v1/channel/link-key"
    KEY_CONFIRMATION = "keymoot/v1/channel/key-confirmation"
    TOLD_STATE = "keymoot/v1/channel/told-state"
    CEREMONY_KEY = "keymoot/v1/channel/ceremony-key"
    SIGNED_BODY = "keymoot/v1/channel/signed-body"
    CONTENT = "keymoot/v1/channel/content"
    # ceremonies
    CEREMONY = "keymoot/v1/ceremony"
    SESSION = "keymoot/v1/ceremony/member-session"
    NONCE = "keymoot/v1/ceremony/nonce"
    VIEW = "keymoot/v1/ceremony/view"
    # SPEC 1: PRSS setup
    SETUP_COMMITMENT = "keymoot/v1/setup/commitment"
    SETUP_SEED = "keymoot/v1/setup/seed"
    SETUP_CHECK = "keymoot/v1/setup/check"
    # SPEC 2: distributed key generation
    KEYGEN_COMMITMENT = "keymoot/v1/keygen/commitment"
    KEYGEN_PROOF = "keymoot/v1/keygen/proof-of-knowledge"
    KEYGEN_AGREEMENT = "keymoot/v1/keygen/agreement"
    KEYGEN_CHAIN_CODE = "keymoot/v1/keygen/chain-code"
    KEY_ID = "keymoot/v1/keygen/key-id"
    ACKNOWLEDGEMENT = "keymoot/v1/keygen/acknowledgement"
    # SPEC 3: presigning
    SID = "keymoot/v1/presign/sid"
    SUB_SEED = "keymoot/v1/presign/sub-seed"
    SUB_SEED_COMMITMENT = "keymoot/v1/presign/sub-seed-commitment"
    STREAM = "keymoot/v1/presign/stream"
    PRESIGN_AGREEMENT = "keymoot/v1/presign/agreement"
    # SPEC 4: signing
    AUTHORIZATION = "keymoot/v1/sign/authorization"
    BATCH_ITEMS = "keymoot/v1/sign/batch-items"
    BATCH_AUTHORIZATION = "keymoot/v1/sign/batch-authorization"
    BATCH_CONTEXT = "keymoot/v1/sign/batch-context"
    ONLINE_CONTEXT = "keymoot/v1/sign/context"
    ONLINE_DELTA = "keymoot/v1/sign/delta"
    ONLINE_ZERO = "keymoot/v1/sign/zero"
    # sealing and audit
    EVIDENCE = "keymoot/v1/evidence"
    SEAL_WRAP = "keymoot/v1/seal/wrapping-key"
    SEAL_RECORD = "keymoot/v1/seal/record"
    AUDIT = "keymoot/v1/audit/entry"
    AUDIT_HEAD = "keymoot/v1/audit/head"


# Most parts are short.
_LENGTHS = tuple(length.to_bytes(8, "big") for length in range(256))
_PREFIXES = {tag: len(tag.value).to_bytes(8, "big") + tag.value.encode() for tag in Tag}


def encode_parts(tag: Tag, *parts: bytes) -> bytes:
    """The unambiguous encoding that `digest` hashes: also the `info` of HKDF and the data of a MAC."""
    pieces = [_PREFIXES[tag]]
    add = pieces.append
    for part in parts:
        length = len(part)
        add(_LENGTHS[length] if length < 256 else length.to_bytes(8, "big"))
        add(part)
    return b"".join(pieces)


def digest(tag: Tag, *parts: bytes) -> bytes:
    """32-byte SHA-256 of `encode_parts(tag, *parts)`."""
    return sha256(encode_parts(tag, *parts)).digest()

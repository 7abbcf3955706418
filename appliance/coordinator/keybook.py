"""The certified keys of the store, those used last kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from appliance.coordinator.keygen import Certificate, NewKey
from appliance.store import CoordinatorStore
from enclave import wire
from policies.errors import Bug

MAX_CACHED = 1024


@dataclass(frozen=True)
class CertifiedKey:
    """A key as all signers acknowledged it."""

    acknowledgement: wire.Acknowledgement
    certificate: Certificate


def encode_certificate(certificate: Certificate) -> bytes:
    """As the store keeps it."""
    return msgspec.msgpack.encode([wire.encode(signed) for signed in certificate])


def decode_certificate(data: bytes) -> Certificate:
    """What `encode_certificate` made. Raises `Bug`: it was verified before it was stored."""
    try:
        parts = msgspec.msgpack.decode(data, type=list[bytes])
        return tuple(wire.decode(part, wire.SignedAcknowledgement) for part in parts)
    except (msgspec.DecodeError, wire.Malformed) as error:
        raise Bug(f"a stored certificate cannot be read: {error}") from error


class KeyBook:
    """Certified keys by key id."""

    def __init__(self, store: CoordinatorStore) -> None:
        self._store = store
        self._cache: OrderedDict[str, CertifiedKey] = OrderedDict()

    def get(self, key_id: str) -> CertifiedKey | None:
        """The key, None where there is none. Raises `Unavailable`."""
        known = self._cache.get(key_id)
        if known is not None:
            self._cache.move_to_end(key_id)
            return known
        row = self._store.keys.get(key_id)
        if row is None or row.certificate is None:
            return None
        certificate = decode_certificate(row.certificate)
        key = self._cache[key_id] = CertifiedKey(certificate[0].acknowledgement, certificate)
        if len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        return key

    async def add(self, request_id: str, key: NewKey) -> None:
        """Commit a new key with its verified certificate. Raises `Unavailable`."""
        bits = sum(1 << (index - 1) for index in key.activated)
        certificate = encode_certificate(key.certificate)
        await self._store.keys.certify(request_id, key.acknowledgement.key_id, certificate, bits)

    def missing_at(self, index: int, limit: int) -> list[str]:
        """Keys that signer `index` has not said it can use, newest first. Raises `Unavailable`."""
        return [row.key_id for row in self._store.keys.to_activate(index, limit) if row.key_id is not None]

    async def note_activated(self, key_id: str, index: int) -> None:
        """Signer `index` can use the key. Raises `Unavailable`."""
        await self._store.keys.add_activated(key_id, 1 << (index - 1))

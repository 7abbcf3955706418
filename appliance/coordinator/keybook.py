"""The certified keys of the store, those used last kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.coordinator.errors import CeremonyEnded
from appliance.coordinator.keygen import Certificate, NewKey
from appliance.store import CoordinatorStore
from appliance.store.certificates import decode_certificate, encode_certificate
from appliance.store.keys import KeyTaken, LearnedKey
from enclave import wire

MAX_CACHED = 1024


@dataclass(frozen=True)
class CertifiedKey:
    """A key as all signers acknowledged it."""

    acknowledgement: wire.Acknowledgement
    certificate: Certificate


class KeyBook:
    """Certified keys by key id."""

    def __init__(self, store: CoordinatorStore, wall_clock: Callable[[], float]) -> None:
        self._store, self._clock = store, wall_clock
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
        """Commit a new key with its verified certificate. Raises `Unavailable`; `CeremonyEnded` where it is another
        request's."""
        bits = sum(1 << (index - 1) for index in key.activated)
        certificate = encode_certificate(key.certificate)
        try:
            await self._store.keys.certify(request_id, key.acknowledgement.key_id, certificate, bits)
        except KeyTaken as error:
            raise CeremonyEnded("certificate", str(error)) from error

    def knows(self, key_id: str) -> bool:
        """Whether there is such a key, certified. Raises `Unavailable`."""
        return key_id in self._cache or self._store.keys.get(key_id) is not None

    def read_until(self, signer: int) -> tuple[int, str]:
        """Number and id of the last key of this signer's list that is known here; 0 and empty for none."""
        return self._store.keys.read_until(signer)

    async def learn(
        self, signer: int, new: Sequence[Certificate], known: Sequence[str], until: tuple[int, str]
    ) -> None:
        """Commit verified certificates that signer `signer` has listed, that it can use the keys that are `known`, too,
        and that its list has been read `until` a number and the id of its key. Raises `Unavailable`."""
        proven = [certificate[0].acknowledgement for certificate in new]
        learned = [
            LearnedKey(facts.key_id, facts.label, encode_certificate(certificate))
            for facts, certificate in zip(proven, new, strict=True)
        ]
        await self._store.keys.learn(signer, learned, known, until, int(self._clock() * 1000))

    def missing_at(self, index: int, signers: int, limit: int) -> list[str]:
        """Keys that signer `index` of `signers` has not said it can use, newest first. Raises `Unavailable`."""
        rows = self._store.keys.to_activate(index, signers, limit)
        return [row.key_id for row in rows if row.key_id is not None]

    async def note_activated(self, key_id: str, index: int) -> None:
        """Signer `index` can use the key. Raises `Unavailable`."""
        await self._store.keys.add_activated(key_id, 1 << (index - 1))

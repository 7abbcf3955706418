"""Sealed records: what is in a key record and in the PRSS record, and how both get to the store and back.

A record's version orders its states, so that an older one never replaces a newer: a key's pending record of epoch `e`
is version `2e`, its active one `2e + 1`; the PRSS record's version is its epoch; that of what was seen of peers counts
its states; that of counters is the number of the audit entry that they go up to. Network, signer, kind, name, epoch
and version are bound into the seal.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from enclave.counters_record import CountersRecord
from enclave.errors import Bug, CallerError, Refused, Unavailable
from enclave.hsm.errors import HsmAway
from enclave.hsm.hsm import Hsm
from enclave.hsm.records import RecordContext
from enclave.peers import PeersRecord
from enclave.protocol.setup import Seeds
from enclave.secret import Secret
from enclave.tasks import Promise
from enclave.wire import Acknowledgement, Bytes32, Record, Wire, decode, encode

T = TypeVar("T")

PRSS_NAME = "prss"
PEERS_NAME = "peers"
COUNTERS_NAME = "counters-{part}"
CACHED_KEY_FACTS = 4096

HsmCall = Callable[[Callable[[Hsm], T]], Promise[T]]


class KeyRecord(Wire, frozen=True):
    """The plaintext of a key record: this signer's acknowledgement of the key and its share `x_j`. Secret."""

    acknowledgement: Acknowledgement
    active: bool
    share: Bytes32

    def __repr__(self) -> str:
        return f"KeyRecord({self.acknowledgement.key_id}, …)"

    @property
    def version(self) -> int:
        """Orders the states of one key's record."""
        return 2 * self.acknowledgement.key_epoch + self.active


class KeyFacts(msgspec.Struct, frozen=True):
    """What is public about a key this signer holds a share of; authenticated by the seal."""

    acknowledgement: Acknowledgement
    active: bool


class Opening(msgspec.Struct, frozen=True):
    """A key's record that the HSM is unsealing."""

    record: Record
    key_id: str
    plaintext: Promise[object]

    def discard(self) -> None:
        """It is not needed: wipe the plaintext, now or when it comes."""

        def wipe() -> None:
            with contextlib.suppress(Refused, CallerError, Unavailable):
                _secret(self.plaintext.result()).wipe()

        self.plaintext.on_done(wipe)


def record_context(network: str, signer: int, kind: str, name: str, version: int) -> RecordContext:
    """What is bound into the seal of a record of this kind."""
    epoch = {"prss": version, "key": version // 2}.get(kind, 0)
    return RecordContext(network, signer, kind, name, epoch, version)


class Vault:
    """Seals through the HSM, stores through the signer. Keeps public facts of keys, never a plaintext share."""

    def __init__(
        self,
        network: str,
        signer: int,
        hsm: Callable[[Callable[[Hsm], object]], Promise[object]],
        hsm_state: Callable[[], tuple[str, str]],
        store: Callable[[tuple[Record, ...]], Awaitable[None]],
    ) -> None:
        self._network, self._signer = network, signer
        self._hsm: Callable[[Callable[[Hsm], object]], Promise[object]] = hsm
        self._hsm_state, self._store = hsm_state, store
        self._facts: OrderedDict[tuple[str, int], KeyFacts] = OrderedDict()

    def require_hsm(self) -> None:
        """Raises `HsmAway` while the HSM is: before an order changes anything that it would need the HSM to finish."""
        state, reason = self._hsm_state()
        if state != "ready":
            raise HsmAway(reason, "orders are served again when it is back")

    async def keep_keys(self, records: Sequence[KeyRecord]) -> None:
        """Seal and store; returns once they are on disk."""
        sealed = []
        for record in records:
            name, version = record.acknowledgement.key_id, record.version
            sealed.append(Record("key", name, version, await self._seal("key", name, version, encode(record))))
        await self._store(tuple(sealed))

    async def open_key(self, record: Record | None, key_id: str) -> KeyRecord:
        """The key's record, share included. Raises `Refused` where it is another's; `Unavailable` without HSM."""
        return await self.opened(self.begin_to_open(record, key_id))

    def begin_to_open(self, record: Record | None, key_id: str) -> Opening:
        """Let the HSM unseal a key's record while other things are done. Then `opened`, or `discard`."""
        if record is None or record.kind != "key" or record.name != key_id:
            raise Refused("key", f"this signer's store has no readable record of {key_id}: see its log")
        return Opening(record, key_id, self._begin_to_unseal(record, record.version // 2))

    async def opened(self, opening: Opening) -> KeyRecord:
        """The record of an `Opening`; raises as `open_key`."""
        record, key_id = opening.record, opening.key_id
        with _secret(await opening.plaintext) as plaintext:
            opened = decode(plaintext.reveal(), KeyRecord)
        if opened.acknowledgement.key_id != key_id or opened.version != record.version:
            raise Refused("key", f"the record of {key_id} holds another key")
        self._remember(opened)
        return opened

    async def key_facts(self, record: Record | None, key_id: str) -> KeyFacts:
        """The key's public facts, from memory where possible: then without the HSM."""
        version = record.version if record is not None else -1
        known = self._facts.get((key_id, version))
        if known is None:
            await self.open_key(record, key_id)
            known = self._facts[key_id, version]
        return known

    async def keep_seeds(self, seeds: Seeds) -> None:
        """Seal and store the PRSS seeds of an epoch, in place of the one before."""
        sealed = await self._seal("prss", PRSS_NAME, seeds.epoch, encode(seeds))
        await self._store((Record("prss", PRSS_NAME, seeds.epoch, sealed),))

    async def open_seeds(self, record: Record, roster_digest: bytes) -> Seeds:
        """The PRSS seeds of a stored record. Raises `Refused` for those of another roster."""
        with await self._unseal(record, record.version) as plaintext:
            seeds = decode(plaintext.reveal(), Seeds)
        if record.kind != "prss" or seeds.epoch != record.version:
            raise Refused("prss", "the PRSS record is of another epoch")
        if seeds.roster_digest != roster_digest:
            raise Refused("prss", "the PRSS record is of another roster")
        return seeds

    async def keep_peers(self, version: int, seen: PeersRecord) -> None:
        """Seal and store what was seen of peers, in place of what an earlier version says."""
        sealed = await self._seal("peers", PEERS_NAME, version, encode(seen))
        await self._store((Record("peers", PEERS_NAME, version, sealed),))

    async def open_peers(self, record: Record) -> PeersRecord:
        """What was seen of peers. Raises `CallerError` for what was not sealed here as that."""
        with await self._unseal(msgspec.structs.replace(record, kind="peers", name=PEERS_NAME), 0) as plaintext:
            return decode(plaintext.reveal(), PeersRecord)

    async def keep_counters(self, parts: Sequence[CountersRecord]) -> None:
        """Seal and store the counters (SPEC 7.5), all parts together, in place of those of an earlier state."""
        records = []
        for part in parts:
            name = COUNTERS_NAME.format(part=part.part)
            records.append(
                Record("counters", name, part.seq, await self._seal("counters", name, part.seq, encode(part)))
            )
        await self._store(tuple(records))

    async def open_counters(self, record: Record) -> CountersRecord:
        """One part of the counters. Raises `CallerError` for what was not sealed here as that."""
        if record.kind != "counters":
            raise CallerError("not a record of counters")
        with await self._unseal(record, 0) as plaintext:
            opened = decode(plaintext.reveal(), CountersRecord)
        if (record.name, record.version) != (COUNTERS_NAME.format(part=opened.part), opened.seq):
            raise CallerError("a record of counters holds other ones")
        return opened

    def _remember(self, record: KeyRecord) -> None:
        place = (record.acknowledgement.key_id, record.version)
        self._facts[place] = KeyFacts(record.acknowledgement, record.active)
        if len(self._facts) > CACHED_KEY_FACTS:
            self._facts.popitem(last=False)

    async def _seal(self, kind: str, name: str, version: int, plaintext: bytes) -> bytes:
        context = record_context(self._network, self._signer, kind, name, version)
        sealed = await self._hsm(lambda hsm: hsm.seal(context, plaintext))
        assert isinstance(sealed, bytes)
        return sealed

    async def _unseal(self, record: Record, epoch: int) -> Secret:
        return _secret(await self._begin_to_unseal(record, epoch))

    def _begin_to_unseal(self, record: Record, epoch: int) -> Promise[object]:
        context = RecordContext(self._network, self._signer, record.kind, record.name, epoch, record.version)
        return self._hsm(lambda hsm: hsm.unseal(context, record.sealed))


def _secret(unsealed: object) -> Secret:
    if not isinstance(unsealed, Secret):
        raise Bug("the HSM unsealed something that is no secret")
    return unsealed

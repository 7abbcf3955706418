"""Counting what a GCM key has sealed, across restarts, on the token itself.

Random 96-bit nonces are safe up to 2^32 encryptions under one key; we stop far below. The count is a private
data object beside the key. Seals are leased in blocks: the object is written once for `BLOCK` of them, before
the first is used, so a crash wastes some and never forgets one.
"""

from __future__ import annotations

import pkcs11
from pkcs11 import Attribute, ObjectClass

from enclave.hsm.errors import HsmMisconfigured, SealLimitReached
from enclave.hsm.module import hsm_call

SEAL_LIMIT = 2**28
BLOCK = 256
_COUNT_BYTES = 8


class SealCounter:
    """Seals made under the key `label`. `limit` is an argument for tests alone."""

    def __init__(self, session: pkcs11.Session, label: str, limit: int = SEAL_LIMIT) -> None:
        self._session = session
        self._label = label
        self._limit = limit
        with hsm_call("read the seal counter"):
            stored = _read(_objects(session, label), label)
        # Of the last lease, nobody knows how much was used: all of it counts.
        self._used = self._leased = stored

    def take(self) -> None:
        """Count one seal. Raises `SealLimitReached`, or the module's errors."""
        if self._used >= self._leased:
            self._lease()
        if self._used >= self._limit:
            raise SealLimitReached(self._label, self._limit)
        self._used += 1

    def _lease(self) -> None:
        old = _objects(self._session, self._label)
        # Whoever shares the token may have leased too: go on from the highest.
        start = max(self._used, _read(old, self._label))
        if start >= self._limit:
            raise SealLimitReached(self._label, self._limit)
        _write(self._session, self._label, start + BLOCK)
        self._used, self._leased = start, start + BLOCK
        # New first, then away with the old: the highest of them counts at any moment.
        for stale in old:
            stale.destroy()


def create_counter(session: pkcs11.Session, label: str) -> None:
    """Start the count of a key that is about to be made. Raises the module's errors."""
    _write(session, label, 0)


def _write(session: pkcs11.Session, label: str, count: int) -> None:
    session.create_object(
        {
            Attribute.CLASS: ObjectClass.DATA,
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.LABEL: _object_label(label),
            Attribute.VALUE: count.to_bytes(_COUNT_BYTES, "big"),
        }
    )


def _objects(session: pkcs11.Session, label: str) -> list[pkcs11.Object]:
    return list(session.get_objects({Attribute.CLASS: ObjectClass.DATA, Attribute.LABEL: _object_label(label)}))


def _read(objects: list[pkcs11.Object], label: str) -> int:
    if not objects:
        raise HsmMisconfigured(
            f"sealing key {label!r} has no seal counter on the token, so it may be worn out: "
            "provision under another sealing_key_label and name this one in hsm.retired_key_labels"
        )
    return max(int.from_bytes(found[Attribute.VALUE], "big") for found in objects)


def _object_label(label: str) -> str:
    return f"{label}.seals"

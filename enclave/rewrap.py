"""`python -m enclave rewrap`: brings records under the present sealing key of the HSM, one after the other.

Only the share-encryption key of each is unsealed and sealed anew; the share itself is not opened. The file of the
gate's secrets comes first.
"""

from __future__ import annotations

from typing import BinaryIO

from enclave.config import EnclaveConfig
from enclave.errors import CallerError, Malformed
from enclave.gate_secrets import rewrap_gate_secrets
from enclave.hsm import Hsm, SealBroken, open_hsm, provision
from enclave.shares import record_context
from enclave.wire import LENGTH_BYTES, MAX_MESSAGE_BYTES, Record, Rewrapped, decode, frame


def rewrap(config: EnclaveConfig, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Make the sealing key where it is missing, then answer each record until `incoming` ends.

    Raises `CallerError` for what needs a person, `HsmAway`: what was answered before counts.
    """
    provision(config.hsm)
    network, index = config.file.network, config.index
    hsm = open_hsm(config.hsm, network, index)
    try:
        if config.file.gate.mode != "none":
            rewrap_gate_secrets(hsm, network, index, config.gate_secrets)
        while (record := _read(incoming)) is not None:
            outgoing.write(frame(_answer(hsm, network, index, record)))
            outgoing.flush()
    finally:
        hsm.close()


def _answer(hsm: Hsm, network: str, index: int, record: Record) -> Rewrapped:
    try:
        return Rewrapped(
            hsm.rewrap(record_context(network, index, record.kind, record.name, record.version), record.sealed)
        )
    except SealBroken as error:
        return Rewrapped(record.sealed, str(error)[:500])


def _read(incoming: BinaryIO) -> Record | None:
    head = incoming.read(LENGTH_BYTES)
    if not head:
        return None
    length = int.from_bytes(head, "big")
    if length > MAX_MESSAGE_BYTES:
        raise CallerError("a record that is too large")
    try:
        return decode(incoming.read(length), Record)
    except Malformed as error:
        raise CallerError(str(error)) from None

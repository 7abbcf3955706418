"""The gate's secrets at rest: one file, sealed by the HSM like a share, made by `keymoot gate secret`."""

from __future__ import annotations

import os
from pathlib import Path

from enclave.errors import CallerError
from enclave.gate import GateKeys, parse_gate_secrets
from enclave.hsm import Hsm, RecordContext

MAX_FILE_BYTES = 64 * 1024


def seal_gate_secrets(hsm: Hsm, network: str, signer: int, path: Path, secrets: bytes) -> None:
    """Check `secrets` (JSON, see `parse_gate_secrets`) and write them sealed to `path`, mode 0640, atomically."""
    parse_gate_secrets(secrets)
    _write(path, hsm.seal(_context(network, signer), secrets))


def rewrap_gate_secrets(hsm: Hsm, network: str, signer: int, path: Path) -> bool:
    """Seal the file's key by the present sealing key; False where it is already. Raises as `open_gate_secrets`."""
    sealed = _read(path)
    new = hsm.rewrap(_context(network, signer), sealed)
    if new == sealed:
        return False
    _write(path, new)
    return True


def _write(path: Path, sealed: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    with os.fdopen(descriptor, "wb") as file:
        file.write(sealed)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def open_gate_secrets(hsm: Hsm, network: str, signer: int, path: Path) -> GateKeys:
    """The keys of a sealed file. Raises `CallerError` where it is missing or was not sealed for this signer."""
    with hsm.unseal(_context(network, signer), _read(path)) as plaintext:
        return parse_gate_secrets(plaintext.reveal())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()[: MAX_FILE_BYTES + 1]
    except OSError as error:
        raise CallerError(
            f"cannot read the gate's secrets from {path} ({error.strerror}): run `keymoot gate secret`"
        ) from None


def _context(network: str, signer: int) -> RecordContext:
    return RecordContext(network, signer, "gate", "gate-secrets", 0, 0)

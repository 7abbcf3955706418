"""The gate's secrets at rest: one file, sealed by the HSM like a share, made by `keymoot gate secret`."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from enclave.config import EnclaveConfig
from enclave.errors import CallerError
from enclave.gate_keys import GateKeys, parse_gate_secrets
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
    """Replace the file, so that it is on disk when this returns. One that is there keeps its owner and mode."""
    temporary = path.with_name(path.name + ".new")
    # Made anew: what somebody left under this name would give it another owner and mode.
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    with os.fdopen(descriptor, "wb") as file:
        _keep_owner(path, temporary, descriptor)
        file.write(sealed)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _keep_owner(path: Path, temporary: Path, descriptor: int) -> None:
    """Give the new file the owner and mode of the one at `path`. Raises `CallerError` where this user may not."""
    with contextlib.suppress(FileNotFoundError):
        old, new = path.stat(), os.fstat(descriptor)
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            try:
                os.fchown(descriptor, old.st_uid, old.st_gid)
            except PermissionError:
                temporary.unlink()
                raise CallerError(f"{path} belongs to another user: run this as its owner, or as root") from None
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def open_gate_secrets(hsm: Hsm, network: str, signer: int, path: Path) -> GateKeys:
    """The keys of a sealed file. Raises `CallerError` where it is missing or was not sealed for this signer."""
    with hsm.unseal(_context(network, signer), _read(path)) as plaintext:
        return parse_gate_secrets(plaintext.reveal())


def configured_keys(hsm: Hsm, config: EnclaveConfig) -> GateKeys | None:
    """The keys that the configuration asks for; None in mode `none`. Raises as `open_gate_secrets`, and where the file
    lacks one."""
    gate = config.file.gate
    if gate.mode == "none":
        return None
    if not gate.needs_secrets:
        return GateKeys((), ())
    keys = open_gate_secrets(hsm, config.roster.network, config.index, config.gate_secrets)
    return keys.chosen(gate.signed_by, gate.accepted)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()[: MAX_FILE_BYTES + 1]
    except OSError as error:
        raise CallerError(
            f"cannot read the gate's secrets from {path} ({error.strerror}): run `keymoot gate secret`"
        ) from None


def _context(network: str, signer: int) -> RecordContext:
    return RecordContext(network, signer, "gate", "gate-secrets", 0, 0)

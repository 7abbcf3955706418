"""The gate's secrets at rest: one file, sealed by the HSM like a share, made by `keymoot gate secret`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from enclave.config import EnclaveConfig
from enclave.errors import CallerError
from enclave.files import replace_file
from enclave.gate_keys import KEY_NAMES, OLDER, GateKeys, SecretsFile, parse_gate_secrets, parse_secrets_file
from enclave.hsm import Hsm, RecordContext

MAX_FILE_BYTES = 64 * 1024
FILE_MODE = 0o640


def seal_gate_secrets(hsm: Hsm, network: str, signer: int, path: Path, secrets: bytes) -> None:
    """Check `secrets` (JSON, see `parse_gate_secrets`) and write them sealed to `path`, mode 0640, atomically."""
    parse_gate_secrets(secrets)
    replace_file(path, hsm.seal(_context(network, signer), secrets), FILE_MODE)


def rotate_gate_secrets(hsm: Hsm, network: str, signer: int, path: Path, secrets: bytes) -> None:
    """Seal new secrets beside the present ones, which stay in use as the older ones (SPEC 6.10). Raises `CallerError`
    where a rotation is under way already."""
    new = parse_secrets_file(secrets)
    with hsm.unseal(_context(network, signer), _read(path)) as plaintext:
        present = parse_secrets_file(plaintext.reveal())
    if any(getattr(each, OLDER + name) for each in (new, present) for name in KEY_NAMES):
        raise CallerError("a rotation is under way: end it with `keymoot gate secret --finish` first")
    both = {}
    for name in KEY_NAMES:
        old, fresh = getattr(present, name), getattr(new, name)
        both[name] = fresh or old
        if old and fresh and old != fresh:
            both[OLDER + name] = old
    seal_gate_secrets(hsm, network, signer, path, msgspec.json.encode(SecretsFile(**both)))


def finish_rotation(hsm: Hsm, network: str, signer: int, path: Path) -> None:
    """Retire the older secrets. Raises `CallerError` where there are none."""
    with hsm.unseal(_context(network, signer), _read(path)) as plaintext:
        present = parse_secrets_file(plaintext.reveal())
    if not any(getattr(present, OLDER + name) for name in KEY_NAMES):
        raise CallerError("no rotation is under way: begin one with `keymoot gate secret --rotate`")
    newest = SecretsFile(**{name: getattr(present, name) for name in KEY_NAMES})
    seal_gate_secrets(hsm, network, signer, path, msgspec.json.encode(newest))


def rewrap_gate_secrets(hsm: Hsm, network: str, signer: int, path: Path) -> bool:
    """Seal the file's key by the present sealing key; False where it is already. Raises as `open_gate_secrets`."""
    sealed = _read(path)
    new = hsm.rewrap(_context(network, signer), sealed)
    if new == sealed:
        return False
    replace_file(path, new, FILE_MODE)
    return True


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

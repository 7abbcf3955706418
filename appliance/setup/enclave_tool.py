"""How an operator's command runs the enclave's tools: as whom, with which variables and PIN, and where they may write.

On an installed host the PIN is a credential that nobody but the enclave's unit is given, the vendor's module is loaded
by the enclave's user and never by root, and the configuration's directory is root's.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from appliance import enrolment, pki, unit_settings
from appliance.setup.hosts import signer_place
from appliance.setup.pins import EncryptedPin
from appliance.unit_settings import User
from policies.errors import CallerError
from policies.load import load_yaml

CREDENTIALS = "CREDENTIALS_DIRECTORY"
MAX_SEALED_BYTES = 64 * 1024
SEALED_MODE = 0o640


class _Hsm(msgspec.Struct, frozen=True):
    pin: str


class _Gate(msgspec.Struct, frozen=True):
    secrets: str = "gate-secrets.sealed"  # a file's name


class _EnclaveFile(msgspec.Struct, frozen=True):
    hsm: _Hsm
    gate: _Gate


@dataclass(frozen=True)
class EnclaveTool:
    """What the tools of the enclave with this configuration are run with. `user`: None for who runs this."""

    config: Path
    environment: Mapping[str, str] = field(repr=False)
    user: User | None = None

    def command(self, action: str, *more: str) -> list[str]:
        """The command line of one."""
        return [*enrolment.enclave_command(action, self.config), *more]

    @contextmanager
    def sealing(self) -> Iterator[list[str]]:
        """Further arguments for a tool that writes the gate's secrets. What it wrote comes into the configuration's
        directory at the block's end, where that is not the tool's user's own; not where the block raises."""
        if self.user is None:
            yield []
            return
        there = self.config.parent / load_yaml(self.config, _EnclaveFile).gate.secrets
        before = there.read_bytes() if there.exists() else b""
        own = Path(tempfile.mkdtemp(prefix="keymoot-sealing-"))
        directory = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if before:
                (own / there.name).write_bytes(before)
                os.chown(own / there.name, self.user.uid, self.user.gid)
            os.fchown(directory, self.user.uid, self.user.gid)
            yield ["--gate-secrets", str(own / there.name)]
            sealed = _read_of(self.user, directory, there.name)
            if sealed != before:
                pki.replace(there, sealed, SEALED_MODE)
        finally:
            os.close(directory)
            shutil.rmtree(own)


@contextmanager
def enclave_tool(config: Path) -> Iterator[EnclaveTool]:
    """The tools for `config`, as its enclave's unit has them where it is an installed signer's and this is root.

    Raises `CallerError`, also where only root could give them the PIN; `Unavailable` where the PIN cannot be decrypted.
    """
    place, keeping = signer_place(enrolment.require_file(config).resolve().parent, None)
    needs_credential = load_yaml(config, _EnclaveFile).hsm.pin.startswith("credential:")
    if place.owner is None or os.geteuid() != 0:
        if place.units and needs_credential and CREDENTIALS not in os.environ:
            raise CallerError(f"the PIN of {config} is a credential that systemd encrypted: run this as root")
        yield EnclaveTool(config, os.environ)
        return
    with ExitStack() as stack:
        environment = {**os.environ, **unit_settings.environment(place.units[0])}
        kept = keeping()
        # An operator's drop-in may have the PIN elsewhere; then the unit has it while it runs.
        if needs_credential and isinstance(kept, EncryptedPin) and kept.exists():
            environment = stack.enter_context(kept.environment())
        yield EnclaveTool(config, environment, place.owner)


def _read_of(user: User, directory: int, name: str) -> bytes:
    """A file that `user` made in an open directory of its own, and no other's to which it put a link there. Empty where
    there is none. Raises `CallerError`."""
    try:
        found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CallerError(f"what the enclave's tool left cannot be read: {error.strerror}") from None
    try:
        about = os.fstat(found)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != user.uid or about.st_size > MAX_SEALED_BYTES:
            raise CallerError("what the enclave's tool left is not the gate's sealed secrets")
        return os.read(found, MAX_SEALED_BYTES)
    finally:
        os.close(found)

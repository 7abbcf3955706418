"""The PIN on its way from who knows it to where the enclave finds it: never an argument, a variable or a log.

On an installed host it is a credential, encrypted by systemd for this machine; elsewhere a file of mode 0600.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from appliance import pki
from policies.errors import CallerError, Unavailable

MAX_PIN_BYTES = 256
PIN_FILE = "pin"
TOOL = "systemd-creds"
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Pin:
    """A PIN, not shown by mistake."""

    text: str = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.text.encode()) <= MAX_PIN_BYTES or not self.text.isprintable():
            raise CallerError(f"the PIN must be one line of 1 to {MAX_PIN_BYTES} bytes, and nothing else")


def from_bytes(data: bytes) -> Pin:
    """The PIN that standard input or a file holds, without its line's end. Raises `CallerError`, quoting nothing."""
    try:
        return Pin(data.removesuffix(b"\n").removesuffix(b"\r").decode())
    except UnicodeDecodeError:
        raise CallerError("the PIN is not UTF-8 text") from None


def of_credential(name: str, environment: Mapping[str, str]) -> Pin:
    """The credential `name` that systemd passed to this process. Raises `CallerError`."""
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise CallerError(f"systemd passed no credentials: run this in a unit with LoadCredential={name}:PATH")
    try:
        return from_bytes((Path(directory) / name).read_bytes()[: MAX_PIN_BYTES + 2])
    except OSError as error:
        raise CallerError(f"cannot read the credential {name}: {error.strerror}") from None


class FilePin:
    """Kept in `directory`/pin, mode 0600; the configuration says `file:pin`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / PIN_FILE

    reference = f"file:{PIN_FILE}"

    def exists(self) -> bool:
        """Whether it is kept already."""
        return self._path.exists()

    def keep(self, pin: Pin) -> None:
        """Raises `CallerError` where there is one."""
        pki.write_new(self._path, pin.text.encode() + b"\n", pki.SECRET_MODE)

    def forget(self) -> None:
        """Undo `keep`."""
        self._path.unlink(missing_ok=True)

    @contextmanager
    def environment(self) -> Iterator[dict[str, str]]:
        """What an enclave's tool is run with to find it."""
        yield dict(os.environ)


class NamedPin(FilePin):
    """Kept by the operator: a file that the configuration names, or a credential that systemd passes."""

    def __init__(self, reference: str) -> None:
        self.reference = reference

    def exists(self) -> bool:
        """It is the operator's to keep."""
        return True

    def forget(self) -> None:
        """Nothing was kept."""


class EncryptedPin(FilePin):
    """Kept as a credential `name` that systemd encrypted into `path` for this machine, and passes to the unit."""

    def __init__(
        self,
        name: str,
        path: Path,
        owner: tuple[int, int] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`owner`: user and group of the enclave, who reads it while its keys are made. `variables`: what its unit
        sets, which its PKCS#11 module may need."""
        self._name, self._path, self._owner, self._variables = name, path, owner, dict(variables or {})
        self.reference = f"credential:{name}"

    def keep(self, pin: Pin) -> None:
        """Raises `CallerError` where there is one, `Unavailable` where systemd cannot encrypt it."""
        if self._path.exists():
            raise CallerError(f"{self._path} exists: nothing is overwritten")
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._encrypt(pin).rename(self._path)

    def replace(self, pin: Pin) -> None:
        """Put another one in its place, whole or not at all. Raises `CallerError` where the one that is there needs
        more than this host's key, such as its TPM: it is not to be kept with less than before."""
        new = self._encrypt(pin)
        if self._path.exists() and _kind_of_key(self._path) != _kind_of_key(new):
            new.unlink()
            raise CallerError(
                f"{self._path} is damaged, or was not encrypted with the host's key alone: write it anew as it was, by "
                f"systemd-creds encrypt --with-key=host+tpm2 --name={self._name} - {self._path}"
            )
        new.rename(self._path)

    @contextmanager
    def environment(self) -> Iterator[dict[str, str]]:
        """The PIN decrypted into a private directory of /run, which lives in memory, as long as the block."""
        with self._handing(self._run("decrypt", str(self._path), "-")) as environment:
            yield environment

    @contextmanager
    def trying(self, pin: Pin) -> Iterator[dict[str, str]]:
        """The same with a PIN that is not kept yet."""
        with self._handing(pin.text.encode()) as environment:
            yield environment

    @contextmanager
    def _handing(self, pin: bytes) -> Iterator[dict[str, str]]:
        place = Path(tempfile.mkdtemp(prefix="keymoot-setup-", dir="/run" if os.access("/run", os.W_OK) else None))
        try:
            file = place / self._name
            pki.write_new(file, pin, pki.SECRET_MODE)
            if self._owner is not None:
                os.chown(file, *self._owner)
                os.chown(place, *self._owner)
            yield {**os.environ, **self._variables, "CREDENTIALS_DIRECTORY": str(place)}
        finally:
            shutil.rmtree(place)

    def _encrypt(self, pin: Pin) -> Path:
        """A new file beside the one that counts."""
        new = self._path.with_name(self._path.name + ".new")
        new.unlink(missing_ok=True)
        self._run("encrypt", "--with-key=host", "-", str(new), stdin=pin.text.encode())
        return new

    def _run(self, action: str, *arguments: str, stdin: bytes = b"") -> bytes:
        tool = shutil.which(TOOL)
        if tool is None:
            raise Unavailable(
                f"{TOOL} is missing, which keeps the PIN on an installed host", "use systemd 250 or newer"
            )
        options = [argument for argument in arguments if argument.startswith("--")]
        files = [argument for argument in arguments if not argument.startswith("--")]
        done = subprocess.run(  # noqa: S603
            [tool, *options, f"--name={self._name}", action, *files],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise Unavailable(f"{TOOL} could not {action} the PIN: {said[-1] if said else 'no reason given'}", "see it")
        return done.stdout


def _kind_of_key(credential: Path) -> bytes:
    """With what systemd encrypted: the id that a credential begins with; empty where that cannot be read."""
    try:
        return base64.b64decode(credential.read_bytes()[:24], validate=True)[:16]
    except ValueError:
        return b""

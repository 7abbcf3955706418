"""SoftHSM tokens for tests: real PKCS#11 calls, a token directory of their own.

SoftHSM reads `SOFTHSM2_CONF` each time the module is initialized, and `Hsm.close` finalizes it. So one test
process may use many tokens one after the other, but two processes never share a token directory: their logins
collide.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from enclave.hsm.config import HsmConfig

LIBRARIES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/pkcs11/libsofthsm2.so"),
)


CHANGE_PIN = """
import sys, pkcs11
_, path, label, old, new = sys.argv
with pkcs11.lib(path).get_token(token_label=label).open(rw=True, user_pin=old) as session:
    session.set_pin(old, new)
"""


def library() -> Path:
    """Where SoftHSM is installed. Raises `FileNotFoundError`."""
    for path in LIBRARIES:
        if path.exists():
            return path
    raise FileNotFoundError("SoftHSM is not installed: apt install softhsm2")


def make_token(directory: Path, label: str, so_pin: str, user_pin: str) -> Path:
    """Initialize a token under `directory`; the path of the configuration for `SOFTHSM2_CONF`."""
    (directory / "tokens").mkdir(parents=True)
    conf = directory / "softhsm2.conf"
    conf.write_text(
        f"directories.tokendir = {directory / 'tokens'}\n"
        "objectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
    )
    command = [
        "softhsm2-util",
        "--init-token",
        "--free",
        "--label",
        label,
        "--so-pin",
        so_pin,
        "--pin",
        user_pin,
    ]
    subprocess.run(command, env={**os.environ, "SOFTHSM2_CONF": str(conf)}, check=True, capture_output=True)
    return conf


@dataclass(frozen=True)
class SoftToken:
    """A fresh token, and the configuration that opens it. Its objects can be moved away and back."""

    directory: Path
    label: str
    user_pin: str = field(default_factory=lambda: f"pin-{secrets.token_hex(8)}")

    def create(self) -> Path:
        """Make the token and its PIN file; the path for `SOFTHSM2_CONF`."""
        conf = make_token(self.directory, self.label, f"so-{secrets.token_hex(8)}", self.user_pin)
        self.write_pin(self.user_pin)
        return conf

    def write_pin(self, pin: str) -> None:
        """Put `pin` where the configuration looks for it."""
        new = self.directory / "pin.new"
        new.touch(mode=0o600)
        new.write_text(pin + "\n")
        new.rename(self.directory / "pin")

    @property
    def config(self) -> HsmConfig:
        """The enclave's `hsm` section for this token."""
        return HsmConfig(str(library()), f"file:{self.directory / 'pin'}", self.label)

    def take_away(self) -> None:
        """What pulling the HSM out looks like to the module."""
        (self.directory / "tokens").rename(self.directory / "away")

    def change_pin(self, new: str) -> None:
        """Give the token that was taken away another user PIN."""
        conf = self.directory / "away.conf"
        text = (self.directory / "softhsm2.conf").read_text()
        conf.write_text(text.replace(str(self.directory / "tokens"), str(self.directory / "away")))
        environment = {**os.environ, "SOFTHSM2_CONF": str(conf)}
        old = (self.directory / "pin").read_text().rstrip("\n")
        command = [sys.executable, "-c", CHANGE_PIN, str(library()), self.label, old, new]
        subprocess.run(command, env=environment, check=True, capture_output=True)

    def bring_back(self) -> None:
        """Undo `take_away`."""
        (self.directory / "away").rename(self.directory / "tokens")

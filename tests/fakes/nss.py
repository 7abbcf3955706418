"""NSS softokn databases for tests, made by certutil of Debian's libnss3-tools."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from enclave.hsm.config import HsmConfig

LABEL = "NSS Certificate DB"
PIN = "pin-nss-4711"
LIBRARIES = tuple(
    Path(f"/usr/{place}/libsoftokn3.so")
    for place in ("lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib/x86_64-linux-gnu/nss", "lib64", "lib")
)


def missing() -> str:
    """The Debian package to install, empty where everything is there."""
    if not any(path.exists() for path in LIBRARIES):
        return "libnss3"
    return "" if shutil.which("certutil") else "libnss3-tools"


@dataclass(frozen=True)
class NssDatabase:
    """A fresh database in `directory`."""

    directory: Path

    def create(self) -> None:
        """Make it, and its PIN file."""
        self.directory.mkdir()
        pin = self.directory / "pin"
        pin.touch(mode=0o600)
        pin.write_text(PIN)
        command = ["certutil", "-N", "-d", f"sql:{self.directory}", "-f", str(pin)]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def config(self) -> HsmConfig:
        """The `hsm` section as an operator must write it: NSS exports keys, so that is accepted."""
        return HsmConfig(
            lib=str(next(path for path in LIBRARIES if path.exists())),
            pin=f"file:{self.directory / 'pin'}",
            token_label=LABEL,
            init_args=f"configdir='sql:{self.directory}'",
            accept_key_export=True,
        )

"""A TPM in software (swtpm) behind tpm2-pkcs11, with a resource manager on a message bus of its own.

tpm2-pkcs11 does not make HMAC keys itself: an operator makes both keys with `tpm2_ptool`, and so does this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from enclave.hsm.config import HsmConfig

LABEL = "keymoot"
PIN = "pin-tpm-4711"
DEADLINE_S = 20.0
LIBRARIES = tuple(
    Path(f"/usr/lib/{place}pkcs11/libtpm2_pkcs11.so") for place in ("x86_64-linux-gnu/", "aarch64-linux-gnu/", "")
)
_TOOLS = {
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
    "tpm2": "tpm2-tools",
    "tpm2_ptool": "libtpm2-pkcs11-tools",
    "tpm2-abrmd": "tpm2-abrmd",
    "dbus-daemon": "dbus",
}


def missing() -> str:
    """The Debian package to install, empty where everything is there."""
    if not any(path.exists() for path in LIBRARIES):
        return "libtpm2-pkcs11-1"
    if not any(Path("/usr/lib").glob("**/libtss2-tcti-tabrmd.so.0")):
        return "libtss2-tcti-tabrmd0"
    return next((package for tool, package in _TOOLS.items() if _which(tool) is None), "")


def _which(tool: str) -> str | None:
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")


@dataclass
class Tpm:
    """One software TPM with one token. `directory` must have a short path: it holds sockets."""

    directory: Path
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What the module and the tools need in the environment."""
        return {
            "TPM2_PKCS11_STORE": str(self.directory / "store"),
            "TPM2_PKCS11_TCTI": "tabrmd:bus_type=session",
            "TPM2TOOLS_TCTI": "tabrmd:bus_type=session",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.directory / 'bus'}",
            "TSS2_LOG": "all+NONE",
        }

    @property
    def config(self) -> HsmConfig:
        """The enclave's `hsm` section."""
        lib = next(path for path in LIBRARIES if path.exists())
        return HsmConfig(lib=str(lib), pin=f"file:{self.directory / 'pin'}", token_label=LABEL)

    def create(self) -> None:
        """Manufacture, start, initialize a token with both keys."""
        for name in ("state", "store"):
            (self.directory / name).mkdir()
        pin = self.directory / "pin"
        pin.touch(mode=0o600)
        pin.write_text(PIN)
        self._tool("swtpm_setup", "--tpm2", "--tpmstate", str(self.directory / "state"))
        self._start("dbus-daemon", "--session", "--nofork", f"--address=unix:path={self.directory / 'bus'}")
        self._await(self.directory / "bus")
        self.start()
        self._tool("tpm2_ptool", "init")
        self._tool("tpm2_ptool", "addtoken", "--pid=1", "--sopin=so-pin", f"--userpin={PIN}", f"--label={LABEL}")
        for algorithm, label in (("ecc256", "keymoot-identity"), ("hmac:sha256", "keymoot-seal-1")):
            names = (f"--label={LABEL}", f"--key-label={label}")
            self._tool("tpm2_ptool", "addkey", *names, f"--userpin={PIN}", f"--algorithm={algorithm}")

    def start(self) -> None:
        """Switch the TPM on, and its resource manager."""
        socket = self.directory / "tpm.sock"
        control = f"type=unixio,path={socket}.ctrl"
        state = f"dir={self.directory / 'state'}"
        server = f"type=unixio,path={socket}"
        flags = ("--flags", "startup-clear")
        self._start("swtpm", "socket", "--tpm2", "--tpmstate", state, "--server", server, "--ctrl", control, *flags)
        self._await(socket)
        as_root = ("--allow-root",) if os.getuid() == 0 else ()
        self._start("tpm2-abrmd", "--session", f"--tcti=swtpm:path={socket}", *as_root)
        deadline_s = time.monotonic() + DEADLINE_S
        while subprocess.run(self._command("tpm2", "getrandom", "4"), env=self._full(), capture_output=True).returncode:
            assert time.monotonic() < deadline_s, "the resource manager does not answer"
            time.sleep(0.05)

    @property
    def chip(self) -> int:
        """The process id of the TPM itself."""
        return self._running[-2].pid

    def switch_off(self) -> None:
        """Stop the resource manager and the TPM; the bus stays."""
        for process in (self._running.pop(), self._running.pop()):
            process.terminate()
            process.wait(DEADLINE_S)

    def stop(self) -> None:
        """Stop everything."""
        while self._running:
            process = self._running.pop()
            process.terminate()
            process.wait(DEADLINE_S)

    def _full(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def _command(self, tool: str, *arguments: str) -> list[str]:
        found = _which(tool)
        assert found is not None
        return [found, *arguments]

    def _tool(self, tool: str, *arguments: str) -> None:
        subprocess.run(self._command(tool, *arguments), env=self._full(), check=True, capture_output=True)

    def _start(self, tool: str, *arguments: str) -> None:
        with (self.directory / f"{tool}.log").open("ab") as log:
            self._running.append(
                subprocess.Popen(self._command(tool, *arguments), env=self._full(), stdout=log, stderr=log)
            )

    def _await(self, path: Path) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not path.exists():
            assert time.monotonic() < deadline_s, f"{path} does not appear"
            time.sleep(0.01)

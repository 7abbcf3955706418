"""Where an installed host (the Debian package, its units) has what: the one place that says so beside the units.

A host with one signer or coordinator uses the plain units, one with several the template units (`keymoot-signer@NAME`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.templates import Places

CONFIGURATION = Path("/etc/keymoot")
CREDENTIAL_STORE = Path("/etc/credstore.encrypted")
# Who may read a signer's configuration: enclave and signer, which are different users.
GROUP = "keymoot"
ENCLAVE_USER, SIGNER_USER, COORDINATOR_USER = "keymoot-enclave", "keymoot-signer", "keymoot-coordinator"
# Configuration is root's, its directory opened to the group of its process, which files made later inherit;
# private keys are root's alone (0600) and reach their process as credentials.
DIRECTORY_MODE = 0o2750
PIN_CREDENTIAL = "hsm-pin"
# Where the enclave's unit lets it load a PKCS#11 module from (ExecPaths=).
EXECUTABLE = (Path("/usr"), Path("/opt"))


@dataclass(frozen=True)
class SignerHost:
    """A signer and its enclave on this host. `instance`: its name where the host has several."""

    instance: str | None = None

    @property
    def configuration(self) -> Path:
        """The directory of enclave.yaml and signer.yaml: of root, group `GROUP`."""
        return CONFIGURATION / "signer" if self.instance is None else CONFIGURATION / "signers" / self.instance

    @property
    def units(self) -> tuple[str, str]:
        """The enclave's and the signer's unit."""
        at = "" if self.instance is None else f"@{self.instance}"
        return f"keymoot-enclave{at}.service", f"keymoot-signer{at}.service"

    @property
    def pin_file(self) -> Path:
        """The HSM's PIN, as `systemd-creds encrypt --name=hsm-pin` wrote it."""
        name = PIN_CREDENTIAL if self.instance is None else f"{self.instance}.{PIN_CREDENTIAL}"
        return CREDENTIAL_STORE / f"keymoot.{name}"

    @property
    def new_pin(self) -> str:
        """The commands that give the enclave another PIN. systemd reads a credential when the unit starts."""
        instance = "" if self.instance is None else f" --instance {self.instance}"
        return f"keymoot setup --replace-pin{instance} && systemctl restart {self.units[0]}"

    @property
    def places(self) -> Places:
        """What the configuration's templates say of places."""
        at = "" if self.instance is None else f"-{self.instance}"
        return Places(
            enclave_socket=f"/run/keymoot-enclave{at}/enclave.sock",
            enclave_state=f"/var/lib/keymoot-enclave{at}",
            status_socket=f"/run/keymoot-signer{at}/signer.sock",
            state=f"/var/lib/keymoot-signer{at}/signer.db",
            key="credential:signer.key",
            signer_user=SIGNER_USER,
        )


@dataclass(frozen=True)
class CoordinatorHost:
    """A coordinator on this host. `instance`: its name where the host has several."""

    instance: str | None = None

    @property
    def configuration(self) -> Path:
        """The directory of coordinator.yaml: of root, group `COORDINATOR_USER`."""
        return (
            CONFIGURATION / "coordinator" if self.instance is None else CONFIGURATION / "coordinators" / self.instance
        )

    @property
    def unit(self) -> str:
        """Its unit."""
        return f"keymoot-coordinator{'' if self.instance is None else f'@{self.instance}'}.service"

    @property
    def places(self) -> Places:
        """What the configuration's templates say of places."""
        at = "" if self.instance is None else f"-{self.instance}"
        return Places(
            state=f"/var/lib/keymoot-coordinator{at}/coordinator.db",
            key="credential:server.key",
        )


def signer_at(directory: Path) -> SignerHost | None:
    """The installed signer whose configuration is in `directory`; None for any other directory."""
    directory = directory.resolve()
    if directory == SignerHost().configuration:
        return SignerHost()
    return SignerHost(directory.name) if directory == SignerHost(directory.name).configuration else None


def may_load(lib: Path) -> bool:
    """Whether the enclave's unit lets it load a module from there without a drop-in."""
    return any(lib.resolve().is_relative_to(place) for place in EXECUTABLE)


def network_drop_in(addresses: list[str]) -> str:
    """A drop-in for the signer's unit: it reaches these addresses or networks (and loopback), nothing else.

    They are those of the coordinators, of the gate, and of the name server where hosts are given by name.
    """
    allowed = "".join(f"IPAddressAllow={address}\n" for address in ["localhost", *addresses])
    return f"# Whom this signer may reach: coordinators, gate, name server.\n[Service]\nIPAddressDeny=any\n{allowed}"

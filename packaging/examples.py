"""Writes the example configuration of an installed host into the directory named: what `keymoot init` would write.

The identity keys are examples: nobody keeps what belongs to them.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance import configure, enrolment, layout, templates
from appliance.enrolment import Identity
from policies.roster import identity_fingerprint

NETWORK = "example"


def identity(number: int) -> Identity:
    """A signer's, of a key that anybody can compute."""
    point = (
        ec.derive_private_key(number, ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    )
    name = f"signer-{number}"
    return Identity(NETWORK, name, f"operator {number}", base64.b64encode(point).decode(), identity_fingerprint(point))


def texts() -> dict[str, str]:
    """File names and what is in them."""
    signer, coordinator = layout.SignerHost(), layout.CoordinatorHost()
    hsm = templates.Hsm("/usr/lib/softhsm/libsofthsm2.so", "keymoot", f"credential:{layout.PIN_CREDENTIAL}")
    address = templates.CoordinatorAddress("coordinator", "https://coordinator.example:8443", b"")
    gate = templates.GateAddress("https://gate.example:8090/validate", b"")
    setup = templates.SignerSetup(NETWORK, "signer-1", (address,), hsm, gate, signer.places)
    return {
        "enclave.yaml": templates.enclave_yaml(setup),
        "signer.yaml": templates.signer_yaml(setup),
        "coordinator.yaml": templates.coordinator_yaml(
            templates.CoordinatorSetup(NETWORK, "coordinator", places=coordinator.places)
        ),
        "clients.yaml": configure.NO_CLIENTS,
        "client.yaml": templates.client_yaml(
            templates.ClientSetup(NETWORK, "payouts", "https://coordinator.example:8080", b"")
        ),
        "gate.yaml": templates.gate_yaml(templates.GateSetup("gate", "127.0.0.1:8090")),
        "roster.yaml": enrolment.roster_yaml(enrolment.make_roster([identity(number) for number in (1, 2, 3)], 1)),
    }


def main(directory: Path) -> None:
    """Write them, and the worked policies beside them."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        (directory / name).write_text(text)
    for worked in sorted((Path(__file__).parents[1] / "policies").glob("*.yaml")):
        (directory / f"policy-{worked.name}").write_bytes(worked.read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

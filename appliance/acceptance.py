"""The operator's word that a peer's state is right although it was refused: a line in the enclave's own file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance import pki
from policies.acceptance import ACCEPTED_STATES_FILE, BOOT_DIGITS, MAX_ACCEPTED, AcceptedState, AcceptedStates
from policies.errors import CallerError
from policies.load import load_yaml
from policies.roster import Roster

_HEAD = """# States of other signers that this enclave's operator has accepted. Each line serves once.
version: 1
accepted:
"""


class _EnclaveFile(msgspec.Struct, frozen=True):
    """What is needed here of `enclave.yaml`."""

    roster: str


def accept(config: Path, signer: str, version: int, boot: str) -> Path:
    """Add a line to the file beside `enclave.yaml`, which is replaced in one step. Returns its path.

    Raises `CallerError` for a signer that the roster does not list, or for what is no boot.
    """
    directory = config.parent
    roster = load_yaml(directory / load_yaml(config, _EnclaveFile).roster, Roster)
    if signer not in {entry.name for entry in roster.signers}:
        raise CallerError(f"no signer {signer} in the roster of {roster.network}")
    if len(boot) != BOOT_DIGITS or set(boot) - set("0123456789abcdef"):
        raise CallerError(f"--boot takes the {BOOT_DIGITS} hex digits that the refusal names")
    path = directory / ACCEPTED_STATES_FILE
    known = load_yaml(path, AcceptedStates).accepted if path.exists() else ()
    new = AcceptedState(signer, version, boot)
    lines = [*(line for line in known if line != new), new][-MAX_ACCEPTED:]
    text = "".join(f'  - {{signer: {each.signer}, version: {each.version}, boot: "{each.boot}"}}\n' for each in lines)
    pki.replace(path, (_HEAD + text).encode())
    return path

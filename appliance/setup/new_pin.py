"""Another PIN in the place of the one that an installed enclave has. It is tried at the HSM, once, before it counts."""

from __future__ import annotations

import msgspec

from appliance.enrolment import enclave_command
from appliance.hsm_check import Checked, check_module
from appliance.setup.hosts import Place
from appliance.setup.pins import EncryptedPin, FilePin, Pin
from policies.errors import CallerError
from policies.load import load_yaml


class _Hsm(msgspec.Struct, frozen=True):
    pin: str


class _EnclaveFile(msgspec.Struct, frozen=True):
    hsm: _Hsm


def replace_pin(place: Place, kept: FilePin, pin: Pin) -> Checked:
    """What the HSM says with it. Nothing is replaced where it says nothing good.

    Raises `CallerError` where the HSM refuses it, which costs one try, or the PIN is kept by somebody else;
    `Unavailable` where the HSM is away.
    """
    config = place.directory / "enclave.yaml"
    command = enclave_command("hsm-check", config)
    reference = load_yaml(config, _EnclaveFile).hsm.pin
    if not isinstance(kept, EncryptedPin) or reference != kept.reference:
        raise CallerError(f"{config} has its PIN from {reference}: write the new one there; no setup keeps it")
    try:
        with kept.trying(pin) as environment:
            checked = check_module(command, environment=environment, user=place.owner)
    except CallerError as error:
        raise CallerError(f"nothing was replaced: {error}") from None
    kept.replace(pin)
    return checked

"""What an operator does next, after a run of `keymoot setup`."""

from __future__ import annotations

from pathlib import Path

from appliance import layout
from appliance.enrolment import IDENTITY_FILE
from appliance.setup.answers import Answers
from appliance.setup.coordinator import SIGNERS_CA
from appliance.setup.hosts import Place
from appliance.setup.signer import POLICY, ROSTER, Done
from appliance.templates import CLIENTS_FILE


def next_steps(said: Answers, done: Done, place: Place) -> list[str]:
    """Sentences, in order."""
    again = "keymoot setup --role " + str(said.role) + ("" if place.units else f" --directory {done.directory}")
    return (_coordinator if said.role == "coordinator" else _signer)(done, place, again)


def _signer(done: Done, place: Place, again: str) -> list[str]:
    steps = []
    if ROSTER in done.missing:
        steps += [
            f"Send {done.directory / IDENTITY_FILE} to the other operators; tell them the fingerprint by telephone.",
            f"Send {done.directory / 'ca.pem'} to the coordinator's operator.",
            "One of you makes roster.yaml: keymoot roster assemble; compare every fingerprint in it.",
        ]
    secrets = set(done.missing) - {ROSTER, POLICY}
    if {ROSTER, POLICY} & set(done.missing):
        gate = " --gate-secrets-out FILE, and move FILE to the gate's handler" if secrets else ""
        steps.append(f"Then: {again} --roster roster.yaml --policy policy.yaml{gate}")
    elif secrets:
        steps.append(f"Set the gate's secrets: {again} --gate-secrets-out FILE, and move FILE to the gate's handler.")
    if place.units:
        if done.lib and not layout.may_load(Path(done.lib)):
            steps.append(
                f"Let the enclave load {done.lib}: systemctl edit {place.units[0]}, with [Service] and "
                f"ExecPaths={Path(done.lib).resolve().parent}, and of the libraries that it needs."
            )
        steps += [
            f"Say in a drop-in of {place.units[1]} whom it may reach: signer-network.conf in keymoot-appliance(7).",
            f"Start: systemctl enable --now {' '.join(place.units)}",
        ]
    else:
        steps += [
            f"Start: keymoot enclave run -c {done.directory / 'enclave.yaml'}",
            f"Start: keymoot signer run -c {done.directory / 'signer.yaml'}",
        ]
    return [*steps, f"See whether all is well: keymoot doctor {done.directory}"]


def _coordinator(done: Done, place: Place, again: str) -> list[str]:
    steps = []
    if SIGNERS_CA in done.missing:
        steps += [
            f"Send {done.directory / 'ca.pem'} to every signer's operator and to the clients.",
            f"Take in the operators' CAs: {again} --signers-ca A/ca.pem --signers-ca B/ca.pem",
        ]
    if ROSTER in done.missing:
        steps.append(f"Take in the roster that all operators have checked: {again} --roster roster.yaml")
    steps.append(f"Enter what `keymoot init client` prints into {done.directory / CLIENTS_FILE} and coordinator.yaml.")
    steps.append(
        f"Start: systemctl enable --now {' '.join(place.units)}"
        if place.units
        else f"Start: keymoot coordinator run -c {done.directory / 'coordinator.yaml'}"
    )
    return [*steps, f"See whether all is well: keymoot doctor {done.directory}"]

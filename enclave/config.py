"""The enclave's configuration: root-owned files that it reads itself. Unknown fields are errors."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from enclave.gate_keys import Scheme
from enclave.hsm.config import HsmConfig
from policies.acceptance import ACCEPTED_STATES_FILE
from policies.errors import CallerError
from policies.load import load_yaml
from policies.model import Policy
from policies.roster import Name, Roster

FREEZES_FILE = "freezes.json"

GateMode = Literal["signed", "status", "none"]
Schemes = Annotated[tuple[Scheme, ...], msgspec.Meta(max_length=2)]


class GateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mode` says how this signer's operator is asked: `signed`, `none`, or `status` (weaker: who takes the signer
    process over can approve). `secrets`: the sealed file of the keys.

    `deadline_s`: how long the gate has, and how long a request is remembered that other signers' gates decide.
    `requests`: how questions are signed, `v1` (HMAC) and `v1a` (Ed25519); None: `v1` in mode `signed`, not at all in
    mode `status`. `answers`: which signatures count, all else is refused. `key_creation`: whether it is asked before a
    key is made, too.
    """

    mode: GateMode
    secrets: str = "gate-secrets.sealed"  # a file's name
    deadline_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 60
    requests: Schemes | None = None
    answers: Annotated[Schemes, msgspec.Meta(min_length=1)] = ("v1",)
    key_creation: bool = False

    @property
    def signed_by(self) -> Schemes:
        """How questions are signed."""
        if self.requests is not None:
            return self.requests
        return ("v1",) if self.mode == "signed" else ()

    @property
    def accepted(self) -> Schemes:
        """Which signatures of answers count; in mode `status` nobody looks at them."""
        return self.answers if self.mode == "signed" else ()

    @property
    def needs_secrets(self) -> bool:
        """Whether there must be keys."""
        return self.mode != "none" and bool(self.signed_by or self.accepted)


class EnclaveFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`enclave.yaml` as written. Relative paths are taken from its directory. `signer_uid` or `signer_user`: who may
    connect. `state`: the directory in which the enclave itself keeps what it was frozen for."""

    network: Name
    signer: Name
    roster: str
    policy: str
    socket: str
    hsm: HsmConfig
    gate: GateConfig
    signer_uid: Annotated[int, msgspec.Meta(ge=0)] | None = None
    signer_user: Annotated[str, msgspec.Meta(pattern=r"^[a-z_][a-z0-9_-]{0,31}$(?!\n)")] | None = None
    state: str = "enclave-state"

    def __post_init__(self) -> None:
        if self.signer_uid is not None and self.signer_user is not None:
            raise ValueError("name who may connect by signer_uid or by signer_user, one of them")

    @property
    def peer_uid(self) -> int:
        """Who may connect: the user named, else the enclave's own. Raises `CallerError` where there is no such user."""
        if self.signer_user is None:
            return os.getuid() if self.signer_uid is None else self.signer_uid
        try:
            return pwd.getpwnam(self.signer_user).pw_uid
        except KeyError:
            raise CallerError(f"signer_user: this machine has no user {self.signer_user}") from None


@dataclass(frozen=True)
class EnclaveConfig:
    """The configuration with its files loaded and paths resolved. `index`: this signer's party index."""

    file: EnclaveFile
    roster: Roster
    policy: Policy
    index: int
    hsm: HsmConfig
    socket: Path
    gate_secrets: Path
    accepted_states: Path
    freezes: Path

    def with_policy(self, file: EnclaveFile, policy: Policy) -> EnclaveConfig:
        """This configuration with another policy, and what `file` says."""
        return replace(self, file=file, policy=policy)


def load_enclave_file(path: Path) -> tuple[EnclaveFile, HsmConfig]:
    """`enclave.yaml` alone, enough to provision: the roster does not exist before that."""
    file = load_yaml(path, EnclaveFile)
    return file, file.hsm.resolved(path.parent)


def load_config(path: Path) -> EnclaveConfig:
    """Everything the enclave runs with. Raises `CallerError` with file, line and column, or what does not fit."""
    file, hsm = load_enclave_file(path)
    directory = path.parent
    roster = load_yaml(directory / file.roster, Roster)
    policy = load_yaml(directory / file.policy, Policy)
    if roster.network != file.network:
        raise CallerError(f"{path}: network {file.network}, but the roster is of network {roster.network}")
    index = next((signer.index for signer in roster.signers if signer.name == file.signer), None)
    if index is None:
        raise CallerError(f"{path}: no signer {file.signer} in the roster of {roster.network}")
    if file.gate.mode == "signed" and not file.gate.signed_by:
        raise CallerError(f"{path}: gate.requests is empty: mode 'signed' needs v1 or v1a")
    return EnclaveConfig(
        file=file,
        roster=roster,
        policy=policy,
        index=index,
        hsm=hsm,
        socket=directory / file.socket,
        gate_secrets=directory / file.gate.secrets,
        accepted_states=directory / ACCEPTED_STATES_FILE,
        freezes=directory / file.state / FREEZES_FILE,
    )

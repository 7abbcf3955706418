"""What `keymoot setup` has to know: from a file, from options and from questions, whichever says it last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from appliance import configure, templates
from appliance.coordinator.config import Listen
from appliance.signer.config import HttpsUrl
from appliance.templates import BESIDE, Places
from policies.errors import CallerError
from policies.load import load_yaml
from policies.roster import Name

Role = Literal["signer", "coordinator"]
GateMode = Literal["signed", "status", "none"]
MAX_COORDINATORS = 8


class CoordinatorAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A coordinator that the signer connects to; `ca`: the file with the CA of its certificate."""

    name: Name
    url: HttpsUrl
    ca: Path


class GateAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The operator's gate. `mode: none` has neither `url` nor `ca`."""

    mode: GateMode
    url: HttpsUrl | None = None
    ca: Path | None = None

    def __post_init__(self) -> None:
        if (self.mode == "none") != (self.url is None) or (self.url is None) != (self.ca is None):
            raise ValueError("a gate has url and ca, and mode none has neither")


class HsmAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As the section `hsm` of enclave.yaml. The PIN is asked for apart, and is in no file of answers."""

    lib: Annotated[str, msgspec.Meta(min_length=1)]
    token_label: Annotated[str, msgspec.Meta(min_length=1, max_length=32)] | None = None
    slot: Annotated[int, msgspec.Meta(ge=0)] | None = None
    init_args: str | None = None
    accept_key_export: bool = False

    def __post_init__(self) -> None:
        if (self.token_label is None) == (self.slot is None):
            raise ValueError("hsm: name the token by token_label or by slot, one of them")


class Answers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that can be said. Paths of a file of answers are taken from its directory.

    `roster` and `policy`: files to take in once they are there; `gate_secrets`: the JSON file that the gate's handler
    has already, `gate_secrets_out`: where new ones go for it, either once roster and policy are there; `signers_ca`:
    the CAs of the signers' operators.
    """

    role: Role | None = None
    network: Name | None = None
    name: Name | None = None
    operator: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    coordinators: Annotated[tuple[CoordinatorAnswer, ...], msgspec.Meta(max_length=MAX_COORDINATORS)] = ()
    hsm: HsmAnswer | None = None
    gate: GateAnswer | None = None
    roster: Path | None = None
    policy: Path | None = None
    gate_secrets: Path | None = None
    gate_secrets_out: Path | None = None
    hosts: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    signers_listen: Listen = f"0.0.0.0:{templates.SIGNERS_PORT}"
    api_listen: Listen = f"127.0.0.1:{templates.API_PORT}"
    signers_ca: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.gate_secrets is not None and self.gate_secrets_out is not None:
            raise ValueError("the gate's secrets are there already, or are made for gate_secrets_out: not both")


def read_answers(path: Path) -> Answers:
    """The answers in a YAML file, its paths made absolute. Raises `CallerError` with line and column."""
    said = load_yaml(path, Answers)
    base = path.resolve().parent
    gate = said.gate
    if gate is not None:
        gate = msgspec.structs.replace(gate, ca=_in(base, gate.ca))
    return msgspec.structs.replace(
        said,
        coordinators=tuple(msgspec.structs.replace(one, ca=base / one.ca) for one in said.coordinators),
        gate=gate,
        roster=_in(base, said.roster),
        policy=_in(base, said.policy),
        gate_secrets=_in(base, said.gate_secrets),
        gate_secrets_out=_in(base, said.gate_secrets_out),
        signers_ca=tuple(base / path for path in said.signers_ca),
    )


def merged(file: Answers, given: Mapping[str, object]) -> Answers:
    """`file` with what options and questions say. Raises `CallerError` where a value does not fit."""
    said = msgspec.structs.asdict(file) | {name: value for name, value in given.items() if value or value == 0}
    try:
        return msgspec.convert({name: _builtin(value) for name, value in said.items()}, Answers, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise CallerError(f"these answers do not fit: {error}") from None


def missing_of_signer(said: Answers) -> list[str]:
    """The options that a new signer's answers lack, as `--help` names them."""
    wanted = {
        "--network": said.network,
        "--name": said.name,
        "--operator": said.operator,
        "--coordinator with --coordinator-ca": said.coordinators,
        "--lib with --token-label or --slot": said.hsm,
        "--gate-mode": said.gate,
    }
    return [option for option, value in wanted.items() if not value]


def missing_of_coordinator(said: Answers) -> list[str]:
    """The same for a coordinator."""
    wanted = {"--network": said.network, "--name": said.name, "--host or --address": (*said.hosts, *said.addresses)}
    return [option for option, value in wanted.items() if not value]


def signer_setup(said: Answers, pin: str, places: Places = BESIDE) -> templates.SignerSetup:
    """What a signer's files are written from; `pin` is the reference. Raises `CallerError` for unreadable CAs."""
    assert said.network is not None and said.name is not None and said.hsm is not None  # noqa: PT018
    hsm = said.hsm
    return templates.SignerSetup(
        network=said.network,
        name=said.name,
        coordinators=tuple(
            templates.CoordinatorAddress(one.name, one.url, configure.read_ca(one.ca, "the coordinator's CA"))
            for one in said.coordinators
        ),
        hsm=templates.Hsm(hsm.lib, hsm.token_label or "", pin, hsm.slot, hsm.init_args, hsm.accept_key_export),
        gate=_gate_address(said.gate),
        places=places,
    )


def coordinator_setup(
    said: Answers, readers: tuple[tuple[str, str], ...], places: Places
) -> templates.CoordinatorSetup:
    """What a coordinator's files are written from."""
    assert said.network is not None and said.name is not None  # noqa: PT018
    return templates.CoordinatorSetup(
        network=said.network,
        name=said.name,
        names=said.hosts or ("localhost",),
        addresses=said.addresses or ("127.0.0.1",),
        listen_signers=said.signers_listen,
        listen_api=said.api_listen,
        readers=readers,
        places=places,
    )


def _gate_address(gate: GateAnswer | None) -> templates.GateAddress | None:
    if gate is None or gate.url is None or gate.ca is None:
        return None
    return templates.GateAddress(gate.url, configure.read_ca(gate.ca, "the gate's CA"), gate.mode)


def _in(base: Path, file: Path | None) -> Path | None:
    return None if file is None else base / file


def _path(kind: type, value: object) -> Path:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(kind)


def _builtin(value: object) -> object:
    return msgspec.to_builtins(value, enc_hook=str)

"""A field that nobody knows is refused wherever a person or a client writes one, with its place."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from appliance.coordinator.api import _parse
from appliance.coordinator.config import CoordinatorConfig
from appliance.gate.config import GateConfig, GateSecrets
from appliance.profile import ProfileFile
from appliance.signer.config import SignerConfig
from enclave.config import EnclaveFile
from enclave.errors import Refused
from enclave.gate_keys import SecretsFile
from policies.acceptance import AcceptedStates
from policies.errors import CallerError
from policies.gate_messages import Answer
from policies.load import load_yaml
from policies.model import Policy
from policies.requests import HashBatch, KeyCreation, SigningBody
from policies.roster import Roster
from policies.signed_requests import ProtectedHeader, parse_strictly
from tests.property.test_every_decoder import (
    ACCEPTED,
    BATCH,
    CLIENT_YAML,
    CREATION,
    ENCLAVE,
    GATE_YAML,
    HASH,
    ROSTER,
    SIGNER,
)

COORDINATOR = (
    b"network: n\nname: c\nroster: r\nstate: s\n"
    b"signers: {listen: '127.0.0.1:1', certificate: c, key: k, client_ca: a}\n"
    b"api: {listen: '127.0.0.1:2', certificate: c, key: k, clients: p}\n"
)
FILES = {
    SignerConfig: SIGNER,
    CoordinatorConfig: COORDINATOR,
    EnclaveFile: ENCLAVE,
    GateConfig: GATE_YAML,
    ProfileFile: CLIENT_YAML,
    AcceptedStates: ACCEPTED,
}
STRICT = [
    *FILES,
    Policy,
    Roster,
    GateSecrets,
    SecretsFile,
    Answer,
    ProtectedHeader,
    KeyCreation,
    HashBatch,
    SigningBody,
]


@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.__name__)
def test_in_a_file_it_is_refused_with_line_and_column(kind: type[Any], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(FILES[kind] + b"unexpected: 1\n")
    line = FILES[kind].count(b"\n") + 1
    with pytest.raises(CallerError, match=rf"file\.yaml:{line}:1: unknown field `unexpected`"):
        load_yaml(path, kind)


@pytest.mark.parametrize(
    ("kind", "before", "after", "place"),
    [
        (SignerConfig, b"key: c}", b"key: c, unexpected: 1}", r"file.yaml:5:\d+: .* `unexpected` \(in coord"),
        (EnclaveFile, b"mode: none}", b"mode: none, unexpected: 1}", r"file.yaml:7:\d+: .* `unexpected` \(in g"),
        (CoordinatorConfig, b"client_ca: a}", b"client_ca: a, unexpected: 1}", r"file.yaml:5:\d+: unknown field"),
    ],
)
def test_deeper_in_a_file_too(kind: type[Any], before: bytes, after: bytes, place: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(FILES[kind].replace(before, after))
    with pytest.raises(CallerError, match=place):
        load_yaml(path, kind)


def test_in_a_roster_it_is_refused_with_its_signer(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "roster.yaml"
    path.write_bytes(ROSTER.replace(b'"index":2,', b'"index":2,"unexpected":1,'))
    with pytest.raises(CallerError, match=r"roster\.yaml:1:\d+: unknown field `unexpected` \(in signers\[1\]\)"):
        load_yaml(path, Roster)


@pytest.mark.parametrize(("kind", "body"), [(SigningBody, HASH), (KeyCreation, CREATION), (HashBatch, BATCH)])
def test_in_a_body_it_is_refused_by_name(kind: Any, body: bytes) -> None:
    changed = body[:-1] + b',"unexpected":1}'
    with pytest.raises(CallerError, match="unknown field `unexpected`"):
        _parse(changed, kind)
    with pytest.raises(Refused, match="unknown field `unexpected`"):
        parse_strictly(changed, kind, "request/body")


def structs(info: Any, seen: set[type]) -> Iterator[Any]:
    """Every struct within a type."""
    if isinstance(info, msgspec.inspect.StructType) and info.cls not in seen:
        seen.add(info.cls)
        yield info
        for field in info.fields:
            yield from structs(field.type, seen)
    for name in ("types", "item_types", "item_type", "key_type", "value_type", "type"):
        inner = getattr(info, name, None)
        for one in inner if isinstance(inner, tuple) else [inner]:
            if isinstance(one, msgspec.inspect.Type):
                yield from structs(one, seen)


@pytest.mark.parametrize("kind", STRICT, ids=lambda kind: getattr(kind, "__name__", "SigningBody"))
def test_every_struct_within_is_strict(kind: Any) -> None:
    found = list(structs(msgspec.inspect.type_info(kind), set()))
    assert found
    assert [info.cls.__name__ for info in found if not info.forbid_unknown_fields] == []

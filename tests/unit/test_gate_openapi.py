"""The gate's OpenAPI document: valid, and true of what the enclave asks and of the answers that it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import openapi_spec_validator
import pytest
from jsonschema import Draft202012Validator

from appliance.gate.check.samples import REQUEST_INFO, SAMPLES, SIGNER_INFO
from appliance.gate.openapi import describe
from policies.gate_messages import Answer, GateInfo, GateRequest

DOCUMENT = describe("0")
ANSWER: dict[str, Any] = {
    "type": "validation.answer", "uid": "ab" * 16, "request_digest": SIGNER_INFO.digest(), "signer_id": "s1",
    "kind": "Signing", "dryRun": False, "allowed": True, "status": {"code": 0}, "expiresAt": "2030-01-01T00:00:00Z",
}  # fmt: skip


def valid(name: str, value: object) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return Draft202012Validator(schema).is_valid(value)


def test_the_document_is_valid_openapi() -> None:
    openapi_spec_validator.validate(DOCUMENT, cls=openapi_spec_validator.OpenAPIV31SpecValidator)
    assert DOCUMENT["openapi"] == "3.1.0"
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema["description"], name


@pytest.mark.parametrize("info", [sample.info for sample in SAMPLES.values()], ids=lambda info: str(info.kind))
def test_what_the_enclave_asks_is_described(info: GateInfo) -> None:
    asked = GateRequest.about(info, REQUEST_INFO, uid="ab" * 16, attempt=1, deadline_s=1000)
    message = json.loads(msgspec.json.encode(asked))
    assert valid("GateRequest", message)
    for name in message["signerInfo"]:
        left = {key: value for key, value in message["signerInfo"].items() if key != name}
        assert not valid("GateRequest", message | {"signerInfo": left}), name
    assert not valid("GateRequest", message | {"signerInfo": message["signerInfo"] | {"kind": "Other"}})


def test_there_is_an_example_of_each_kind() -> None:
    content = DOCUMENT["paths"]["/"]["post"]["requestBody"]["content"]["application/json"]
    assert list(content["examples"]) == list(SAMPLES)
    for kind, example in content["examples"].items():
        assert example["value"]["signerInfo"]["kind"] == kind
        assert valid("GateRequest", example["value"])
        assert valid(type(SAMPLES[kind].info).__name__, example["value"]["signerInfo"])


def test_every_kind_is_described_once() -> None:
    kinds = [DOCUMENT["components"]["schemas"][info.__name__]["properties"]["kind"] for info in get_args(GateInfo)]
    names = [kind.get("const") or kind["enum"][0] for kind in kinds]
    assert sorted(names) == ["BackupKeyChange", "KeyCreation", "Refresh", "Reshare", "Signing", "SigningBatch"]


def test_kinds_that_no_enclave_asks_about_say_so() -> None:
    """An enclave that asks about one more has to say so here, too."""
    schemas = {info.__name__: DOCUMENT["components"]["schemas"][info.__name__] for info in get_args(GateInfo)}
    sources = [path.read_text() for path in (Path(__file__).parents[2] / "enclave").rglob("*.py")]
    asked = {name for name in schemas if any(f"{name}(" in text for text in sources)}
    assert asked == {"SignerInfo", "BatchSignerInfo", "KeyCreationInfo"}
    assert {
        name for name, schema in schemas.items() if "Not asked yet" in schema["description"]
    } == schemas.keys() - asked


def test_an_answer_is_described_as_it_is_read() -> None:
    assert valid("Answer", ANSWER)
    for name in ANSWER:
        left = {key: value for key, value in ANSWER.items() if key != name}
        try:
            msgspec.convert(left, Answer)
        except msgspec.ValidationError:
            assert not valid("Answer", left), name
        else:
            assert valid("Answer", left), name
    assert not valid("Answer", ANSWER | {"note": "fine"})
    assert not valid("Answer", ANSWER | {"allowed": "true"})


def test_the_command_prints_it() -> None:
    command = [sys.executable, "-m", "appliance.cli", "gate", "openapi"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["paths"] == DOCUMENT["paths"]
    assert document["components"] == DOCUMENT["components"]

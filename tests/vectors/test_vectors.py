"""A seeded run gives the committed answers, so that no refactoring changes the wire or the keys unnoticed."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from tests.vectors import generate

KNOWN: dict[str, Any] = json.loads(generate.FILE.read_text())


@cache
def scheme(name: str) -> dict[str, Any]:
    return generate.scheme(*generate.SCHEMES[name])


@pytest.mark.parametrize("part", ["setup", "keygen", "presign", "sign"])
@pytest.mark.parametrize("name", generate.SCHEMES)
def test_a_seeded_run_gives_the_known_answers(name: str, part: str) -> None:
    assert scheme(name)[part] == KNOWN["schemes"][name][part]


@pytest.mark.parametrize("what", KNOWN["encodings"])
def test_encodings(what: str) -> None:
    assert generate.encodings()[what] == KNOWN["encodings"][what]


def test_every_vector_is_checked() -> None:
    assert set(KNOWN) == {"schemes", "encodings"}
    assert set(KNOWN["schemes"]) == set(generate.SCHEMES)
    assert all(set(each) == {"setup", "keygen", "presign", "sign"} for each in KNOWN["schemes"].values())
    assert set(generate.encodings()) == set(KNOWN["encodings"])


@pytest.mark.parametrize("name", generate.SCHEMES)
def test_the_known_signature_verifies_in_openssl(name: str) -> None:
    """The vectors are right, not only the same as before."""
    known = KNOWN["schemes"][name]["sign"]
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), bytes.fromhex(known["child_key"]))
    signature = utils.encode_dss_signature(int(known["r"], 16), int(known["s"], 16))
    public.verify(signature, generate.HASH, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


def test_the_committed_file_is_what_the_generator_writes() -> None:
    computed = {"schemes": {name: scheme(name) for name in generate.SCHEMES}, "encodings": generate.encodings()}
    assert generate.FILE.read_text() == json.dumps(computed, indent=2) + "\n"

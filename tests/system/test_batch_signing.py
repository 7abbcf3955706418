"""Batches of hashes on the whole appliance in real processes: every signature verified, asked for once, all or none."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.api.batches import BatchState, SignatureBatch
from appliance.api.client import ApiError, CertifiedKey, Client
from appliance.api.signatures import SignatureRefused
from appliance.cli import demo_inputs as inputs
from appliance.localnet import LocalNet
from policies.requests import HashBatch

# A batch of 50 needs more than the pool is kept at: it is filled for it.
POOL = (10, 20, 20)
COUNT = 50

pytestmark = pytest.mark.timeout(170)


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    with LocalNet(pool=POOL) as made:
        made.wait_for_pool(POOL[0])
        yield made


@pytest.fixture
def client(net: LocalNet) -> Iterator[Client]:
    with net.client() as made:
        yield made


@pytest.fixture(scope="module")
def key(net: LocalNet) -> CertifiedKey:
    with net.client() as made:
        return made.create_key("test/batches", "batch-key")


def batch_of(count: int) -> HashBatch:
    hashes = tuple("0x" + secrets.token_hex(32) for _ in range(count))
    return HashBatch(hashes, "batch-" + secrets.token_hex(8), tuple((0, number % 7) for number in range(count)))


def check(answer: SignatureBatch, body: HashBatch, key: CertifiedKey) -> None:
    """Every signature verifies under its own child key, by libsecp256k1 here; no two have one nonce."""
    assert (answer.status, answer.count) == (BatchState.SIGNED, len(body.hashes))
    nonces = set()
    for result, text, path in zip(answer.results, body.hashes, body.paths(), strict=True):
        assert result.signature is not None
        assert result.signature.hash == text
        assert inputs.libsecp256k1_verifies(key.public_key(path), result.signature)
        nonces.add(result.signature.r)
    assert len(nonces) == len(body.hashes)


def test_fifty_hashes_of_many_child_keys(client: Client, key: CertifiedKey) -> None:
    body = batch_of(COUNT)
    signed = client.sign_batch(key.id, body)
    check(signed, body, key)
    assert client.get_batch(key.id, signed.id, body) == signed
    other = HashBatch((body.hashes[1], *body.hashes[1:]), body.external_id, body.derivation_paths)
    with pytest.raises(SignatureRefused, match="not over what was asked for"):
        client.get_batch(key.id, signed.id, other)


def test_the_same_external_id_is_the_same_batch_and_another_body_a_conflict(client: Client, key: CertifiedKey) -> None:
    body = batch_of(3)
    first, again = client.sign_batch(key.id, body), client.sign_batch(key.id, body)
    assert first == again
    with pytest.raises(ApiError) as conflict:
        client.sign_batch(key.id, HashBatch(body.hashes[:2], body.external_id))
    assert conflict.value.status == 409


def test_the_command_line_signs_the_hashes_of_a_file(net: LocalNet, key: CertifiedKey, tmp_path: Path) -> None:
    body = batch_of(3)
    file = tmp_path / "hashes.txt"
    file.write_text(f"{body.hashes[0]}\n\n{body.hashes[1][2:]} m/0/5\n{body.hashes[2]}\n")
    arguments = ("sign", "batch", key.id, str(file), "--path", "m/1", "--json", "--profile", str(net.profile))
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    values = [result["signature"] for result in json.loads(done.stdout)["results"]]
    assert [value["hash"] for value in values] == list(body.hashes)
    expected = ["0x" + key.public_key(path).hex() for path in ((1,), (0, 5), (1,))]
    assert [value["publicKey"] for value in values] == expected

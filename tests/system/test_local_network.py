"""The whole appliance in real processes on SoftHSM: it signs, refuses, and comes back after every kill -9."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct, encode_typed_data

from appliance.api.client import ApiError, CertifiedKey, Client, Failed, Rejected
from appliance.api.credentials import load_token, new_token, save_token, token_sha256
from appliance.api.models import SignatureValue
from appliance.cli import demo_inputs as inputs
from appliance.localnet import LocalNet
from appliance.profile import ProfileFile
from appliance.templates import reader_yaml
from policies.errors import Unavailable
from policies.load import load_yaml
from policies.requests import (
    BitcoinBip143Preimage,
    Eip712TypedData,
    EthereumTransaction,
    Hash,
    Message,
    MessageHash,
)
from tests.fakes.typed_data import ETHER_MAIL, parsed

API_README = Path(__file__).parents[2] / "appliance" / "api" / "README.md"
REFUSING = 2
POOL = (100, 200, 100)
BACK_TIMEOUT_S = 60.0
NETWORK_TIMEOUT_S = 170

pytestmark = pytest.mark.timeout(NETWORK_TIMEOUT_S)


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    with LocalNet(pool=POOL, refuse={REFUSING: (inputs.REFUSED_DESTINATION,)}) as made:
        made.wait_for_pool(POOL[0])
        yield made


@pytest.fixture
def client(net: LocalNet) -> Iterator[Client]:
    with net.client() as made:
        yield made


@pytest.fixture(scope="module")
def key(net: LocalNet) -> CertifiedKey:
    with net.client() as made:
        return made.create_key("test/system", "system-key")


def new_id() -> str:
    return "test-" + secrets.token_hex(8)


def test_an_ethereum_transaction_is_sent_by_the_keys_address(client: Client, key: CertifiedKey) -> None:
    body = EthereumTransaction(inputs.unsigned_transaction(inputs.DESTINATION), new_id())
    value = client.sign(key.id, body).signature
    assert value is not None
    assert inputs.recovered_sender(inputs.DESTINATION, value) == key.ethereum_address()


def test_bip_143s_example_verifies_in_openssl_and_libsecp256k1(client: Client, key: CertifiedKey) -> None:
    value = client.sign(key.id, BitcoinBip143Preimage("0x" + inputs.BIP143_PREIMAGE.hex(), new_id())).signature
    assert value is not None
    assert value.hash == "0x" + inputs.BIP143_SIGHASH
    assert inputs.openssl_verifies(key.public_key(), value, inputs.BIP143_PREIMAGE)
    assert inputs.libsecp256k1_verifies(key.public_key(), value)


def test_a_message_and_typed_data_recover_to_the_keys_address(client: Client, key: CertifiedKey) -> None:
    message = client.sign(key.id, Message("0x" + b"hello".hex(), MessageHash.EIP_191, new_id())).signature
    typed_data = client.sign(key.id, Eip712TypedData(parsed(ETHER_MAIL), new_id())).signature
    assert message is not None
    assert typed_data is not None
    for value, signable in (
        (message, encode_defunct(b"hello")),
        (typed_data, encode_typed_data(full_message=ETHER_MAIL)),
    ):
        vrs = (value.recid + 27, value.r, value.s)
        assert Account.recover_message(signable, vrs=vrs) == key.ethereum_address()


def test_a_child_key_signs_a_hash(client: Client, key: CertifiedKey) -> None:
    value = client.sign(key.id, Hash("0x" + secrets.token_hex(32), new_id(), (44, 60, 0))).signature
    assert value is not None
    assert inputs.libsecp256k1_verifies(key.public_key((44, 60, 0)), value)
    assert not inputs.libsecp256k1_verifies(key.public_key(), value)


def test_a_gates_refusal_names_its_signer_and_costs_no_presignature(
    net: LocalNet, client: Client, key: CertifiedKey
) -> None:
    before = net.pools()
    body = EthereumTransaction(inputs.unsigned_transaction(inputs.REFUSED_DESTINATION), new_id())
    with pytest.raises(Rejected) as refused:
        client.sign(key.id, body)
    assert refused.value.signer == f"signer-{REFUSING}"
    assert inputs.REFUSED_DESTINATION in refused.value.reason
    assert net.pools() == before


def test_the_same_external_id_gives_the_same_signature_and_another_body_is_a_conflict(
    client: Client, key: CertifiedKey
) -> None:
    body = Hash("0x" + secrets.token_hex(32), new_id())
    first, again = client.sign(key.id, body), client.sign(key.id, body)
    assert first.signature == again.signature
    with pytest.raises(ApiError) as conflict:
        client.sign(key.id, Hash("0x" + secrets.token_hex(32), body.external_id))
    assert conflict.value.status == 409


def test_the_command_line_shows_the_key_and_signs_with_it(net: LocalNet, key: CertifiedKey) -> None:
    shown = json.loads(_keymoot("keys", "show", key.id, "--json", "--profile", str(net.profile)))
    assert shown["ethereum"] == key.ethereum_address()
    assert shown["scheme"] == "3 signers, tolerate 1: all 3 online to sign, 2 shares reconstruct"
    digest = secrets.token_hex(32)
    signed = json.loads(_keymoot("sign", "hash", key.id, digest, "--json", "--profile", str(net.profile)))
    assert signed["signature"]["hash"] == "0x" + digest


def test_the_python_of_the_apis_readme_makes_a_key_and_signs_with_it(net: LocalNet, client: Client) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", API_README.read_text(), re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", code], cwd=net.profile.parent, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    (key,) = [one.certified for one in client.list_keys() if one.answer.label == "treasury/one"]
    assert key is not None
    (signature,) = client.list_signatures(key.id)
    assert (signature.status, signature.external_id, signature.derivation_path) == ("Signed", "payment-17", (0, 5))


def test_a_reader_is_let_in_and_shut_out_while_the_coordinator_runs(net: LocalNet, tmp_path: Path) -> None:
    config, token = net.root / "coordinator" / "coordinator.yaml", tmp_path / "token"
    save_token(new_token(), token)
    before = config.read_text()

    def reads() -> bool:
        ran = subprocess.run(
            [sys.executable, "-m", "appliance.cli", "keys", "list", "--json", "--profile", str(net.profile)],
            env={**os.environ, "KEYMOOT_TOKEN_FILE": str(token)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0 or (ran.returncode == 2 and "credential-unknown" in ran.stderr), ran.stderr
        return ran.returncode == 0

    assert not reads()
    reader = reader_yaml("late", token_sha256(load_token(token)))
    config.write_text(before.replace("  readers:\n", "  readers:\n" + reader))
    net.kill("coordinator", signal.SIGHUP)
    net.wait_for(reads, "the new reader")
    config.write_text(before)
    net.kill("coordinator", signal.SIGHUP)
    net.wait_for(lambda: not reads(), "the reader to be shut out")


def listening(pid: int) -> set[str]:
    """Addresses (hex, as the kernel writes them) of the TCP sockets that a process listens on."""
    rows = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()
    ]
    inodes = {row[9]: row[1] for row in rows if row[3] == "0A"}
    links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    return {inodes[link[8:-1]] for link in links if link.startswith("socket:[") and link[8:-1] in inodes}


def internet_sockets(pid: int) -> int:
    """How many TCP and UDP sockets a process has."""
    names = ("tcp", "tcp6", "udp", "udp6")
    inodes = {
        line.split()[9] for name in names for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    }
    links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    return sum(link[8:-1] in inodes for link in links if link.startswith("socket:["))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_of_the_apis_readme_make_a_key_and_sign_with_it(net: LocalNet) -> None:
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", API_README.read_text(), re.DOTALL))
    profile = load_yaml(net.profile, ProfileFile)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=net.profile.parent, env={"PATH": path, "API": profile.api}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answers = list(each_json(ran.stdout))
    description, readiness, signers, pools, _, signed = answers
    assert description["openapi"] == "3.1.0"
    assert readiness == {"committees": [[1, 2, 3]]}
    assert [(one["online"], one["announced"]["gateMode"]) for one in signers["items"]] == [(True, "signed")] * 3
    assert [pool["committee"] for pool in pools["items"]] == [[1, 2, 3]]
    assert signed["status"] == "Signed", signed
    with net.client() as client:
        client.get_signature(
            signed["keyId"], signed["id"], Message("0x" + b"hello".hex(), MessageHash.EIP_191, "curl-message")
        )


def each_json(text: str) -> Iterator[dict[str, Any]]:
    """The JSON documents of `text`, which stand behind each other."""
    decoder, start = json.JSONDecoder(), 0
    while start < len(text):
        value, start = decoder.raw_decode(text, start)
        yield value


def test_signers_listen_nowhere_and_enclaves_have_no_internet_socket(net: LocalNet) -> None:
    assert listening(net.processes["coordinator"].pid)  # what is looked for can be found
    for index in net.plan.indices:
        assert listening(net.processes[f"signer-{index}"].pid) == set()
        assert internet_sockets(net.processes[f"signer-{index}"].pid) >= 2
        assert internet_sockets(net.processes[f"enclave-{index}"].pid) == 0


@pytest.mark.parametrize("victim", ["coordinator", "enclave-1", "signer-3"])
def test_after_kill_9_the_network_comes_back_and_signs(net: LocalNet, key: CertifiedKey, victim: str) -> None:
    net.kill(victim, signal.SIGKILL)
    net.restart(victim)
    with net.client() as client:
        value = _sign_once_back(client, key)
    assert inputs.libsecp256k1_verifies(key.public_key(), value)
    net.wait_for_pool(POOL[0])
    assert "setup-failed" not in net.log("coordinator").read_text()


def test_nothing_is_left_behind() -> None:
    net = LocalNet()
    with net:
        pids = [process.pid for process in net.processes.values()]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert not net.root.exists()


def _sign_once_back(client: Client, key: CertifiedKey) -> SignatureValue:
    """A signature as soon as the network gives one; until then it may only be away, never refuse or lie."""
    deadline_s = time.monotonic() + BACK_TIMEOUT_S
    while True:
        try:
            value = client.sign(key.id, Hash("0x" + secrets.token_hex(32), new_id()), timeout_s=20.0).signature
            assert value is not None
            return value
        except (Failed, Unavailable) as error:
            if time.monotonic() > deadline_s:
                raise AssertionError("the network did not come back") from error
        except ApiError as error:
            if error.status < 500 or time.monotonic() > deadline_s:
                raise


def _keymoot(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

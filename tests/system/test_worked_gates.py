"""The worked handlers of `examples/` as gates of a real network: Python and Node signed, and one in mode `status`."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import rlp

from appliance.api.client import CertifiedKey, Client, Rejected
from appliance.cli import demo_inputs as inputs
from appliance.localnet import LocalNet
from policies.requests import EthereumTransaction, Hash

EXAMPLES = Path(__file__).parents[2] / "examples"
PYTHON = [sys.executable, str(EXAMPLES / "gate-python" / "gate.py")]
NODE = ["node", str(EXAMPLES / "gate-node" / "gate.js")]
STATUS = [sys.executable, str(EXAMPLES / "gate-status" / "gate.py")]
HAVE_NODE = bool(shutil.which("node")) and (EXAMPLES / "gate-node" / "node_modules").is_dir()

pytestmark = pytest.mark.timeout(170)


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    made = LocalNet(pool=(20, 60, 20))
    try:
        made.write()
        stand_in(made, 1, PYTHON)
        stand_in(made, 2, NODE if HAVE_NODE else PYTHON)
        stand_in(made, 3, STATUS, CLIENT_CA="../signer-3/ca.pem", SIGNERS="signer-3")
        in_mode_status(made.plan.signer(3))
        made.start()
        made.wait_for_pool(20)
        yield made
    finally:
        made.close()


def stand_in(net: LocalNet, index: int, arguments: list[str], **environment: str) -> None:
    """The worked handler in the place of the reference handler, with the files that were made for that one."""
    process = net.processes[f"gate-{index}"]
    listen = next(line for line in (process.directory / "gate.yaml").read_text().splitlines() if "listen:" in line)
    files = {"SECRETS": "gate-secrets.json", "CERTIFICATE": "server.pem", "KEY": "server.key"}
    process.arguments = arguments
    port = listen.rpartition(":")[2].strip('"')
    process.environment = {**process.environment, **files, **environment, "PORT": port}


def in_mode_status(signer: Path) -> None:
    enclave, settings = signer / "enclave.yaml", signer / "signer.yaml"
    before = "  mode: signed\n  secrets: gate-secrets.sealed\n"
    assert before in enclave.read_text()
    enclave.write_text(enclave.read_text().replace(before, "  mode: status\n"))
    before = "  ca: gate-ca.pem\n"
    assert before in settings.read_text()
    shown = f"{before}  certificate: signer.pem\n  key: signer.key\n"
    settings.write_text(settings.read_text().replace(before, shown))


@pytest.fixture
def client(net: LocalNet) -> Iterator[Client]:
    with net.client() as made:
        yield made


@pytest.fixture(scope="module")
def key(net: LocalNet) -> CertifiedKey:
    with net.client() as made:
        return made.create_key("test/gates", "gates-key")


def transfer(wei: int) -> EthereumTransaction:
    fields = [1, 7, 10**9, 3 * 10**10, 21_000, bytes.fromhex(inputs.DESTINATION[2:]), wei, b"", []]
    raw = "0x02" + bytes(rlp.encode(fields)).hex()
    return EthereumTransaction(raw, "transfer-" + secrets.token_hex(8))


def test_all_three_agree_to_what_their_rules_allow(client: Client, key: CertifiedKey) -> None:
    made = client.sign(key.id, transfer(10**18))
    assert made.signature is not None
    assert inputs.libsecp256k1_verifies(key.public_key(()), made.signature)


def test_the_reasons_of_signed_refusals_arrive(client: Client, key: CertifiedKey) -> None:
    with pytest.raises(Rejected) as refused:
        client.sign(key.id, transfer(10**18 + 1))
    assert f"not a transaction of at most {10**18} wei" in str(refused.value)
    with pytest.raises(Rejected, match="nothing but a hash is known"):
        client.sign(key.id, Hash("0x" + "11" * 32, "blind-" + secrets.token_hex(8)))


def test_a_403_of_the_handler_of_mode_status_refuses(net: LocalNet, client: Client, key: CertifiedKey) -> None:
    process = net.processes["gate-3"]
    known = process.environment
    process.environment = {**known, "SIGNERS": "another"}
    net.restart("gate-3")
    try:
        with pytest.raises(Rejected, match="signer-3"):
            client.sign(key.id, transfer(1))
    finally:
        process.environment = known
        net.restart("gate-3")
    client.sign(key.id, transfer(2))


def test_the_weaker_mode_is_shown(net: LocalNet) -> None:
    command = [sys.executable, "-m", "appliance.cli", "status", str(net.plan.signer(3)), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shown = json.loads(done.stdout)
    (host,) = shown["hosts"]
    assert host["enclave"]["gate_mode"] == "status"
    assert any("its signer process alone can approve" in finding["what"] for finding in shown["findings"])

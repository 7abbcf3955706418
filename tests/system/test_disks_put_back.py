"""Real processes: a signer's disk is put back, and a copy of a signer is started beside it (SPEC 0.7)."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator

import pytest

from appliance.api.client import CertifiedKey, Failed
from appliance.localnet import LocalNet
from appliance.localnet.process import ManagedProcess
from policies.errors import Unavailable
from policies.requests import Hash

COMMAND = re.compile(r"run: keymoot (enclave accept-rollback signer-2 --version \d+ --boot [0-9a-f]{16})")
PEERS = (1, 3)
POOL = (20, 40, 20)
LINK_TIMEOUT_S = 60.0

pytestmark = pytest.mark.timeout(170)


@pytest.fixture
def net() -> Iterator[LocalNet]:
    with LocalNet(pool=POOL, gate=False) as made:
        made.wait_for_pool(POOL[0])
        yield made


def sign(net: LocalNet, key: CertifiedKey) -> None:
    """A signature as soon as the network gives one."""

    def signed() -> bool:
        with net.client() as client:
            try:
                body = Hash("0x" + secrets.token_hex(32), "test-" + secrets.token_hex(8))
                return client.sign(key.id, body, timeout_s=20.0).signature is not None
            except (Failed, Unavailable):
                return False

    net.wait_for(signed, "a signature", LINK_TIMEOUT_S)


def stop(net: LocalNet) -> None:
    """Signer 2's machine is gone: both its processes, at once."""
    net.kill("enclave-2", signal.SIGKILL)
    net.kill("signer-2", signal.SIGKILL)


def start(net: LocalNet) -> None:
    net.restart("enclave-2")
    net.restart("signer-2")


def refusals(net: LocalNet, peer: int) -> list[str]:
    """The commands that the log of a peer's enclave has named, newest last."""
    return COMMAND.findall(net.log(f"enclave-{peer}").read_text())


def accept(net: LocalNet, peer: int, command: str) -> None:
    config = net.plan.signer(peer) / "enclave.yaml"
    subprocess.run(
        [sys.executable, "-m", "appliance.cli", *command.split(), "--config", str(config)],
        check=True, capture_output=True,
    )  # fmt: skip


def events(net: LocalNet, peer: int) -> set[str]:
    """What is in the audit chain of a signer, as its store has it."""
    database = f"file:{net.plan.signer(peer)}/state/signer.db?mode=ro"
    with sqlite3.connect(database, uri=True) as connection:
        return {json.loads(body)["event"] for (body,) in connection.execute("select body from audit")}


def test_an_old_disk_is_refused_until_the_operators_accept_it(net: LocalNet) -> None:
    with net.client() as client:
        key = client.create_key("test/rollback", "rollback-key")
    state = net.plan.signer(2) / "state"
    stop(net)
    old = state.with_name("old")
    shutil.copytree(state, old)
    start(net)
    sign(net, key)
    # States are told when links come up: here again, with the coordinator. A signature takes longer than that.
    net.restart("coordinator")
    sign(net, key)
    stop(net)
    shutil.rmtree(state)
    shutil.copytree(old, state)
    start(net)
    for peer in PEERS:
        net.wait_for(lambda peer=peer: bool(refusals(net, peer)), f"signer {peer} to refuse the disk")
    health = net.health()
    assert health is not None
    assert health.status == "degraded"
    # Each peer's operator reads the refusal in the log, which says it once, and runs what it names.
    for peer in PEERS:
        accept(net, peer, refusals(net, peer)[-1])
    net.wait_for_pool(POOL[0], LINK_TIMEOUT_S)
    sign(net, key)
    for peer in PEERS:
        assert {"peer-rolled-back", "peer-accepted"} <= events(net, peer)


def test_a_copy_of_a_signer_beside_it_is_noticed_and_refused(net: LocalNet) -> None:
    with net.client() as client:
        key = client.create_key("test/copy", "copy-key")
    first, copied = net.plan.signer(2), net.root / "copy-2"
    shutil.copytree(first, copied, ignore=shutil.ignore_patterns("run"))
    (copied / "run").mkdir()
    conf = copied / "softhsm2.conf"
    conf.write_text(conf.read_text().replace(str(first), str(copied)))
    environment = {**net.plan.environment(2), "SOFTHSM2_CONF": str(conf)}
    copies = [
        ManagedProcess(
            name=f"copied-{kind}",
            arguments=[
                sys.executable,
                "-I",
                "-m",
                "appliance.cli",
                kind,
                "run",
                "--config",
                str(copied / f"{kind}.yaml"),
            ],
            directory=copied,
            log=net.log(f"copied-{kind}"),
            environment=environment,
        )
        for kind in ("enclave", "signer")
    ]
    try:
        for process in copies:
            process.start()
        net.wait_for(lambda: "signer-cloned" in net.log("coordinator").read_text(), "the coordinator", LINK_TIMEOUT_S)
        health = net.health()
        assert health is not None
        assert "away: signer-2" in health.trouble
        for log in ("signer-2", "copied-signer"):
            net.wait_for(lambda log=log: "two enclaves run" in net.log(log).read_text(), "both to be told")
    finally:
        for process in copies:
            process.stop()
    noticed = [peer for peer in PEERS if "two enclaves have the identity" in net.log(f"enclave-{peer}").read_text()]
    stop(net)
    start(net)
    # A new boot: the coordinator takes it. A peer that has seen both needs its operator's word.
    for peer in noticed:
        net.wait_for(lambda peer=peer: bool(refusals(net, peer)), "the refusal that names the command", LINK_TIMEOUT_S)
        accept(net, peer, refusals(net, peer)[-1])
    net.wait_for_pool(POOL[0], LINK_TIMEOUT_S)
    sign(net, key)

"""Freeze, unfreeze and reload on a real network: by the command line, with the coordinator away, across restarts."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from appliance.api.client import ApiError, Client, Failed, Rejected
from appliance.api.jws import base64url, generate_client_key, save_client_key
from appliance.api.models import Signer
from appliance.localnet import LocalNet
from policies.requests import Hash
from tests.fakes.metrics import samples, scrape, serve_metrics

SIGNER = 2


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """Where each process serves its metrics."""
    return {}


@pytest.fixture(scope="module")
def net(ports: dict[str, int]) -> Iterator[LocalNet]:
    with closing(LocalNet(pool=(40, 100, 50))) as made:
        made.write()
        ports.update(serve_metrics(made))
        made.start()
        made.wait_for_pool(40)
        yield made


@pytest.fixture(scope="module")
def operators(net: LocalNet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two operators' keys; the policy of signer 2 names them from now on, by a reload."""
    keys, lines = {}, []
    for name in ("olga", "otto"):
        keys[name] = tmp_path_factory.mktemp("keys") / f"{name}.key"
        made = json.loads(keymoot("operator-key", name, "--out", keys[name], "--json")[1])
        lines.append(f"    - {{id: {name}, alg: {made['alg']}, public_key: {made['public_key']}}}")
    policy = net.plan.signer(SIGNER) / "policy.yaml"
    policy.write_text(policy.read_text() + "operators:\n  unfreeze: 2\n  keys:\n" + "\n".join(lines) + "\n")
    hang_up(net, f"enclave-{SIGNER}")
    net.wait_for(lambda: any(one.policy is not None and one.policy.differs for one in shown(net)), "the new policy")
    return keys


def keymoot(*arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def hang_up(net: LocalNet, name: str) -> None:
    os.kill(net.processes[name].pid, signal.SIGHUP)


def shown(net: LocalNet) -> tuple[Signer, ...]:
    with net.client() as client:
        return client.list_signers()


def frozen(net: LocalNet) -> list[str]:
    return [one.pattern for one in shown(net)[SIGNER - 1].frozen]


@pytest.fixture(scope="module")
def key_id(net: LocalNet) -> str:
    with net.client() as client:
        return client.create_key("hot/1", "first").id


def sign(client: Client, key_id: str) -> None:
    name = os.urandom(8).hex()
    client.sign(key_id, Hash("0x" + hashlib.sha256(name.encode()).hexdigest(), name))


def test_a_policy_is_taken_in_without_a_restart_and_its_difference_shown(
    net: LocalNet, operators: dict[str, Path]
) -> None:
    net.wait_for(lambda: all(one.policy is not None for one in shown(net)), "all policies to be told")
    policies = [one.policy for one in shown(net)]
    assert [one.differs for one in policies if one is not None] == [True] * 3
    assert len({one.digest for one in policies if one is not None}) == 2
    code, text, _ = keymoot("status", "--profile", net.profile)
    assert code == 0
    assert "the signers' policies differ (signer-1, signer-3: " in " ".join(text.split())


def test_a_freeze_needs_no_coordinator_and_outlasts_restarts(
    net: LocalNet, operators: dict[str, Path], key_id: str
) -> None:
    directory, order = net.plan.signer(SIGNER), operators["olga"].with_name("order")
    net.kill("coordinator")
    code, text, _ = keymoot("freeze", directory, "--operator", "olga", "--key", operators["olga"], "--reason", "drill")
    assert (code, text.splitlines()[0]) == (0, "signer-2 has carried the order to freeze out. Frozen now: **.")
    for name in ("coordinator", f"enclave-{SIGNER}", f"signer-{SIGNER}"):
        net.restart(name)
    net.wait_for(lambda: net.health() is not None and frozen(net) == ["**"], "the freeze to be told")
    net.wait_for_pool(40)
    with net.client() as client, pytest.raises(Failed) as failed:
        sign(client, key_id)
    assert "signer-2 was frozen for everything by olga: drill" in str(failed.value)
    assert "frozen" in str(failed.value)
    with net.client() as client, pytest.raises((ApiError, Failed, Rejected), match="frozen"):
        client.create_key("hot/2", "second")
    code, text, _ = keymoot("status", "--profile", net.profile)
    assert code == 1
    assert "signer-2 is frozen for everything by olga" in " ".join(text.split())

    code, _, said = keymoot("unfreeze", directory, "--operator", "olga", "--key", operators["olga"])
    assert (code, "to unfreeze takes 2 operators' signatures, the order has 1" in said) == (4, True)
    target = ("--network", "loopback", "--signer", "signer-2")
    for name in ("olga", "otto"):
        code, _, _ = keymoot("unfreeze", "--operator", name, "--key", operators[name], "--order", order, *target)
        assert code == 0
    assert keymoot("unfreeze", directory, "--order", order)[0] == 0
    assert "stop/replayed" in keymoot("unfreeze", directory, "--order", order)[2]
    net.wait_for(lambda: frozen(net) == [], "the end of the freeze to be told")
    with net.client() as client:
        sign(client, key_id)


def test_a_broken_policy_keeps_the_old_one_and_is_told(net: LocalNet, operators: dict[str, Path], key_id: str) -> None:
    path = net.plan.signer(SIGNER) / "policy.yaml"
    good = path.read_text()
    path.write_text(good + "ruels: []\n")
    hang_up(net, f"enclave-{SIGNER}")

    def outdated() -> bool:
        policy = shown(net)[SIGNER - 1].policy
        return policy is not None and "unknown field `ruels`" in policy.trouble

    net.wait_for(outdated, "the trouble to be told")
    with net.client() as client:
        sign(client, key_id)
    code, text, _ = keymoot("status", net.plan.signer(SIGNER))
    assert (code, "did not take its new policy" in " ".join(text.split())) == (1, True)
    path.write_text(good)
    hang_up(net, f"enclave-{SIGNER}")
    net.wait_for(lambda: not outdated(), "the trouble to be over")


def test_a_client_that_is_revoked_anywhere_gets_nothing(net: LocalNet, operators: dict[str, Path], key_id: str) -> None:
    """Recovery of access is a line in files, never a key: with it back, the same key id signs again."""
    path = net.plan.signer(SIGNER) / "policy.yaml"
    good = path.read_text()
    path.write_text("version: 1\nclients: []\nrules: []\n")
    hang_up(net, f"enclave-{SIGNER}")

    def refused() -> bool:
        try:
            with net.client() as client:
                sign(client, key_id)
        except (ApiError, Failed, Rejected) as error:
            return "request/client" in str(error) or "kid" in str(error)
        return False

    net.wait_for(refused, "the signer to refuse")
    path.write_text(good)
    hang_up(net, f"enclave-{SIGNER}")
    net.wait_for(lambda: not refused(), "the client to be back")
    clients = net.root / "coordinator" / "clients.yaml"
    good = clients.read_text()
    clients.write_text("version: 1\nclients: []\nrules: []\n")
    hang_up(net, "coordinator")
    net.wait_for(refused, "the coordinator to refuse")
    clients.write_text(good)
    hang_up(net, "coordinator")
    net.wait_for(lambda: not refused(), "the client to be back")


def test_a_freeze_by_label_leaves_other_keys_alone_and_is_counted(
    net: LocalNet, operators: dict[str, Path], key_id: str, ports: dict[str, int]
) -> None:
    directory, order = net.plan.signer(SIGNER), operators["olga"].with_name("label-order")
    with net.client() as client:
        other = client.create_key("hot/3", "third").id

    def freezes(index: int = SIGNER) -> float:
        return samples(scrape(ports[f"signer-{index}"]))["keymoot_enclave_freezes"]

    assert freezes() == 0
    what, by = ("--label", "hot/1", "--label", "cold/**"), ("--operator", "olga", "--key", operators["olga"])
    code, text, said = keymoot("freeze", directory, *what, *by)
    assert (code, "carried the order to freeze out" in text) == (0, True), text + said
    net.wait_for(lambda: freezes() == 2, "the freeze to be counted")
    assert [freezes(index) for index in net.plan.indices if index != SIGNER] == [0, 0]
    with net.client() as client:
        with pytest.raises(Failed, match="signer-2 was frozen for `hot/1` by olga"):
            sign(client, key_id)
        sign(client, other)
    target = ("--network", "loopback", "--signer", "signer-2", "--order", order)
    for name in ("olga", "otto"):
        assert keymoot("unfreeze", *what, "--operator", name, "--key", operators[name], *target)[0] == 0
    assert keymoot("unfreeze", directory, "--order", order)[0] == 0
    net.wait_for(lambda: freezes() == 0, "the end of the freeze to be counted")
    with net.client() as client:
        sign(client, key_id)


def approvers_of(net: LocalNet) -> str:
    """Three more clients, each with a key and a profile of its own; their lines in a policy."""
    profile, lines = net.profile.read_text(), ""
    for name in ("alice", "bob", "carol"):
        made = generate_client_key(name)
        save_client_key(made, net.profile.with_name(f"{name}.key"))
        mine = profile.replace('client: "loopback"', f"client: {name}").replace("client.key", f"{name}.key")
        assert f"client: {name}\nkey: {name}.key" in mine
        net.profile.with_name(f"{name}.yaml").write_text(mine)
        lines += f"  - {{id: {name}, alg: Ed25519, public_key: {base64url(made.public_bytes)}}}\n"
    return lines


def four_eyes(net: LocalNet) -> None:
    """From now on two of the three must approve, at every signer; taken in by reload."""
    clients = approvers_of(net)
    approvals = "    approvals: {of: [alice, bob, carol], at_least: 2, within_h: 8}\n    derivation_paths:"
    old = {one.policy.digest for one in shown(net) if one.policy is not None}
    for index in net.plan.indices:
        file = net.plan.signer(index) / "policy.yaml"
        text = file.read_text().replace("rules:\n", clients + "rules:\n", 1)
        (net.root / "coordinator" / "clients.yaml").write_text(text)
        text = text.replace("actions: [create-key, sign]", "actions: [sign]")
        file.write_text(text.replace("    derivation_paths:", approvals))
        hang_up(net, f"enclave-{index}")
    hang_up(net, "coordinator")

    def taken_in() -> bool:
        return all(one.policy is not None and one.policy.digest not in old for one in shown(net))

    net.wait_for(taken_in, "the policies that ask for approvals")


def test_a_treasury_with_four_eyes(net: LocalNet, operators: dict[str, Path], key_id: str) -> None:
    """Two of three approve, one of them twice; the coordinator is restarted in between."""
    four_eyes(net)
    request = ("sign", "hash", key_id, "ab" * 32, "--external-id", "payout-7", "--profile", net.profile)
    code, _, said = keymoot(*request, "--approvals-within", "8")
    assert (code, "waits for approvals: 2 approvals are needed, 0 given" in said) == (3, True), said
    with net.client() as client:
        (waiting,) = [one for one in client.list_signatures(key_id) if one.external_id == "payout-7"]
    assert waiting.status == "AwaitingApprovals"

    def approve(name: str) -> tuple[int, str, str]:
        profile = net.profile.with_name(f"{name}.yaml")
        return keymoot("approve", key_id, waiting.id, "--yes", "--profile", profile)

    one_of_two = "Approved. The request is AwaitingApprovals: 2 approvals are needed, 1 given by bob; may approve: "
    for _ in range(2):
        code, text, said = approve("bob")
        assert (code, text.splitlines()[-1]) == (0, one_of_two + "alice, carol"), said
    assert "ab" * 32 in text
    net.restart("coordinator")
    net.wait_for(lambda: net.health() is not None and net.health().status == "ready", "the coordinator")  # type: ignore[union-attr]
    code, text, said = approve("carol")
    assert (code, text.splitlines()[-1]) == (0, "Approved. The request is Signed"), said
    code, _, said = approve("alice")
    assert (code, "there is nothing to approve" in said) == (2, True), said
    code, text, _ = keymoot(*request, "--json")
    assert (code, json.loads(text)["status"]) == (0, "Signed")


def test_a_batch_with_four_eyes(net: LocalNet, key_id: str, tmp_path: Path) -> None:
    """By the policy of the test before: it waits, is shown with every hash, and is released by two of three."""
    hashes = ["cd" * 32, "ef" * 32]
    (file := tmp_path / "hashes").write_text(f"{hashes[0]}\n{hashes[1]} m/0/5\n")
    request = ("sign", "batch", key_id, file, "--external-id", "payroll", "--profile", net.profile)
    code, _, said = keymoot(*request, "--approvals-within", "8")
    assert (code, "waits for approvals: 2 approvals are needed, 0 given" in said) == (3, True), said
    with net.client() as client:
        (waiting,) = [one for one in client.list_batches(key_id) if one.external_id == "payroll"]
    # Nobody is there to say yes; what was asked is on standard error.
    code, text, said = keymoot("approve", key_id, waiting.id, "--json", "--profile", net.profile.with_name("bob.yaml"))
    assert (code, text.strip(), f"{hashes[1]} m/0/5" in said, "Approve this?" in said) == (1, "", True, True)
    for name, ends in (("bob", "AwaitingApprovals: 2 approvals are needed, 1 given by bob"), ("alice", "Signed")):
        profile = net.profile.with_name(f"{name}.yaml")
        code, text, said = keymoot("approve", key_id, waiting.id, "--yes", "--profile", profile)
        assert (code, text.splitlines()[-1].startswith(f"Approved. The request is {ends}")) == (0, True), said
        assert [f"{hashes[0]} m" in text, f"{hashes[1]} m/0/5" in text] == [True, True]
    code, text, said = keymoot(*request, "--json")
    assert (code, len(json.loads(text)["results"])) == (0, 2), said

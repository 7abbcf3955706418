"""Two coordinators of one network, all of it real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import secrets
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.api import transport
from appliance.api.client import ApiError, CertifiedKey, Client, Failed, NotNow
from appliance.api.models import SignatureState, SignatureValue
from appliance.cli import demo_inputs as inputs
from appliance.localnet import LocalNet
from appliance.profile import load_profile
from policies.requests import Hash, HashBatch
from tests.fakes.disks import small_disk

A, B = "coordinator", "coordinator-2"
POOL = (50, 150, 50)
STORE_KIB = 6144


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    with LocalNet(coordinators=2, pool=POOL) as made:
        made.wait_for_pool(POOL[1])
        yield made


def new_id() -> str:
    return "two-" + secrets.token_hex(8)


@pytest.fixture(scope="module")
def key(net: LocalNet) -> CertifiedKey:
    with net.client(A) as client:
        return client.create_key("test/two", new_id())


def test_two_that_start_together_set_the_network_up_once(net: LocalNet) -> None:
    logs = [net.log(name).read_text() for name in (A, B)]
    assert sum(log.count('"setup-done"') for log in logs) == 1
    with net.client(A) as a, net.client(B) as b:
        for client in (a, b):
            assert [signer.announced.prss_epoch for signer in client.list_signers() if signer.announced] == [1, 1, 1]


def knows(net: LocalNet, coordinator: str, key_id: str) -> bool:
    with net.client(coordinator) as client:
        return key_id in {one.certified.id for one in client.list_keys() if one.certified}


def test_a_key_made_at_one_is_certified_and_signs_at_the_other(net: LocalNet, key: CertifiedKey) -> None:
    net.wait_for(lambda: knows(net, B, key.id), "the key to be known at the other coordinator", 5.0)
    with net.client(B) as client:
        shown = client.get_key(key.id)
        assert (shown.certified, shown.label, shown.answer.external_id) == (key.certified, "test/two", "")
        value = client.sign(key.id, Hash("0x" + secrets.token_hex(32), new_id(), (7,))).signature
    assert value is not None
    assert inputs.libsecp256k1_verifies(key.public_key((7,)), value)


def test_a_coordinator_that_was_away_learns_what_was_made_meanwhile(net: LocalNet) -> None:
    net.kill(B)
    with net.client(A) as client:
        made = [client.create_key(f"test/meanwhile/{number}", new_id()).id for number in range(3)]
    net.restart(B)
    net.wait_for(lambda: all(knows(net, B, key_id) for key_id in made), "the keys to be known")
    with net.client(B) as client:
        listed = [one.certified.id for one in client.list_keys() if one.certified]
    assert sorted(listed) == sorted(set(listed))
    assert set(made) <= set(listed)


def sign(client: Client, key: CertifiedKey, body: Hash) -> SignatureValue:
    value = client.sign(key.id, body).signature
    assert value is not None
    assert inputs.libsecp256k1_verifies(key.public_key(body.derivation_path), value)
    return value


def sign_until_it_fails(client: Client, key: CertifiedKey) -> None:
    """A store has some room left on a disk that has none."""
    for _ in range(100):
        sign(client, key, a_hash())


def make_key(client: Client, label: str, external_id: str) -> str:
    """The key's id; a request that has failed is made again under its external id."""
    for _ in range(4):
        try:
            return client.create_key(label, external_id).id
        except Failed:
            continue
    return client.create_key(label, external_id).id


def a_hash(external_id: str = "") -> Hash:
    return Hash("0x" + secrets.token_hex(32), external_id or new_id())


def test_the_same_external_id_gives_one_signature_and_another_body_a_conflict_at_the_other_too(
    net: LocalNet, key: CertifiedKey
) -> None:
    body = a_hash()
    with net.client(A) as a, net.client(B) as b:
        first = sign(a, key, body)
        assert sign(b, key, body) == first
        with pytest.raises(ApiError) as conflict:
            b.sign(key.id, a_hash(body.external_id))
        assert (conflict.value.status, conflict.value.code) == (409, "external-id-taken")
        hashes = HashBatch(tuple("0x" + secrets.token_hex(32) for _ in range(4)), new_id())
        assert a.sign_batch(key.id, hashes).results == b.sign_batch(key.id, hashes).results
        label, external_id = "test/one-result", new_id()
        assert a.create_key(label, external_id).id == b.create_key(label, external_id).id


def test_after_a_restart_of_all_enclaves_the_other_still_gives_the_same_signature(
    net: LocalNet, key: CertifiedKey
) -> None:
    body = a_hash()
    with net.client(A) as a:
        first = sign(a, key, body)
    for index in net.plan.indices:
        net.restart(f"enclave-{index}")
    net.wait_for_pool(POOL[0])
    with net.client(B) as b:
        assert sign(b, key, body) == first


def test_both_sign_at_the_same_time_while_keys_are_made(net: LocalNet, key: CertifiedKey) -> None:
    def signatures(coordinator: str) -> int:
        with net.client(coordinator) as client:
            return len({sign(client, key, a_hash()).r for _ in range(20)})

    def keys(coordinator: str) -> int:
        with net.client(coordinator) as client:
            return len({client.create_key(f"test/load/{coordinator}/{number}", new_id()).id for number in range(4)})

    with ThreadPoolExecutor(6) as pool:
        signed = [pool.submit(signatures, name) for name in (A, B, A, B)]
        made = [pool.submit(keys, name) for name in (A, B)]
        assert [one.result() for one in signed] == [20] * 4
        assert [one.result() for one in made] == [4, 4]


def test_a_killed_coordinator_loses_no_accepted_request_and_a_retry_elsewhere_gives_one_result(
    net: LocalNet, key: CertifiedKey
) -> None:
    """Killed while requests are in every stage; meanwhile their clients ask the other, then the first is back."""
    bodies = [a_hash() for _ in range(24)]
    batch = HashBatch(tuple("0x" + secrets.token_hex(32) for _ in range(16)), new_id())
    external_id = new_id()

    async def post_all() -> None:
        """Sent to the first, whose end the senders do not live to see."""
        async with net.async_client(A) as client:
            tasks = [asyncio.create_task(client.sign(key.id, body)) for body in bodies]
            tasks.append(asyncio.create_task(client.sign_batch(key.id, batch)))  # type: ignore[arg-type]
            tasks.append(asyncio.create_task(client.create_key("test/killed", external_id)))  # type: ignore[arg-type]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            net.kill(A)
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(post_all())
    with net.client(B) as b:
        elsewhere = {body.external_id: sign(b, key, body) for body in bodies[::2]}
        made = make_key(b, "test/killed", external_id)
    net.restart(A)
    net.wait_for_pool(POOL[0])
    with net.client(A) as a, net.client(B) as b:
        for body in bodies:
            signed = sign(a, key, body)
            assert elsewhere.get(body.external_id, signed) == signed
        assert a.sign_batch(key.id, batch).results == b.sign_batch(key.id, batch).results
        assert make_key(a, "test/killed", external_id) == made
        listed = a.list_signatures(key.id)
    assert {one.status for one in listed} <= {SignatureState.SIGNED, SignatureState.FAILED, SignatureState.REJECTED}


def test_client_and_command_line_go_on_with_the_other_coordinator(net: LocalNet, key: CertifiedKey) -> None:
    net.kill(A)
    try:
        with Client.of(load_profile(net.profile)) as client:
            sign(client, key, a_hash())
        done = subprocess.run(
            [sys.executable, "-m", "appliance.cli", "sign", "hash", key.id, secrets.token_hex(32), "--json",
             "--profile", str(net.profile)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        done = subprocess.run(
            [sys.executable, "-m", "appliance.cli", "status", "--json", "--profile", str(net.profile)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        shown = json.loads(done.stdout)
        assert (done.returncode, shown["status"], shown["coordinator"]["name"]) == (1, "attention", B)
        assert "coordinator" in {one["subject"] for one in shown["findings"]}
    finally:
        net.restart(A)


def test_a_client_goes_on_with_the_other_where_a_disk_is_full(
    net: LocalNet, key: CertifiedKey, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clients would ask A again for 10 s.
    monkeypatch.setattr(transport, "MAX_RETRY_S", 0.5)
    state, kept = net.root / A / "state", tmp_path / "state"
    net.kill(A)
    shutil.copytree(state, kept)
    with small_disk(state, STORE_KIB) as disk:
        shutil.copytree(kept, state, dirs_exist_ok=True)
        with contextlib.closing(sqlite3.connect(state / "coordinator.db")) as store:
            # What its log has grown to would be room for long.
            store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        net.restart(A)
        net.wait_for_pool(1)
        disk.fill()
        with net.client(A) as a, Client.of(load_profile(net.profile)) as client:
            with pytest.raises(NotNow, match="the disk is full"):
                sign_until_it_fails(a, key)
            sign(client, key, a_hash())
            make_key(client, "test/full", new_id())
        disk.free()
        with net.client(A) as a:
            monkeypatch.undo()
            sign(a, key, a_hash())
        net.kill(A)
    net.restart(A)


def test_without_a_signer_a_request_fails_naming_it_and_succeeds_under_its_external_id_once_it_is_back(
    net: LocalNet, key: CertifiedKey
) -> None:
    body = a_hash()
    net.kill("signer-3")
    with net.client(B) as b:
        with pytest.raises(Failed, match="3 signers must be online; away: signer-3") as failed:
            b.sign(key.id, body)
        assert failed.value.code == "no-committee"
        net.restart("signer-3")
        net.wait_for_pool(1)
        sign(b, key, body)

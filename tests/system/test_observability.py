"""Real processes: one request followed by its id through every log, and metrics after a run whose numbers are known."""

from __future__ import annotations

import http.client
import json
import secrets
import sqlite3
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest

from appliance.api.client import CertifiedKey, Client, Rejected
from appliance.api.jws import SIGNATURE_HEADER, new_jti, sign_request
from appliance.cli import demo_inputs as inputs
from appliance.localnet import LocalNet
from appliance.profile import load_profile
from enclave import wire
from enclave.protocol import keygen, presign, setup
from policies.requests import EthereumTransaction, Hash, signatures_path
from tests.fakes.metrics import samples, scrape, serve_metrics

POOL = (20, 40, 40)
SIGNATURES = 3
REFUSING = 2
ROUNDS = {"setup": len(setup.ROUNDS), "keygen": len(keygen.ROUNDS), "presign": len(presign.ROUNDS)}
NAME = "followed-through-0001"

pytestmark = pytest.mark.timeout(170)


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {}


@pytest.fixture(scope="module")
def net(ports: dict[str, int]) -> Iterator[LocalNet]:
    with closing(LocalNet(pool=POOL, refuse={REFUSING: (inputs.REFUSED_DESTINATION,)})) as made:
        made.write()
        ports.update(serve_metrics(made))
        made.start()
        made.wait_for_pool(POOL[1])
        yield made


def post(net: LocalNet, path: str, body: msgspec.Struct, name: str) -> tuple[int, Any, str]:
    """Send a signed request by hand, under `name`: status, answer and what the answer calls it; and its digest."""
    profile = load_profile(net.profile)
    data = msgspec.json.encode(body)
    jws = sign_request(profile.key, net.roster.network, "POST", path, data, now_s=int(time.time()), jti=new_jti())
    host, _, port = profile.api.removeprefix("https://").partition(":")
    context = ssl.create_default_context(cafile=profile.ca)
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=60.0)
    headers = {SIGNATURE_HEADER: jws, "Content-Type": "application/json", "X-Request-Id": name}
    with closing(connection):
        connection.request("POST", path + "?wait=20", body=data, headers=headers)
        answer = connection.getresponse()
        assert answer.headers["X-Request-Id"] == name
        digest = wire.ClientRequest("POST", path, data, jws).digest(net.roster.network).hex()
        return answer.status, json.loads(answer.read()), digest


def lines(net: LocalNet, process: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in net.log(process).read_text().splitlines()]


def audit(net: LocalNet, index: int) -> list[dict[str, Any]]:
    """The bodies of a signer's audit chain."""
    store = net.plan.signer(index) / "state" / "signer.db"
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as database:
        return [json.loads(body) for (body,) in database.execute("SELECT body FROM audit ORDER BY seq")]


@pytest.fixture(scope="module")
def key(net: LocalNet) -> CertifiedKey:
    with net.client() as client:
        return client.create_key("test/observed", "observed-key")


@pytest.fixture(scope="module")
def told(net: LocalNet, key: CertifiedKey, ports: dict[str, int]) -> dict[str, dict[str, float]]:
    """What every process told after exactly three signatures and one refusal."""
    with net.client() as client:
        for _ in range(SIGNATURES):
            client.sign(key.id, Hash("0x" + secrets.token_hex(32), "known-" + secrets.token_hex(8)))
        refuse(client, key)
    return {name: samples(scrape(port)) for name, port in ports.items()}


def refuse(client: Client, key: CertifiedKey) -> None:
    refused = EthereumTransaction(inputs.unsigned_transaction(inputs.REFUSED_DESTINATION), "no-" + secrets.token_hex(8))
    with pytest.raises(Rejected):
        client.sign(key.id, refused)


def test_a_signers_numbers_after_a_known_run(net: LocalNet, told: dict[str, dict[str, float]]) -> None:
    for index in net.plan.indices:
        found = told[f"signer-{index}"]
        refusing = index == REFUSING
        assert found["keymoot_enclave_shares_given_total"] == SIGNATURES
        assert found["keymoot_enclave_requests_authorized_total"] == SIGNATURES + (not refusing)
        assert found.get('keymoot_enclave_requests_refused_total{rule="gate"}', 0.0) == refusing
        assert found['keymoot_enclave_gate_decisions_total{outcome="allowed"}'] == SIGNATURES + (not refusing)
        assert found.get('keymoot_enclave_gate_decisions_total{outcome="refused"}', 0.0) == refusing
        assert found["keymoot_enclave_gate_seconds_count"] == SIGNATURES + 1
        assert found['keymoot_signer_gate_calls_total{outcome="2xx"}'] == SIGNATURES + 1
        assert found["keymoot_signer_gate_seconds_count"] == SIGNATURES + 1
        # Sealed: the seeds, the key pending and active, and whenever it changed what was seen of peers.
        assert found['keymoot_enclave_hsm_seconds_count{operation="seal"}'] > 3
        # Unsealed: the gate's secrets, the key's facts, the share for each signature.
        assert found['keymoot_enclave_hsm_seconds_count{operation="unseal"}'] == SIGNATURES + 2
        assert found['keymoot_enclave_hsm_openings_total{outcome="opened"}'] == 1
        assert found['keymoot_enclave_hsm_openings_total{outcome="failed"}'] == 0
        assert found["keymoot_enclave_hsm_failed_jobs_total"] == 0
        for kind, rounds in ROUNDS.items():
            assert found[f'keymoot_enclave_ceremonies_started_total{{kind="{kind}"}}'] == 1
            ended = f'keymoot_enclave_ceremonies_total{{kind="{kind}",outcome="done",round="{rounds}"}}'
            assert found[ended] == 1, sorted(found)
        assert found["keymoot_enclave_presignatures"] == POOL[2] - SIGNATURES
        assert found['keymoot_enclave_links{coordinator="coordinator",state="up"}'] == 2
        assert found['keymoot_enclave_links{coordinator="coordinator",state="down"}'] == 0
        assert found['keymoot_enclave_queue_length{queue="hsm"}'] == 0
        assert found['keymoot_signer_connections_total{peer="coordinator/coordinator"}'] == 1
        assert found["keymoot_signer_commit_seconds_count"] >= SIGNATURES


def test_a_coordinators_numbers_after_a_known_run(told: dict[str, dict[str, float]]) -> None:
    found = told["coordinator"]
    assert found['keymoot_coordinator_requests_total{kind="Hash",outcome="Signed"}'] == SIGNATURES
    assert found['keymoot_coordinator_request_seconds_count{kind="Hash"}'] == SIGNATURES
    assert found['keymoot_coordinator_requests_total{kind="EthereumTransaction",outcome="Rejected"}'] == 1
    assert found['keymoot_coordinator_requests_total{kind="Key",outcome="Active"}'] == 1
    ended = 'keymoot_coordinator_ceremonies_total{{kind="{}",outcome="{}",round="{}"}}'
    assert found[ended.format("online", "done", "all")] == SIGNATURES
    assert found[ended.format("authorize", "done", "all")] == SIGNATURES
    assert found[ended.format("authorize", "rejected", "ordered")] == 1
    assert [found[ended.format(kind, "done", "all")] for kind in ("setup", "keygen", "presign")] == [1, 1, 1]
    assert found['keymoot_coordinator_ceremony_seconds_count{kind="online"}'] == SIGNATURES
    assert found['keymoot_coordinator_presignatures{committee="1-2-3"}'] == POOL[2] - SIGNATURES
    signed = 'keymoot_coordinator_api_answers_total{operation="POST /v1/keys/{key}/signatures",status="201"}'
    assert found[signed] == SIGNATURES + 1
    assert [found[f'keymoot_coordinator_signer_connections_total{{signer="signer-{i}"}}'] for i in (1, 2, 3)] == [1] * 3
    assert found['keymoot_coordinator_queue_length{queue="requests"}'] == 0


def test_a_request_is_followed_by_its_id_through_all_processes(net: LocalNet, key: CertifiedKey) -> None:
    body = Hash("0x" + secrets.token_hex(32), "followed-" + secrets.token_hex(8))
    status, shown, digest = post(net, signatures_path(key.id), body, NAME)
    assert (status, shown["status"]) == (201, "Signed")

    def of(process: str) -> dict[str, dict[str, Any]]:
        """Its lines, by event."""
        return {line["event"]: line for line in lines(net, process) if line.get("request_id") == NAME}

    coordinator = of("coordinator")
    assert set(coordinator) == {"request-accepted", "request-ended", "request"}
    assert coordinator["request-accepted"]["request"] == digest
    assert (coordinator["request-ended"]["id"], coordinator["request-ended"]["outcome"]) == (shown["id"], "Signed")
    for index in net.plan.indices:
        signer, enclave, gate = of(f"signer-{index}"), of(f"enclave-{index}"), of(f"gate-{index}")
        assert set(signer) == {"order", "gate-answered"}
        assert signer["gate-answered"]["status"] == 200
        assert set(enclave) == {"request authorized", "share given"}
        assert {line["request"] for line in enclave.values()} == {digest}
        assert gate["gate-answer"]["allowed"] is True
        assert gate["gate-answer"]["uid"] == signer["gate-answered"]["uid"]
        events = [entry["event"] for entry in audit(net, index) if entry.get("request") == digest]
        assert events == ["authorized", "share"]


def test_a_refusal_is_followed_by_its_id_to_the_rule(net: LocalNet, key: CertifiedKey) -> None:
    refused = EthereumTransaction(inputs.unsigned_transaction(inputs.REFUSED_DESTINATION), "no-" + secrets.token_hex(8))
    name = "refused-" + secrets.token_hex(8)
    status, shown, digest = post(net, signatures_path(key.id), refused, name)
    assert (status, shown["status"]) == (201, "Rejected")
    found = {line["event"]: line for line in lines(net, f"enclave-{REFUSING}") if line.get("request_id") == name}
    assert set(found) == {"request refused"}
    assert (found["request refused"]["rule"], found["request refused"]["request"]) == ("gate", digest)
    assert inputs.REFUSED_DESTINATION.lower() in found["request refused"]["reason"]
    events = [entry["event"] for entry in audit(net, REFUSING) if entry.get("request") == digest]
    assert events == ["refused"]


def test_a_key_is_found_in_the_audit_chain_by_its_requests_digest(net: LocalNet, key: CertifiedKey) -> None:
    (accepted,) = [line for line in lines(net, "coordinator") if line.get("kind") == "Key" and "request" in line]
    for index in net.plan.indices:
        (pending,) = [entry for entry in audit(net, index) if entry["event"] == "key-pending"]
        assert (pending["request"], pending["key_id"]) == (accepted["request"], key.id)
        (begun,) = [line for line in lines(net, f"enclave-{index}") if line["event"] == "key begun"]
        assert (begun["request"], begun["request_id"]) == (accepted["request"], accepted["request_id"])


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_an_enclave_that_is_away_is_told_of_once_and_so_is_its_return(net: LocalNet) -> None:
    def told(event: str) -> list[dict[str, Any]]:
        return [line for line in lines(net, "signer-3") if line["event"] == event]

    net.processes["enclave-3"].stop()
    eventually(lambda: len(told("enclave-link-down")) == 2)
    retries_until_s = time.monotonic() + 2.0
    eventually(lambda: time.monotonic() > retries_until_s)
    # That it closed, and that nobody listens; not one for each of several retries.
    closed, refused = told("enclave-link-down")
    assert "closed the connection" in closed["reason"]
    assert "enclave socket" in refused["reason"]
    net.processes["enclave-3"].start()
    eventually(lambda: len(told("enclave-attached")) == 2)

"""Step one of everything: three enclave processes on SoftHSM make a key, presign, and sign an EIP-1559 transaction."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import rlp
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from eth_account import Account
from eth_account.typed_transactions import TypedTransaction

from appliance.api.addresses import ethereum_address
from appliance.localnet.process import family
from enclave import wire
from enclave.crypto import polynomials
from enclave.crypto.bip32 import derive
from enclave.crypto.curve import SECP256K1
from policies.requests import EthereumTransaction, HashBatch, signature_batches_path, signatures_path
from tests.fakes.clients import TestClient, TestGate, open_policy
from tests.fakes.enclave_processes import ProcessNet
from tests.fakes.enclaves import authorizations_of

COMMITTEE = (1, 2, 3)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[ProcessNet]:
    client, gate = TestClient(time.time), TestGate(time.time)
    made = ProcessNet(tmp_path, open_policy(client), gate.secrets, gate)
    made.client = client  # type: ignore[attr-defined]
    made.start()
    yield made
    made.stop()


def test_enclave_and_worker_are_confined_once_the_hsm_is_ready(net: ProcessNet) -> None:
    process = net.members[1].process
    assert process is not None
    enclave, *workers = family(process.pid)
    assert len(workers) == 1
    may_lock = os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    for pid in (enclave, *workers):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip()) == ("2", "1")
        assert (int(status["VmLck"].split()[0]) > 0) == may_lock
    assert (b"not confined" in (net.members[1].directory / "log").read_bytes()) != may_lock


def test_an_eip_1559_transaction_is_signed(net: ProcessNet) -> None:
    client: TestClient = net.client  # type: ignore[attr-defined]
    assert sorted(net.setup()) == [1, 2, 3]
    certificate = net.keygen(client.create_key())[1].certificates[0]
    key = certificate[0].acknowledgement
    done = net.presign(COMMITTEE, 10)
    assert {report.count for report in done.values()} == {10}

    transaction = {
        "chainId": 1,
        "nonce": 7,
        "maxPriorityFeePerGas": 2_000_000_000,
        "maxFeePerGas": 30_000_000_000,
        "gas": 21_000,
        "to": "0x" + "35" * 20,
        "value": 10**18,
        "data": "0x",
        "accessList": [],
        "type": 2,
    }
    fields = [1, 7, 2_000_000_000, 30_000_000_000, 21_000, bytes.fromhex("35" * 20), 10**18, b"", []]
    unsigned = b"\x02" + rlp.encode(fields)
    body = EthereumTransaction("0x" + unsigned.hex(), os.urandom(8).hex(), (0, 5))
    request = client.request(signatures_path(key.key_id), body)
    ceremony = os.urandom(16)
    for j in COMMITTEE:
        name = wire.PresignatureName(done[1].sid, 1)
        net.order(j, wire.SignOrder(ceremony, key.key_id, request, COMMITTEE, name))
    authorized = net.take(wire.Authorized, COMMITTEE)
    authorizations = authorizations_of({j: [report] for j, report in authorized.items()})
    for j in COMMITTEE:
        net.order(j, wire.OnlineOrder(ceremony, key.key_id, authorizations))
    shares = net.take(wire.ShareReport, COMMITTEE)

    r = SECP256K1.x_mod_q(shares[1].r_point)
    s = polynomials.interpolate({j: int.from_bytes(x.s, "big") for j, x in shares.items()}, SECP256K1.q)
    parity = shares[1].r_point[0] & 1
    if s > SECP256K1.q // 2:
        s, parity = SECP256K1.q - s, parity ^ 1
    signed = TypedTransaction.from_dict({**transaction, "v": parity, "r": r, "s": s}).encode()
    child, _ = derive(key.public_key, key.chain_code, (0, 5))
    assert Account.recover_transaction(signed) == ethereum_address(child)
    entries = [json.loads(entry.body)["event"] for entry in net.members[1].audit]
    assert entries == ["setup", "key-pending", "key-active", "presign", "authorized", "share"]


def test_a_batch_of_hashes_is_signed(net: ProcessNet) -> None:
    """Child keys and shares are worked out in pieces, between which the process serves its sockets."""
    client: TestClient = net.client  # type: ignore[attr-defined]
    net.setup()
    key = net.keygen(client.create_key())[1].certificates[0][0].acknowledgement
    count = 100
    sid = net.presign(COMMITTEE, count)[1].sid
    hashes = [hashlib.sha256(bytes([i])).digest() for i in range(count)]
    paths = tuple((0, i) for i in range(count))
    body = HashBatch(tuple("0x" + h.hex() for h in hashes), os.urandom(8).hex(), paths)
    request = client.request(signature_batches_path(key.key_id), body)
    names = tuple(wire.PresignatureName(sid, l) for l in range(1, count + 1))
    for j in COMMITTEE:
        net.order(j, wire.BatchSignOrder(os.urandom(16), key.key_id, request, COMMITTEE, names))
    authorized = net.take(wire.BatchAuthorized, COMMITTEE)
    signed = tuple(authorized[j].authorization for j in COMMITTEE)
    for j in COMMITTEE:
        net.order(j, wire.BatchOnlineOrder(os.urandom(16), key.key_id, signed))
    shares = net.take(wire.BatchShareReport, COMMITTEE)
    for number, (h, path) in enumerate(zip(hashes, paths, strict=True)):
        r = SECP256K1.x_mod_q(shares[1].r_points[number])
        s = polynomials.interpolate({j: int.from_bytes(x.s[number], "big") for j, x in shares.items()}, SECP256K1.q)
        child, _ = derive(key.public_key, key.chain_code, path)
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), child)
        public.verify(utils.encode_dss_signature(r, s), h, ec.ECDSA(utils.Prehashed(SHA256())))

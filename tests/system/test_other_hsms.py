"""Three enclave processes, each on another HSM: SoftHSM, NSS softokn and a TPM. They make a key and sign."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from enclave import wire
from enclave.crypto import polynomials
from enclave.crypto.curve import SECP256K1
from enclave.hsm import HsmConfig
from tests.fakes import nss, tpm
from tests.fakes.clients import TestClient, TestGate, open_policy
from tests.fakes.enclave_processes import Process, ProcessNet
from tests.fakes.enclaves import authorizations_of

COMMITTEE = (1, 2, 3)
H = bytes(range(32))
LACKING = nss.missing() or tpm.missing()

pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"needs Debian's {LACKING}")


class Mixed(ProcessNet):
    """Signer 1 on SoftHSM, 2 on NSS, 3 on a TPM."""

    def __init__(self, directory: Path, machine: tpm.Tpm, client: TestClient, gate: TestGate) -> None:
        self.machine, self.client = machine, client
        super().__init__(directory, open_policy(client), gate.secrets, gate)

    def make_token(self, member: Process) -> HsmConfig:
        if member.index == 1:
            return super().make_token(member)
        if member.index == 2:
            member.directory.mkdir()
            database = nss.NssDatabase(member.directory / "nss")
            database.create()
            return database.config
        member.directory.mkdir()
        self.machine.create()
        member.environment = self.machine.environment
        return self.machine.config


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Mixed]:
    # Not under tmp_path: the path of a Unix socket has at most 107 bytes.
    machine = tpm.Tpm(Path(tempfile.mkdtemp(prefix="keymoot-tpm-")))
    made: Mixed | None = None
    try:
        made = Mixed(tmp_path, machine, TestClient(time.time), TestGate(time.time))
        made.start()
        yield made
    finally:
        if made is not None:
            made.stop()
        machine.stop()
        shutil.rmtree(machine.directory)


def test_three_kinds_of_hsm_sign_together(net: Mixed) -> None:
    profiles = [json.loads(member.command("provision"))["profile"] for member in net.members.values()]
    assert profiles == ["gcm", "hmac-kdf", "hmac-kdf"]
    net.setup()
    key = net.keygen(net.client.create_key())[1].certificates[0][0].acknowledgement
    name = wire.PresignatureName(net.presign(COMMITTEE, 2)[1].sid, 1)
    ceremony, request = os.urandom(16), net.client.sign_hash(key.key_id, H)
    for j in COMMITTEE:
        net.order(j, wire.SignOrder(ceremony, key.key_id, request, COMMITTEE, name))
    authorized = net.take(wire.Authorized, COMMITTEE)
    for j in COMMITTEE:
        authorizations = authorizations_of({i: [report] for i, report in authorized.items()})
        net.order(j, wire.OnlineOrder(ceremony, key.key_id, authorizations))
    shares = net.take(wire.ShareReport, COMMITTEE)
    r = SECP256K1.x_mod_q(shares[1].r_point)
    s = polynomials.interpolate({j: int.from_bytes(x.s, "big") for j, x in shares.items()}, SECP256K1.q)
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), key.public_key)
    public.verify(utils.encode_dss_signature(r, s), H, ec.ECDSA(utils.Prehashed(hashes.SHA256())))

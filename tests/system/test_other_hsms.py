"""Three enclave processes, each on another HSM: SoftHSM, NSS softokn and a TPM. They make a key and sign."""

from __future__ import annotations

import json
import os
import shutil
import signal
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


def sign(net: Mixed, key: wire.Acknowledgement, name: wire.PresignatureName) -> None:
    """One signature by all three, verified."""
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


def state(net: Mixed, j: int) -> str:
    """What an enclave says of itself now."""
    said = net.members[j].said
    answered = len(said)
    net.tell(j, wire.StatusQuery())
    net.wait(lambda: any(isinstance(one, wire.Status) for one in said[answered:]))
    return next(one for one in said[answered:] if isinstance(one, wire.Status)).state


def refused(net: Mixed, j: int, key: wire.Acknowledgement, name: wire.PresignatureName) -> str:
    """The reason for which one enclave refuses to sign now."""
    request = net.client.sign_hash(key.key_id, H)
    net.order(j, wire.SignOrder(os.urandom(16), key.key_id, request, COMMITTEE, name))
    answer = net.take(wire.RequestRefused, (j,))[j]
    assert answer.rule == "unavailable"
    return str(answer.reason)


def test_three_kinds_of_hsm_sign_together_go_away_and_come_back(net: Mixed) -> None:
    profiles = [json.loads(member.command("provision"))["profile"] for member in net.members.values()]
    assert profiles == ["gcm", "hmac-kdf", "hmac-kdf"]
    net.setup()
    certificate = net.keygen(net.client.create_key())[1].certificates[0]
    key = certificate[0].acknowledgement
    names = iter([wire.PresignatureName(net.presign(COMMITTEE, 4)[1].sid, number) for number in range(1, 5)])
    sign(net, key, next(names))
    # NSS has read its keys: a database that is moved away is not missed before the next start.
    database = net.members[2].directory / "nss"
    database.rename(database.with_name("moved"))
    sign(net, key, next(names))
    database.with_name("moved").rename(database)
    # A TPM that hangs: nobody waits for it longer than ten seconds and a little.
    unused = next(names)
    os.kill(net.machine.chip, signal.SIGSTOP)
    begun_s = time.monotonic()
    net.order(3, wire.ActivateOrder(os.urandom(16), key.key_id, certificate))
    assert "has not returned in 10 s" in net.take(wire.OrderRefused, (3,))[3].reason
    assert time.monotonic() - begun_s < 15.0
    assert state(net, 3) == "hsm-away"
    assert "served again when it is back" in refused(net, 3, key, unused)
    os.kill(net.machine.chip, signal.SIGCONT)
    net.wait(lambda: state(net, 3) == "ready")
    sign(net, key, unused)
    # A TPM that is switched off and on, with its resource manager.
    last = next(names)
    net.machine.switch_off()
    net.order(3, wire.ActivateOrder(os.urandom(16), key.key_id, certificate))
    assert "HSM" in net.take(wire.OrderRefused, (3,))[3].reason
    assert state(net, 3) == "hsm-away"
    assert "served again when it is back" in refused(net, 3, key, last)
    net.machine.start()
    net.wait(lambda: state(net, 3) == "ready")
    sign(net, key, last)
    process = net.members[3].process
    assert process is not None
    assert process.poll() is None


def links_up(net: Mixed) -> set[tuple[int, int]]:
    """Who has told that a link came up, and with whom."""
    return {
        (j, report.peer)
        for j, reports in net.reports.items()
        for report in reports
        if isinstance(report, wire.LinkReport) and report.up
    }


def test_an_nss_database_that_is_away_when_its_enclave_starts_is_waited_for(net: Mixed) -> None:
    member = net.members[2]
    databases = list((member.directory / "nss").glob("*.db"))
    assert len(databases) == 2
    net.setup()
    key = net.keygen(net.client.create_key())[1].certificates[0][0].acknowledgement
    net.unwatch(member)
    member.stop()
    for database in databases:
        database.rename(database.with_suffix(".moved"))
    member.start()
    net.watch(member)
    net.attach(2)
    assert state(net, 2) == "hsm-away"
    for database in databases:
        database.with_suffix(".moved").rename(database)
    net.wait(lambda: state(net, 2) == "ready")
    net.drain()
    for present in ((1, 3), COMMITTEE):
        net.presence(present)
    linked = {(j, peer) for j in COMMITTEE for peer in COMMITTEE if 2 in (j, peer) and j != peer}
    net.wait(lambda: linked <= links_up(net))
    sign(net, key, wire.PresignatureName(net.presign(COMMITTEE, 1)[1].sid, 1))

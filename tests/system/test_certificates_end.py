"""Certificates that end while real processes use them: refused with the reason on both sides, taken up once renewed."""

from __future__ import annotations

import datetime
import json
import secrets
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from appliance import renewal
from appliance.localnet import LocalNet
from appliance.localnet.files import COORDINATOR, LOOPBACK
from appliance.profile import load_profile
from policies.requests import Hash
from tests.fakes.tls import signer_certificate

POOL = (20, 40, 20)
LIVES_S = 12
pytestmark = pytest.mark.timeout(170)


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    made = LocalNet(pool=POOL)
    try:
        made.write()
        shorten(made.plan.signer(2))
        made.start()
        yield made
    finally:
        made.close()


def shorten(directory: Path) -> None:
    """Let the signer's certificate end soon."""
    (directory / "signer.pem").write_bytes(signer_certificate(directory, datetime.timedelta(seconds=LIVES_S)))


def events(net: LocalNet, process: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in net.log(process).read_text().splitlines() if line.startswith("{")]


def said(net: LocalNet, process: str, event: str, text: str) -> bool:
    return any(one.get("event") == event and text in json.dumps(one) for one in events(net, process))


def test_a_signers_certificate_that_ends_is_refused_and_renewed_without_a_restart(net: LocalNet) -> None:
    pids = {name: process.pid for name, process in net.processes.items()}
    net.wait_for(lambda: said(net, "signer-2", "certificate-expires-soon", "pki renew"), "the signer's warning")
    net.wait_for(
        lambda: said(net, "signer-2", "coordinator-link-down", "your certificate has expired: renew it"),
        "the link to be ended",
    )
    # The connection that it makes then is refused; both sides say why.
    net.wait_for(
        lambda: said(net, "signer-2", "coordinator-link-down", "signer.pem expired on"), "the signer to say why"
    )
    net.wait_for(lambda: said(net, COORDINATOR, "certificate-refused", "has expired"), "the coordinator's reason")
    renewal.renew(net.plan.signer(2), datetime.datetime.now(datetime.UTC))
    net.wait_for_pool(POOL[0])
    with net.client() as client:
        key = client.create_key("test/certificates", "certificates-key")
        client.sign(key.id, Hash("0x" + secrets.token_hex(32), secrets.token_hex(8)))
    assert {name: process.pid for name, process in net.processes.items()} == pids


def test_coordinator_and_gate_show_a_renewed_certificate_without_a_restart(net: LocalNet) -> None:
    now = datetime.datetime.now(datetime.UTC)
    api_port = int(load_profile(net.profile).api.rpartition(":")[2])
    for name, port in ((COORDINATOR, api_port), ("gate-1", net._files.gate_ports[0])):
        directory = net.root / COORDINATOR if name == COORDINATOR else net.plan.gate_directory(1)
        before = serial(port)
        renewal.renew(directory, now)
        wanted = x509.load_pem_x509_certificate((directory / "server.pem").read_bytes()).serial_number
        assert wanted != before
        net.wait_for(lambda port=port, wanted=wanted: serial(port) == wanted, f"{name} to show its new certificate")
    with net.client() as client:
        key = client.create_key("test/certificates", "certificates-key")
        client.sign(key.id, Hash("0x" + secrets.token_hex(32), secrets.token_hex(8)))


def serial(port: int) -> int:
    """Of the certificate that is shown on a port of loopback."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((LOOPBACK, port)).encode()).serial_number

"""Who does not belong stays outside: an expired certificate, one of a foreign CA, a foreign roster. Real processes."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from appliance import pki
from appliance.localnet import LocalNet
from tests.fakes.tls import signer_certificate

POOL = (20, 40, 20)
STRANGER = "signer-3"

pytestmark = pytest.mark.timeout(170)


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    with LocalNet(pool=POOL) as made:
        made.wait_for_pool(POOL[0])
        yield made


@pytest.fixture
def directory(net: LocalNet) -> Iterator[Path]:
    """The configuration of signer 3; put back as it was, after which the network must work again."""
    found = net.plan.signer(3)
    before = {path: path.read_bytes() for path in found.iterdir() if path.is_file()}
    yield found
    for path, data in before.items():
        path.write_bytes(data)
    net.restart("enclave-3")
    net.restart(STRANGER)
    net.wait_for_pool(POOL[0])


def expired(directory: Path) -> bytes:
    """The signer's own certificate, by its own CA, valid until yesterday."""
    return signer_certificate(directory, -datetime.timedelta(days=1))


def foreign(directory: Path) -> bytes:
    """A certificate for the same key and name by a CA that the coordinator does not know."""
    own = x509.load_pem_x509_certificate((directory / "signer.pem").read_bytes())
    stranger = pki.issue(pki.make_ca("stranger"), STRANGER, pki.Purpose.CLIENT)
    (directory / "signer.key").write_bytes(stranger.key_pem)
    assert x509.load_pem_x509_certificate(stranger.certificate_pem).subject == own.subject
    return stranger.certificate_pem


def lines(net: LocalNet, process: str, start: int) -> str:
    """What a process has logged since it was `start` characters long."""
    return net.log(process).read_text()[start:]


def attempts(net: LocalNet, start: int) -> int:
    """How often the signer has said since `start` that a coordinator does not let it in."""
    said = [json.loads(line) for line in lines(net, STRANGER, start).splitlines() if line.startswith("{")]
    return sum("coordinator" in event and event.get("level") == "warning" for event in said)


@pytest.mark.parametrize("certificate", [expired, foreign])
def test_a_certificate_that_does_not_count(
    net: LocalNet, directory: Path, certificate: Callable[[Path], bytes]
) -> None:
    start = len(net.log(STRANGER).read_text())
    (directory / "signer.pem").write_bytes(certificate(directory))
    net.restart(STRANGER)
    net.wait_for(lambda: attempts(net, start) >= 1, "an attempt that fails")
    assert net.pools() in ({}, {(1, 2, 3): 0})


def test_another_roster_is_refused_with_the_reason(net: LocalNet, directory: Path) -> None:
    start = len(net.log("coordinator").read_text())
    roster = directory / "roster.yaml"
    changed = roster.read_text().replace("operator: ", "operator: Not ", 1)
    assert changed != roster.read_text()
    roster.write_text(changed)
    net.restart("enclave-3")
    net.restart(STRANGER)
    net.wait_for(lambda: "roster" in lines(net, "coordinator", start), "the coordinator to refuse it")
    assert net.pools() in ({}, {(1, 2, 3): 0})

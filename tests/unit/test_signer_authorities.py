"""With several organisations, none's authority may speak for another's signer at the coordinator."""

from __future__ import annotations

import asyncio
import pathlib

import aiohttp
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance import configure, pki, relay, templates
from appliance.coordinator.authorities import Authorities
from appliance.coordinator.config import PoolSettings, load_config
from appliance.coordinator.server import Coordinator
from appliance.tls import client_context
from enclave import wire
from policies.errors import CallerError, Refused
from tests.fakes.certificates import Dealer
from tests.fakes.coordinator_side import FakeNetwork, Files, attached, until


def leaf(ca: pki.Authority, name: str, directory: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    certificate, key = directory / f"{name}-of-another.pem", directory / f"{name}-of-another.key"
    pki.issue(ca, name, pki.Purpose.CLIENT).write(certificate, key)
    return certificate, key


async def test_a_certificate_of_another_operators_authority_takes_nobodys_place(tmp_path: pathlib.Path) -> None:
    files, dealer = Files(tmp_path), Dealer.make(3, 1)
    other = pki.make_ca("operator B")
    bundle, others = tmp_path / "signers-ca.pem", tmp_path / "b-ca.pem"
    bundle.write_bytes((tmp_path / "ca.pem").read_bytes() + other.certificate_pem)
    others.write_bytes(other.certificate_pem)
    config = files.config(dealer, PoolSettings(2, 8, 8))
    own = files.path("ca.pem")
    authorities = {"signer-1": own, "signer-2": own, "signer-3": others}
    settings = msgspec.structs.replace(config.signers, client_ca=bundle, authorities=authorities)
    async with Coordinator(msgspec.structs.replace(config, signers=settings)) as coordinator:
        net = FakeNetwork(dealer, files, config)
        net.use(coordinator)
        signers = coordinator.network.signers
        async with net.signers[0].connected(net.gateway, files):
            await until(lambda: signers.online() == (1,))
            # B's authority issues a certificate in the name of A's signer.
            tls = client_context(own, *leaf(other, "signer-1", tmp_path))
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http,
                http.ws_connect(net.gateway + relay.CONTROL_PATH) as socket,
            ):
                await socket.send_bytes(wire.encode(relay.Announce("test", attached(dealer, 1))))
                message = await asyncio.wait_for(socket.receive(), 10)
                assert message.type is aiohttp.WSMsgType.CLOSE
                assert message.extra == "certificate: the certificate was not issued by an authority of signer-1"
            assert signers.online() == (1,)
            assert net.signers[0].closed == []


def test_whose_authority_is_whose(tmp_path: pathlib.Path) -> None:
    first, second = pki.make_ca("a"), pki.make_ca("b")
    for name, ca in (("a", first), ("b", second)):
        (tmp_path / f"{name}.pem").write_bytes(ca.certificate_pem)
    known = Authorities({"s1": tmp_path / "a.pem"})
    shown = pki.issue(first, "s1", pki.Purpose.CLIENT).certificate_pem
    der = x509.load_pem_x509_certificate(shown).public_bytes(Encoding.DER)
    known.check("s1", der)
    Authorities({}).check("s1", None)
    with pytest.raises(Refused, match="names no authority of s2"):
        known.check("s2", der)
    with pytest.raises(Refused, match="cannot be compared"):
        known.check("s1", None)
    with pytest.raises(Refused, match="was not issued by an authority of s1"):
        Authorities({"s1": tmp_path / "b.pem"}).check("s1", der)
    # Withdrawn while it runs: from the next connection on.
    (tmp_path / "a.pem").write_bytes(second.certificate_pem)
    with pytest.raises(Refused, match="was not issued by an authority of s1"):
        known.check("s1", der)
    (tmp_path / "a.pem").unlink()
    with pytest.raises(Refused, match="cannot read the authority"):
        known.check("s1", der)
    with pytest.raises(CallerError, match="cannot read the authority"):
        Authorities({"s1": tmp_path / "a.pem"})


def test_paths_are_of_the_configurations_directory(tmp_path: pathlib.Path) -> None:
    configure.write_coordinator(tmp_path / "c", templates.CoordinatorSetup("net", "c"))
    path = tmp_path / "c" / "coordinator.yaml"
    text = path.read_text()
    assert "  # authorities: {NAME: NAME-ca.pem, OTHER: OTHER-ca.pem}\n" in text
    path.write_text(
        text.replace("# authorities: {NAME: NAME", "authorities: {s1: s1").replace(", OTHER: OTHER-ca.pem", "")
    )
    assert load_config(path).signers.authorities == {"s1": tmp_path / "c" / "s1-ca.pem"}

"""An authority that is taken out of a file counts no more: not for new connections, and not for those that are open."""

from __future__ import annotations

import asyncio
import json
import pathlib
import random
import ssl
from functools import partial

import aiohttp
import pytest
import structlog.testing
from aiohttp import web

from appliance import pki, relay
from appliance.coordinator.config import Reader
from appliance.expiry import CertificateWatch, CurrentContext, TlsFiles
from appliance.gate.config import GateConfig
from appliance.gate.handler import make_app
from appliance.signer import coordinator_link
from appliance.signer.config import CoordinatorSettings
from appliance.signer.coordinator_link import CoordinatorLink
from appliance.tls import client_context, server_context
from tests.fakes.coordinator_side import FakeNetwork, until
from tests.fakes.signer_side import FakeCoordinator, attached
from tests.fakes.tls import TlsFiles as Files

READERS = (Reader(name="a", certificate="stays"), Reader(name="b", certificate="goes"))


class Clients:
    """Client certificates of two authorities, and a bundle of those that count."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self.bundle = directory / "client-ca.pem"
        self._authorities = {name: pki.make_ca(f"ca of {name}") for name in ("stays", "goes")}
        for name, authority in self._authorities.items():
            pki.issue(authority, name, pki.Purpose.CLIENT).write(*self.files(name))
        self.trust("stays", "goes")

    def files(self, name: str) -> tuple[pathlib.Path, pathlib.Path]:
        return self._directory / f"client-{name}.pem", self._directory / f"client-{name}.key"

    def trust(self, *names: str) -> None:
        self.bundle.write_bytes(b"".join(self._authorities[name].certificate_pem for name in names))

    def session(self, ca: pathlib.Path, name: str) -> aiohttp.ClientSession:
        tls = client_context(ca, *self.files(name))
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=1))


async def test_the_api_and_its_open_connections(tmp_path: pathlib.Path) -> None:
    clients = Clients(tmp_path)
    async with FakeNetwork.start(tmp_path, client_ca=clients.bundle, readers=READERS) as net:
        ca, api = net.files.path("ca.pem"), net.coordinator.listeners["api"]
        async with clients.session(ca, "stays") as stays, clients.session(ca, "goes") as goes:
            for http in (stays, goes):
                async with http.get(net.api + "/v1/keys") as answer:
                    assert answer.status == 200
            clients.trust("stays")
            with structlog.testing.capture_logs() as logs:
                net.coordinator.certificates.look()
            assert [(one["event"], one.get("authorities_withdrawn"), one.get("count")) for one in logs] == [
                ("certificate-reloaded", 1, None), ("connections-ended", None, 2),
            ]  # fmt: skip
            await until(lambda: api.open == 0)
            async with stays.get(net.api + "/v1/keys") as answer:
                assert answer.status == 200
            # Neither a full handshake nor one that resumes.
            with pytest.raises(aiohttp.ClientError):
                await goes.get(net.api + "/v1/keys")
            with structlog.testing.capture_logs() as logs:
                net.coordinator.certificates.look()
            assert logs == [], "who came after it stays"


async def test_signers_and_their_sessions(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path) as net, net.all_connected():
        tls = client_context(net.files.path("ca.pem"), *net.files.client("signer-1"))
        other = pki.make_ca("other").certificate_pem
        # One more changes nothing for who is there.
        net.files.path("ca.pem").write_bytes(net.files.path("ca.pem").read_bytes() + other)
        net.coordinator.certificates.look()
        assert net.coordinator.network.signers.online() == (1, 2, 3)
        net.files.path("ca.pem").write_bytes(other)
        net.coordinator.certificates.look()
        await until(lambda: net.coordinator.network.signers.online() == ())
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http:
            with pytest.raises((aiohttp.ClientError, OSError)):
                await (await http.ws_connect(net.gateway + "/control")).receive_bytes()


async def test_the_link_of_a_signer(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_link, "LOOK_EVERY_S", 0.01)
    files, trusted = Files.make(tmp_path), tmp_path / "c1-ca.pem"
    own, other = files.ca.read_bytes(), pki.make_ca("other").certificate_pem
    trusted.write_bytes(own)
    async with FakeCoordinator.listening(files) as (coordinator, port):
        settings = CoordinatorSettings(
            "c1", f"https://localhost:{port}", trusted, files.client_certificate, files.client_key
        )
        link = CoordinatorLink(
            settings, lambda: relay.Announce("test", attached()), lambda _: None, lambda: None, random.Random(1)
        )
        task = asyncio.create_task(link.run())
        await coordinator.announced()
        with structlog.testing.capture_logs() as logs:
            trusted.write_bytes(own + other)
            await until(lambda: any(one["event"] == "certificate-reloaded" for one in logs))
            assert link.up
            trusted.write_bytes(other)
            await until(lambda: not link.up)
        assert "an authority was withdrawn" in str(logs)
        task.cancel()


async def test_the_reference_gate(tmp_path: pathlib.Path) -> None:
    clients, files = Clients(tmp_path), Files.make(tmp_path)
    secrets = tmp_path / "secrets.json"
    secrets.touch(0o600)
    hmac = dict.fromkeys(("request_hmac", "answer_hmac"), "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=")
    secrets.write_text(json.dumps(hmac))
    paths = (files.server_certificate, files.server_key, clients.bundle)
    tls = TlsFiles(partial(server_context, *paths), *paths)
    watch = CertificateWatch([], [tls])
    app = make_app(GateConfig("127.0.0.1:0", *paths[:2], secrets), tls)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=CurrentContext.of(tls)).start()
    url = f"https://localhost:{runner.addresses[0][1]}/"
    try:
        async with clients.session(files.ca, "stays") as stays, clients.session(files.ca, "goes") as goes:
            for http in (stays, goes):
                async with http.post(url) as answer:
                    assert answer.status == 401
            clients.trust("stays")
            watch.look()
            for http in (stays, goes):
                async with http.post(url) as answer:
                    assert (answer.status, answer.headers["Connection"]) == (503, "close")
            async with stays.post(url) as answer:
                assert answer.status == 401
            with pytest.raises(aiohttp.ClientError):
                await goes.post(url)
    finally:
        await runner.cleanup()


def test_by_itself_the_context_of_servers_trusts_nobody(tmp_path: pathlib.Path) -> None:
    files = Files.make(tmp_path)
    outer = CurrentContext.of(TlsFiles(partial(server_context, files.server_certificate, files.server_key, files.ca)))
    assert outer.get_ca_certs() == []
    made = outer.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    assert made.context.verify_mode is ssl.CERT_REQUIRED

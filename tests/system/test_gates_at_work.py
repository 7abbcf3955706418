"""Three real signers with three kinds of gate: an existing handler (mode `status`), a person who takes her time, and
the reference handler whose secrets are rotated while requests run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from appliance.api.client import ApiError, CertifiedKey, Failed, Rejected
from appliance.api.models import Signature
from appliance.gate.config import load_config
from appliance.gate.handler import make_app
from appliance.localnet import LocalNet
from appliance.tls import server_context
from policies.errors import KeymootError, Unavailable
from policies.requests import Hash

POOL = (60, 120, 60)
REFUSED = "ee" * 32
EXISTING, PERSON, REFERENCE = 1, 2, 3

pytestmark = pytest.mark.timeout(170)


class Handlers:
    """Handlers in a thread of the test: whatever `serve` is given, over TLS."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def serve(self, app: web.Application, port: int, tls: ssl.SSLContext) -> None:
        async def start() -> None:
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()

        asyncio.run_coroutine_threadsafe(start(), self._loop).result(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


class Person:
    """Signer 2's handler: the reference one behind a person, who says nothing (202) while she is `away`."""

    def __init__(self, directory: Path) -> None:
        self.away = False
        self.asked: list[dict[str, Any]] = []
        self.config = load_config(directory / "gate.yaml")
        self.app = make_app(self.config)
        self.app.middlewares.append(self._wait_for_her)

    @web.middleware
    async def _wait_for_her(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if not self.away:
            return await handler(request)  # type: ignore[no-any-return]
        self.asked.append(json.loads(await request.read()))
        return web.Response(status=202, headers={"Retry-After": "1"})


async def existing(request: web.Request) -> web.Response:
    """It knows nothing of Keymoot but `signerInfo`, and says 200 or 403."""
    info = json.loads(await request.read())["signerInfo"]
    return web.Response(status=403 if info["tx_hash"] == REFUSED else 200)


@pytest.fixture(scope="module")
def person() -> list[Person]:
    return []


@pytest.fixture(scope="module")
def net(person: list[Person]) -> Iterator[LocalNet]:
    made, handlers = LocalNet(pool=POOL), Handlers()
    try:
        made.write()
        for index in (EXISTING, PERSON):
            del made.processes[f"gate-{index}"]
        for index in made.plan.indices:
            path = made.plan.signer(index) / "enclave.yaml"
            mode = "mode: status" if index == EXISTING else "mode: signed"
            more = "  key_creation: true\n" if index == PERSON else ""
            path.write_text(path.read_text().replace("  mode: signed\n", f"  {mode}\n  deadline_s: 3600\n{more}"))
        signer = made.plan.signer(EXISTING)
        settings = (signer / "signer.yaml").read_text()
        mutual = "  ca: gate-ca.pem\n  certificate: signer.pem\n  key: signer.key\n"
        (signer / "signer.yaml").write_text(settings.replace("  ca: gate-ca.pem\n", mutual))
        app = web.Application()
        app.router.add_post("/{path:.*}", existing)
        config = load_config(made.plan.gate_directory(EXISTING) / "gate.yaml")
        tls = server_context(config.certificate, config.key, signer / "ca.pem")
        handlers.serve(app, port_of(config.listen), tls)
        person.append(Person(made.plan.gate_directory(PERSON)))
        config = person[0].config
        handlers.serve(person[0].app, port_of(config.listen), server_context(config.certificate, config.key))
        made.start()
        made.wait_for_pool(POOL[0])
        yield made
    finally:
        made.close()
        handlers.close()


@pytest.fixture(scope="module")
def key(net: LocalNet) -> CertifiedKey:
    with net.client() as client:
        return client.create_key("test/gates", "gates-key")


def port_of(listen: str) -> int:
    return int(listen.rpartition(":")[2])


def some_hash(h: str = "") -> Hash:
    return Hash("0x" + (h or secrets.token_hex(32)), "gates-" + secrets.token_hex(8))


def until(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def test_an_existing_handler_says_200_or_403_and_is_shown_as_weaker(net: LocalNet, key: CertifiedKey) -> None:
    with net.client() as client:
        assert client.sign(key.id, some_hash()).signature is not None
        with pytest.raises(Rejected) as refused:
            client.sign(key.id, some_hash(REFUSED))
        assert (refused.value.signer, refused.value.reason) == (f"signer-{EXISTING}", "HTTP 403")
        modes = {each.name: each.announced.gate_mode for each in client.list_signers() if each.announced}
        assert modes == {"signer-1": "status", "signer-2": "signed", "signer-3": "signed"}
    assert '"event":"weak gate"' in net.log(f"enclave-{EXISTING}").read_text()


def test_a_person_decides_while_signers_and_coordinator_restart(
    net: LocalNet, key: CertifiedKey, person: list[Person]
) -> None:
    her, body, ended = person[0], some_hash(), list[Signature]()
    her.asked.clear()
    her.away = True
    before = net.pools()

    def ask() -> None:
        with contextlib.suppress(ApiError, Failed, Unavailable), net.client() as client:
            ended.append(client.sign(key.id, body))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: her.asked, "she is asked")
    for name in (f"signer-{PERSON}", "coordinator"):
        net.restart(name)
        count = len(her.asked)
        until(lambda count=count: len(her.asked) > count, f"she is asked on after {name} restarted")  # type: ignore[misc]
    with net.client() as client:
        until(lambda: [s for s in client.list_signatures(key.id) if s.status == "Executing"], "it is executing")
        (shown,) = [s for s in client.list_signatures(key.id) if s.external_id == body.external_id]
        assert shown.reason is not None
        assert (shown.status, shown.reason.code, shown.reason.signer) == ("Executing", "gate/pending", "signer-2")
        # One question, asked again and again; nothing is reserved for it.
        assert len({question["uid"] for question in her.asked}) == 1
        assert [question["attempt"] for question in her.asked] == sorted(
            {question["attempt"] for question in her.asked}
        )
        until(lambda: sum(net.pools().values()) >= sum(before.values()), "the pool is what it was")
        her.away = False
        signed = client.sign(key.id, body)
        assert signed.status == "Signed"
        assert signed.signature is not None
        assert signed.signature.hash == body.hash
    asking.join(60)
    assert not asking.is_alive()


@pytest.mark.usefixtures("key")
def test_a_person_decides_whether_a_key_is_made(net: LocalNet, person: list[Person]) -> None:
    her, made = person[0], list[CertifiedKey]()
    her.asked.clear()
    her.away = True

    def ask() -> None:
        with contextlib.suppress(ApiError, Failed, Unavailable), net.client() as client:
            made.append(client.create_key("test/asked", "asked-key"))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: her.asked, "she is asked")
    net.restart("coordinator")
    count = len(her.asked)
    until(lambda: len(her.asked) > count, "she is asked on after the coordinator restarted")
    with net.client() as client:

        def labels() -> list[str]:
            return [each.certified.label for each in client.list_keys() if each.certified is not None]

        until(labels, "the signers have told of their keys")
        assert "test/asked" not in labels()
        her.away = False
        key = client.create_key("test/asked", "asked-key")
        assert (key.label, client.sign(key.id, some_hash()).status) == ("test/asked", "Signed")
        assert labels().count("test/asked") == 1
    infos = [question["signerInfo"] for question in her.asked]
    assert {(info["kind"], info["label"], info["signer_id"]) for info in infos} == {
        ("KeyCreation", "test/asked", f"signer-{PERSON}")
    }
    assert len({question["uid"] for question in her.asked}) == 1
    asking.join(60)
    assert not asking.is_alive()
    assert {each.id for each in made} <= {key.id}


def test_secrets_are_rotated_and_no_request_fails(net: LocalNet, key: CertifiedKey) -> None:
    signed, stop, failures = list[Signature](), threading.Event(), list[KeymootError]()

    def work() -> None:
        try:
            with net.client() as client:
                while not stop.is_set():
                    signed.append(client.sign(key.id, some_hash()))
        except KeymootError as error:
            failures.append(error)

    def some_more() -> None:
        count = len(signed)
        until(lambda: failures or len(signed) >= count + 5, "requests go on")
        assert failures == []

    log = net.log(f"enclave-{REFERENCE}")
    handlers_file = net.plan.gate_directory(REFERENCE) / "gate-secrets.json"
    new_file, old = handlers_file.with_name("new.json"), handlers_file.read_bytes()
    worker = threading.Thread(target=work)
    worker.start()
    try:
        some_more()
        gate_secret(net, "--rotate", "--generate", str(new_file))
        reloaded(log, requests=2, answers=2)
        some_more()
        os.replace(new_file, handlers_file)
        until(lambda: "gate-secrets-reloaded" in net.log(f"gate-{REFERENCE}").read_text(), "the handler has them")
        some_more()
        gate_secret(net, "--rotate", "--generate", str(new_file), fails="a rotation is under way")
        gate_secret(net, "--finish")
        reloaded(log, requests=1, answers=1)
        some_more()
        gate_secret(net, "--finish", fails="no rotation is under way")
    finally:
        stop.set()
        worker.join(60)
    assert failures == []
    assert all(each.status == "Signed" for each in signed)
    # The old ones count no more, in either direction.
    current = handlers_file.read_bytes()
    handlers_file.write_bytes(old)
    with net.client() as client, pytest.raises(Rejected) as refused:
        client.sign(key.id, some_hash())
    assert (refused.value.signer, refused.value.code) == (f"signer-{REFERENCE}", "gate/status")
    handlers_file.write_bytes(current)
    with net.client() as client:
        assert client.sign(key.id, some_hash()).status == "Signed"


def reloaded(log: Path, *, requests: int, answers: int) -> None:
    """The enclave has said last that it took up so many keys."""

    def says() -> bool:
        found = re.findall(r'.*"event":"gate secrets reloaded".*', log.read_text())
        return bool(found) and f'"requests":{requests},"answers":{answers}' in found[-1]

    until(says, "the enclave takes its secrets up")


def gate_secret(net: LocalNet, *arguments: str, fails: str = "") -> None:
    """`keymoot gate secret`, while the enclave runs."""
    config = str(net.plan.signer(REFERENCE) / "enclave.yaml")
    ran = subprocess.run(
        [sys.executable, "-m", "appliance.cli", "gate", "secret", "-c", config, *arguments],
        env=net.plan.environment(REFERENCE),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if fails:
        assert (ran.returncode, fails in ran.stderr + ran.stdout) == (2, True), ran.stderr
    else:
        assert ran.returncode == 0, ran.stderr

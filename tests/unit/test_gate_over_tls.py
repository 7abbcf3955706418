"""What an enclave makes of what real servers say over real TLS, through the signer's real caller: a table."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from aiohttp import web
from msgspec import convert
from msgspec.structs import replace

from appliance import pki
from appliance.gate.check.samples import SAMPLES
from appliance.gate.config import GateConfig, GateRules
from appliance.gate.handler import make_app
from appliance.signer.config import GateSettings
from appliance.signer.gate_caller import GateCaller
from appliance.tls import server_context
from enclave import webhooks, wire
from enclave.asking import Gate
from enclave.errors import Refused
from enclave.gate import GateAllowed
from enclave.gate_keys import parse_gate_secrets
from enclave.tasks import Task, Timers
from policies.gate_messages import GateInfo, RequestInfo, SignerInfo
from tests.fakes.servers import serving
from tests.fakes.tls import TlsFiles

SPEED = 20.0
"""So much faster than the world do the enclave's clocks go."""
DEADLINE_S = 12
SECRETS = {
    "request_hmac": "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=",
    "answer_hmac": "whsec_" + "ZWRjYmFaWVhXVlVUU1JRUE9OTUxLSklIR0ZFRENCQWE=",
}
KEYS = parse_gate_secrets(json.dumps(SECRETS).encode())
INFO = SignerInfo(
    "Signing", "key_" + "0" * 32, "02" + "11" * 32, "22" * 32, (0, 5), "03" + "33" * 32, "alpha", "ECDSA",
    "secp256k1", 1, (1, 2, 3), False,
)  # fmt: skip
REQUEST = RequestInfo("payments", "e1", "net", {"kind": "Hash"}, None)
STARTED_S = time.time()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def clock() -> float:
    return STARTED_S + (time.time() - STARTED_S) * SPEED


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return TlsFiles.make(tmp_path_factory.mktemp("tls"))


async def converse(
    url: str,
    ca: pathlib.Path,
    times: int = 1,
    mode: str = "signed",
    info: GateInfo = INFO,
    now: Callable[[], float] = clock,
) -> list[GateAllowed | Refused]:
    """Ask the gate at `url`, as enclave and signer do together, `times` in turn."""
    loop, found = asyncio.get_running_loop(), list[GateAllowed | Refused]()
    caller = GateCaller.open(GateSettings(url, ca))
    timers, calls = Timers(now), set[asyncio.Task[None]]()

    async def carry(call: wire.CallGate) -> None:
        gate.on_answer(await caller.call(call, call.timeout_ms / 1000 / SPEED))

    def emit(call: wire.CallGate) -> None:
        calls.add(task := loop.create_task(carry(call)))
        task.add_done_callback(calls.discard)

    gate = Gate(mode, lambda: KEYS, timers, now, os.urandom, emit)
    try:
        for _ in range(times):
            ended = asyncio.Event()
            task = Task(gate.ask(info, REQUEST, int(now()) + DEADLINE_S, lambda _: None), lambda _, e=ended: e.set())  # type: ignore[misc]
            task.start()
            while not ended.is_set():
                timers.fire()
                await asyncio.sleep(0.005)
            assert isinstance(task.outcome, GateAllowed | Refused)
            found.append(task.outcome)
    finally:
        await caller.close()
    return found


async def ask(handler: Handler, tls: TlsFiles, mode: str = "signed", info: GateInfo = INFO) -> str:
    """`yes`, or the rule by which a question to this handler is refused."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with serving(app, tls) as port:
        (outcome,) = await converse(f"https://127.0.0.1:{port}/gate", tls.ca, mode=mode, info=info)
    return "yes" if isinstance(outcome, GateAllowed) else outcome.rule


def says(status: int = 200, body: bytes = b"", **headers: str) -> Handler:
    """Always this."""

    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    return handle


def answers(
    status: int = 200, at_s: int = 0, secret: str = "answer_hmac", raw: bytes | None = None, **change: Any
) -> Handler:
    """A yes to the question, signed; with `change` of its fields, or `raw` in its place."""

    async def handle(request: web.Request) -> web.Response:
        question = json.loads(await request.read())
        info = question["signerInfo"]
        expires = datetime.fromtimestamp(clock() + 60, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        answer = {
            "type": "validation.answer", "uid": question["uid"], "request_digest": info["request_digest"],
            "signer_id": info["signer_id"], "kind": info["kind"], "dryRun": False, "allowed": True,
            "status": {"code": 0, "reason": "", "message": ""}, "expiresAt": expires,
        }  # fmt: skip
        body = json.dumps(answer | change).encode() if raw is None else raw
        now_s = int(clock()) + at_s
        signature = webhooks.sign([webhooks.parse_key(SECRETS[secret])], question["uid"], now_s, body)
        headers = {"webhook-id": question["uid"], "webhook-timestamp": str(now_s), "webhook-signature": signature}
        return web.Response(status=status, body=body, headers=headers)

    return handle


async def silent(request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


async def drips(request: web.Request) -> web.StreamResponse:
    """A body that never ends, slowly."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def hangs_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def twice(request: web.Request) -> web.Response:
    response = web.Response()
    for value in ("a", "b"):
        response.headers.add("webhook-signature", value)
    return response


async def mirror(request: web.Request) -> web.Response:
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    return web.Response(body=await request.read(), headers={name: request.headers[name] for name in names})


TABLE: dict[str, tuple[Handler, str]] = {
    "a yes": (answers(), "yes"),
    "a no": (answers(allowed=False), "gate"),
    "a redirect": (says(302, Location="/elsewhere"), "gate/redirect"),
    "a redirect that keeps the method": (says(308, Location="https://127.0.0.1:1/"), "gate/redirect"),
    "200 and nothing": (says(), "gate/unsigned"),
    "200 and HTML": (says(200, b"<html>OK</html>"), "gate/unsigned"),
    "signed nothing": (answers(raw=b""), "gate/malformed"),
    "signed HTML": (answers(raw=b"<html>OK</html>"), "gate/malformed"),
    "a field that nobody knows": (answers(also=1), "gate/malformed"),
    "a huge body": (says(200, b"x" * (wire.MAX_GATE_BODY_BYTES + 1)), "gate/too-large"),
    "a slow body": (drips, "gate/timeout"),
    "no answer": (silent, "gate/timeout"),
    "a connection that breaks": (hangs_up, "gate/unreachable"),
    "the wrong uid": (answers(uid="ab" * 16), "gate/echo"),
    "the wrong digest": (answers(request_digest="00" * 32), "gate/echo"),
    "the wrong signer": (answers(signer_id="beta"), "gate/echo"),
    "the wrong kind": (answers(kind="Refresh"), "gate/echo"),
    "a dry run's yes": (answers(dryRun=True), "gate/echo"),
    "a stale timestamp": (answers(at_s=-310), "gate/stale"),
    "a timestamp of the future": (answers(at_s=310), "gate/stale"),
    "the other direction's key": (answers(secret="request_hmac"), "gate/signature"),
    "our own question": (mirror, "gate/signature"),
    "a yes that has expired": (answers(expiresAt="2020-01-01T00:00:00Z"), "gate/expired"),
    "a yes without an end": (answers(expiresAt=""), "gate/malformed"),
    "a signed yes under 201": (answers(201), "gate/status"),
    "a signed yes under 403": (answers(403), "gate/status"),
    "500": (says(500), "gate/status"),
    "503 again and again": (says(503), "gate/status"),
    "429 again and again": (says(429, **{"Retry-After": "2"}), "gate/status"),
    "pending to the end": (says(202, **{"Retry-After": "1"}), "gate/undecided"),
    "a header twice": (twice, "gate/http"),
}


@pytest.mark.parametrize("case", TABLE)
async def test_each_answer_has_its_reason(tls: TlsFiles, case: str) -> None:
    handler, rule = TABLE[case]
    assert await ask(handler, tls) == rule


@pytest.mark.parametrize(
    ("handler", "rule"),
    [
        (says(200), "yes"),
        (says(200, b"<html>no</html>"), "yes"),
        (says(403), "gate"),
        (says(401), "gate/status"),
        (says(202), "gate/status"),
        (says(302, Location="/"), "gate/redirect"),
        (silent, "gate/timeout"),
    ],
)
async def test_mode_status_looks_at_the_status_alone(tls: TlsFiles, handler: Handler, rule: str) -> None:
    assert await ask(handler, tls, "status") == rule


async def test_a_gate_that_comes_back_within_the_deadline_is_asked_again(tls: TlsFiles) -> None:
    tries: list[int] = []

    async def flaky(request: web.Request) -> web.StreamResponse:
        tries.append(json.loads(await request.read())["attempt"])
        return await (hangs_up, says(503), says(429), answers())[len(tries) - 1](request)

    assert await ask(flaky, tls) == "yes"
    assert tries == [1, 2, 3, 4]


# --- every kind of step that a gate is asked about ---

KINDS = {kind: sample.info for kind, sample in SAMPLES.items()}


def test_these_are_all_kinds() -> None:
    assert {type(info) for info in KINDS.values()} == set(get_args(GateInfo))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_reference_handler_says_yes_to_a_kind_that_its_rules_name_and_to_no_other(
    tls: TlsFiles, tmp_path: pathlib.Path, kind: str
) -> None:
    secrets = tmp_path / "secrets.json"
    secrets.write_text(json.dumps(SECRETS))
    secrets.chmod(0o600)
    for kinds, said in (((kind,), "yes"), (tuple(set(KINDS) - {kind}), "gate")):
        rules = convert({"kinds": kinds}, GateRules)
        async with serving(make_app(GateConfig("127.0.0.1:0", tls.ca, tls.ca, secrets, rules=rules)), tls) as port:
            (outcome,) = await converse(f"https://127.0.0.1:{port}/", tls.ca, info=KINDS[kind], now=time.time)
        assert ("yes" if isinstance(outcome, GateAllowed) else outcome.rule) == said


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_yes_counts_for_the_step_it_was_asked_about(tls: TlsFiles, kind: str, other: str) -> None:
    info, another = KINDS[kind], KINDS[other]
    if kind == other:
        another = replace(info, signer_id="another")
        assert await ask(answers(), tls, info=info) == "yes"
        assert await ask(answers(allowed=False), tls, info=info) == "gate"
        assert await ask(answers(dryRun=True), tls, info=info) == "gate/echo"
    else:
        assert await ask(answers(kind=other), tls, info=info) == "gate/echo"
    assert await ask(answers(request_digest=another.digest()), tls, info=info) == "gate/echo"


# --- names, authorities, connections ---


class Names:
    """What `gate.example` resolves to, and how often somebody asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        self.address, self.asked = address, 0
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", self._look_up, raising=False)

    async def _look_up(self, host: str, port: int, **_: Any) -> list[Any]:
        assert host == "gate.example"
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.address, port))]


@asynccontextmanager
async def standing(
    address: str, port: int, certificate: pki.Issued, directory: pathlib.Path, seen: list[int]
) -> AsyncIterator[int]:
    """A gate that says yes at this address. `seen`: the client's port of each question."""

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        seen.append(request.transport.get_extra_info("peername")[1])
        return await answers()(request)

    files = directory / f"{address}.pem", directory / f"{address}.key"
    certificate.write(*files)
    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, port, ssl_context=server_context(*files)).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def certificate(name: str, ca: pki.Authority | None = None) -> tuple[pki.Authority, pki.Issued]:
    ca = ca or pki.make_ca("ca")
    return ca, pki.issue(ca, name, pki.Purpose.SERVER, names=(name,))


async def test_a_name_is_looked_up_once_for_a_connection_that_is_used_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, issued = certificate("gate.example")
    ca.write(tmp_path / "ca.pem", tmp_path / "ca.key")
    names, seen = Names(monkeypatch, "127.0.0.1"), list[int]()
    async with standing("127.0.0.1", 0, issued, tmp_path, seen) as port:
        outcomes = await converse(f"https://gate.example:{port}/gate", tmp_path / "ca.pem", times=3)
    assert [type(each) for each in outcomes] == [GateAllowed] * 3
    assert (len(seen), len(set(seen)), names.asked) == (3, 1, 1)


@pytest.mark.parametrize("impostor", ["foreign authority", "other name"])
async def test_a_name_that_is_turned_to_somebody_else_reaches_nobody(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, impostor: str
) -> None:
    ca, issued = certificate("gate.example")
    ca.write(tmp_path / "ca.pem", tmp_path / "ca.key")
    _, false = certificate("gate.example") if impostor == "foreign authority" else certificate("other.example", ca)
    names, seen, stolen = Names(monkeypatch, "127.0.0.1"), list[int](), list[int]()
    async with (
        standing("127.0.0.1", 0, issued, tmp_path, seen) as port,
        standing("127.0.0.2", port, false, tmp_path, stolen),
    ):
        url = f"https://gate.example:{port}/gate"
        assert isinstance((await converse(url, tmp_path / "ca.pem"))[0], GateAllowed)
        names.address = "127.0.0.2"
        (refused,) = await converse(url, tmp_path / "ca.pem")
        assert isinstance(refused, Refused)
        assert (refused.rule, stolen, len(seen)) == ("gate/tls", [], 1)


async def test_a_name_that_nobody_has(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, _ = certificate("gate.example")
    ca.write(tmp_path / "ca.pem", tmp_path / "ca.key")

    async def nobody(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", nobody, raising=False)
    (refused,) = await converse("https://gate.example:9/gate", tmp_path / "ca.pem")
    assert isinstance(refused, Refused)
    assert refused.rule == "gate/unreachable"
    assert "there is no host gate.example" in refused.reason

"""The processes of one signature with nothing in them but the hops and the libraries' calls."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import queue
import selectors
import socket
import sqlite3
import threading
from pathlib import Path
from typing import Any

import coincurve
import msgspec
import nacl.bindings
from aiohttp import ClientSession, TCPConnector, WSMsgType, web

from appliance.tls import client_context, server_context
from enclave.crypto.curve import SECP256K1
from enclave.framing import Stream
from enclave.hsm import HsmThread, RecordContext, open_hsm, provision
from policies import garbage
from tests.fakes.softhsm import SoftToken

SIGNERS = 3
# The real ones encoded, of three signers that sign one hash.
BYTES = {
    "order": 1141,
    "question": 970,
    "answer": 462,
    "authorization": 398,
    "online": 1587,
    "share": 90,
    "result": 700,
}
RECORD = RecordContext("hops", 1, "key", "key_" + "0" * 32, epoch=1, version=1)
SEED = bytes(32)
WEBHOOK_KEY = bytes(32)


class Frame(msgspec.Struct, array_like=True):
    """One message of any hop: whose, what, and as many bytes as the real one has."""

    number: int
    kind: str
    content: bytes


ENCODE = msgspec.msgpack.encode
DECODE = msgspec.msgpack.Decoder(Frame).decode
KEYS = nacl.bindings.crypto_sign_seed_keypair(SEED)


def padded(content: bytes, what: str) -> bytes:
    """`content`, made as long as `what` is."""
    return content.ljust(BYTES[what], b"\0")


def json_of(what: str) -> bytes:
    """A JSON object about as long as `what`."""
    return json.dumps({what: "x" * (BYTES[what] - 20)}).encode()


def sign(digest: bytes) -> bytes:
    """An Ed25519 signature, 64 bytes."""
    return nacl.bindings.crypto_sign(digest, KEYS[1])[:64]


def verify(digest: bytes, signature: bytes) -> None:
    """Raises where the signature is not over `digest`."""
    nacl.bindings.crypto_sign_open(signature + digest, KEYS[0])


class Writer:
    """One thread, one transaction for all that came meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path, self._queue = path, queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]]()
        threading.Thread(target=self._run, daemon=True).start()

    async def commit(self, record: bytes) -> None:
        """Returns when the record is on disk."""
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((record, future))
        await future

    def _run(self) -> None:
        store = sqlite3.connect(self._path, isolation_level=None)
        store.execute("PRAGMA journal_mode=WAL")
        store.execute("PRAGMA synchronous=FULL")
        store.execute("CREATE TABLE records (id INTEGER PRIMARY KEY, record BLOB)")
        while True:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            store.execute("BEGIN IMMEDIATE")
            for record, _ in batch:
                store.execute("INSERT INTO records (record) VALUES (?)", (record,))
            store.execute("COMMIT")
            self._loop.call_soon_threadsafe(lambda done: [f.set_result(None) for _, f in done], batch)


async def gate(root: Path, port: int) -> None:
    """Verifies the question's HMAC, answers with one."""

    async def handle(request: web.Request) -> web.Response:
        body = await request.read()
        hmac.compare_digest(hmac.digest(WEBHOOK_KEY, body, "sha256"), bytes.fromhex(request.headers["signature"]))
        json.loads(body)
        answer = json_of("answer")
        return web.Response(body=answer, headers={"signature": hmac.digest(WEBHOOK_KEY, answer, "sha256").hex()})

    await serve(root, port, web.post("/gate", handle))


async def serve(root: Path, port: int, *routes: web.RouteDef) -> None:
    """A TLS server on loopback, for ever."""
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    context = server_context(root / "server.crt", root / "server.key")
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    await asyncio.Event().wait()


def enclave(root: Path, index: int) -> None:
    """A blocking loop and an HSM thread."""
    token = SoftToken(root / f"hsm-{index}", "hops")
    os.environ["SOFTHSM2_CONF"] = str(token.create())
    provision(token.config)
    thread = HsmThread(lambda: open_hsm(token.config, "hops", 1))
    thread.wait_ready(10)
    sealed: list[Any] = []
    thread.submit(lambda hsm: hsm.seal(RECORD, os.urandom(200)), sealed.append)
    path = str(root / f"enclave-{index}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        peer, _ = listener.accept()
    stream = Stream(peer, 1 << 24, 1 << 20)
    point = SECP256K1.generate(1)
    garbage.settle()

    def tell(number: int, kind: str, content: bytes) -> None:
        stream.write(ENCODE(Frame(number, kind, content)))

    def share(number: int, _: object) -> None:
        delta = int.from_bytes(hashlib.sha256(b"%d" % number).digest(), "big")
        SECP256K1.multiply(point, delta)
        tell(number, "share", padded(b"", "share"))

    def handle(frame: Frame) -> None:
        if frame.kind == "order":
            verify(frame.content[:32], frame.content[32:96])
            body = json_of("question")
            tell(frame.number, "question", hmac.digest(WEBHOOK_KEY, body, "sha256") + body)
        elif frame.kind == "answer":
            hmac.compare_digest(hmac.digest(WEBHOOK_KEY, frame.content[32:], "sha256"), frame.content[:32])
            json.loads(frame.content[32:])
            digest = hashlib.sha256(frame.content).digest()
            tell(frame.number, "authorization", padded(digest + sign(digest), "authorization"))
        else:
            thread.submit(lambda hsm: hsm.unseal(RECORD, sealed[0]).wipe(), lambda done: share(frame.number, done))
            verify(frame.content[:32], frame.content[32:96])
            verify(frame.content[:32], frame.content[32:96])

    with selectors.DefaultSelector() as selector:
        selector.register(peer, selectors.EVENT_READ, lambda: [handle(DECODE(one)) for one in stream.read()])
        selector.register(thread, selectors.EVENT_READ, thread.drain)
        while True:
            for key, _ in selector.select():
                key.data()
            stream.flush()


async def signer(root: Path, index: int, coordinator_port: int, gate_port: int) -> None:
    """Carries frames between the coordinator and its enclave, questions to its gate."""
    writer = Writer(root / f"signer-{index}.db")
    context = client_context(root / "ca.crt")
    reader, into = await asyncio.open_unix_connection(str(root / f"enclave-{index}"))
    running: set[asyncio.Task[None]] = set()

    def to_enclave(number: int, kind: str, content: bytes) -> None:
        data = ENCODE(Frame(number, kind, content))
        into.write(len(data).to_bytes(4, "big") + data)

    async with (
        ClientSession(connector=TCPConnector(ssl=context)) as http,
        http.ws_connect(f"wss://127.0.0.1:{coordinator_port}/signer") as coordinator,
    ):

        async def ask(frame: Frame) -> None:
            headers = {"signature": frame.content[:32].hex()}
            async with http.post(
                f"https://127.0.0.1:{gate_port}/gate", data=frame.content[32:], headers=headers
            ) as got:
                to_enclave(frame.number, "answer", bytes.fromhex(got.headers["signature"]) + await got.read())

        async def release(frame: Frame, data: bytes) -> None:
            await writer.commit(frame.content)
            await coordinator.send_bytes(data)

        async def from_enclave() -> None:
            while True:
                data = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
                frame = DECODE(data)
                if frame.kind == "authorization":
                    await coordinator.send_bytes(data)
                    continue
                task = asyncio.create_task(ask(frame) if frame.kind == "question" else release(frame, data))
                running.add(task)
                task.add_done_callback(running.discard)

        running.add(asyncio.create_task(from_enclave()))
        (root / f"connected-{index}").touch()
        async for message in coordinator:
            if message.type is WSMsgType.BINARY:
                into.write(len(message.data).to_bytes(4, "big") + message.data)


async def coordinator(root: Path, port: int) -> None:
    """Accepts, orders both steps of every signer, verifies, answers."""
    writer = Writer(root / "coordinator.db")
    signers: list[web.WebSocketResponse] = []
    waiting: dict[int, tuple[list[Frame], asyncio.Event]] = {}
    key = coincurve.PrivateKey(b"\1" * 32)
    signed = key.sign(b"message")

    async def connect(request: web.Request) -> web.WebSocketResponse:
        socket_ = web.WebSocketResponse(compress=False)
        await socket_.prepare(request)
        signers.append(socket_)
        async for message in socket_:
            frame = DECODE(message.data)
            got, complete = waiting[frame.number]
            got.append(frame)
            if len(got) == SIGNERS:
                complete.set()
        return socket_

    async def step(number: int, kind: str, content: bytes) -> list[Frame]:
        got, complete = waiting[number] = [], asyncio.Event()
        data = ENCODE(Frame(number, kind, content))
        for one in signers:
            await one.send_bytes(data)
        await complete.wait()
        return got

    async def create(request: web.Request) -> web.Response:
        body, signature = await request.read(), bytes.fromhex(request.headers["signature"])
        digest = hashlib.sha256(body).digest()
        verify(digest, signature)
        number = json.loads(body)["number"]
        await writer.commit(body)
        await step(number, "order", padded(digest + signature, "order"))
        await step(number, "online", padded(digest + signature, "online"))
        del waiting[number]
        key.public_key.verify(signed, b"message")
        await writer.commit(padded(b"", "result"))
        return web.Response(body=json_of("result"))

    await serve(root, port, web.post("/signatures", create), web.get("/signer", connect))

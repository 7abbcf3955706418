"""Signers as a coordinator sees them: real TLS WebSockets, real ECDSA shares of a dealt key, no enclave behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import aiohttp
import coincurve
import msgspec

from appliance import pki, relay
from appliance.api.credentials import token_sha256
from appliance.api.derivation import derive
from appliance.api.signatures import what_is_signed
from appliance.coordinator.combine import lagrange_at_zero
from appliance.coordinator.config import (
    ApiSettings,
    CoordinatorConfig,
    PoolSettings,
    Reader,
    SignersSettings,
    WaitSettings,
)
from appliance.coordinator.gates import unheld
from appliance.coordinator.server import Coordinator
from appliance.tls import client_context
from enclave import wire
from policies.requests import HashBatch, SigningBody, body_digest
from tests.fakes.certificates import ORDER, Dealer
from tests.fakes.clients import TestClient, open_policy

POINT_BYTES = 33
TOKEN = "kmt_" + "A" * 43  # the same in every process of a parallel run
Answers = Callable[[wire.Wire], Iterable[wire.Wire]]


def number(*parts: object) -> int:
    """A number below the group's order, never 0, fixed by `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest(), "big") % (ORDER - 1) + 1


async def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Wait for `condition`, at most `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions of a test have no event
            await asyncio.sleep(0.01)


class Files:
    """One CA; certificates of the coordinator and of any client."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._ca = pki.make_ca("test ca")
        self._ca.write(self.path("ca.pem"), self.path("ca.key"))
        server = pki.issue(self._ca, "localhost", pki.Purpose.SERVER, addresses=("127.0.0.1",))
        server.write(self.path("server.pem"), self.path("server.key"))
        self.signer = TestClient(time.time, network="test")
        self.approvers = {name: TestClient(time.time, name, "test") for name in ("alice", "bob")}

    def path(self, name: str) -> pathlib.Path:
        return self.directory / name

    def client(self, name: str) -> tuple[pathlib.Path, pathlib.Path]:
        """A client certificate with common name `name`, and its key."""
        certificate, key = self.path(f"{name}.pem"), self.path(f"{name}.key")
        if not certificate.exists():
            pki.issue(self._ca, name, pki.Purpose.CLIENT).write(certificate, key)
        return certificate, key

    def config(self, dealer: Dealer, pool: PoolSettings) -> CoordinatorConfig:
        self.path("roster.yaml").write_bytes(msgspec.json.encode(dealer.roster))
        self.path("clients.yaml").write_bytes(msgspec.json.encode(open_policy(self.signer, *self.approvers.values())))
        server = (self.path("server.pem"), self.path("server.key"))
        return CoordinatorConfig(
            network=dealer.roster.network,
            name="c1",
            roster=self.path("roster.yaml"),
            state=self.path("coordinator.db"),
            signers=SignersSettings("127.0.0.1:0", *server, self.path("ca.pem")),
            api=ApiSettings(
                "127.0.0.1:0",
                *server,
                clients=self.path("clients.yaml"),
                readers=(Reader(name="tests", token_sha256=token_sha256(TOKEN)),),
            ),
            pool=pool,
        )


def attached(dealer: Dealer, index: int, **changes: object) -> wire.Attached:
    """What the enclave of signer `index` says of itself."""
    signer = dealer.roster.signer(index)
    said = wire.Attached(
        protocol=1,
        enclave_version="test",
        network=dealer.roster.network,
        index=index,
        name=signer.name,
        fingerprint=signer.fingerprint,
        roster_digest=dealer.roster.digest(),
        policy_digest=bytes(32),
        gate_mode="none",
        boot_nonce=bytes([index]) * 32,
        prss_epoch=0,
    )
    return msgspec.structs.replace(said, **changes)


def external_id(request: wire.ClientRequest) -> str:
    """The external id of a request's body."""
    return str(msgspec.json.decode(request.body)["externalId"])


class FakeSigner:
    """Answers every order honestly, unless `answers` has something else for its type. `orders`: all that came."""

    def __init__(self, dealer: Dealer, index: int) -> None:
        self.dealer, self.index = dealer, index
        self.answers: dict[type[wire.Wire], Answers] = {}
        self.orders: list[wire.Wire] = []
        self.delivered: list[relay.Deliver] = []
        self.asked_keys: list[relay.KeysAfter] = []
        self.certificates: list[tuple[wire.SignedAcknowledgement, ...]] = []
        self.requests: dict[bytes, wire.ClientRequest] = {}
        self.kept: dict[str, wire.Answer] = {}
        self.online: tuple[int, ...] = ()
        self.epoch = 0
        self.batches: dict[bytes, wire.PresignOrder] = {}
        self.taken: set[tuple[bytes, int]] = set()
        self.closed: list[tuple[int | None, str]] = []
        self._batch_items: dict[bytes, tuple[wire.BatchItem, ...]] = {}
        self._bodies: dict[wire.PresignatureName, SigningBody] = {}
        self.sockets: dict[bool, aiohttp.ClientWebSocketResponse] = {}

    # --- connections ---

    @asynccontextmanager
    async def connected(
        self, url: str, files: Files, certificate: str = "", **changes: object
    ) -> AsyncIterator[FakeSigner]:
        """Both connections announced, and served until the block ends."""
        said = attached(self.dealer, self.index, **{"prss_epoch": self.epoch, **changes})
        tls = client_context(files.path("ca.pem"), *files.client(certificate or f"signer-{self.index}"))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http:
            readers = []
            for path, bulk in ((relay.CONTROL_PATH, False), (relay.BULK_PATH, True)):
                socket = self.sockets[bulk] = await http.ws_connect(url + path, max_msg_size=0)
                await socket.send_bytes(wire.encode(relay.Announce("test", said)))
                readers.append(asyncio.create_task(self._read(socket)))
            try:
                yield self
            finally:
                for socket in self.sockets.values():
                    await socket.close()
                await asyncio.gather(*readers)

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            message = await socket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                self.closed.append((socket.close_code, str(message.extra or "")))
                return
            for down in relay.split(message.data, relay.Down):
                await self._take(down)

    async def _take(self, down: relay.Down) -> None:
        if isinstance(down, relay.Online):
            for gone in set(self.online) - set(down.indices):
                await self.report(wire.LinkReport(gone, False, "away"))
            for come in set(down.indices) - set(self.online) - {self.index}:
                await self.report(wire.LinkReport(come, True, ""))
            self.online = down.indices
        elif isinstance(down, relay.Deliver):
            self.delivered.append(down)
        elif isinstance(down, relay.KeysAfter):
            self.asked_keys.append(down)
            await self.send(self.key_page(down))
        else:
            self.orders.append(down.body)
            for answer in self.answers.get(type(down.body), self.honest)(down.body):
                await self.report(answer)

    async def report(self, body: wire.Wire) -> None:
        with contextlib.suppress(ConnectionError):
            await self.sockets[False].send_bytes(wire.encode(relay.ReportUp(body)))

    async def send(self, message: wire.Wire | bytes, *, bulk: bool = False) -> None:
        data = message if isinstance(message, bytes) else wire.encode(message)
        await self.sockets[bulk].send_bytes(data)

    def key_page(self, question: relay.KeysAfter, size: int = 2) -> relay.KeyPage:
        """What is listed after the number that was asked for: `size` of `certificates`, numbered from 1."""
        numbered = list(enumerate(self.certificates, 1))
        page = numbered[question.after : question.after + size]
        more = question.after + size < len(numbered)
        return relay.KeyPage(question.after, tuple(relay.NumberedKey(*each) for each in page), more)

    def received(self, kind: type[wire.Wire]) -> list[wire.Wire]:
        """The orders of one type."""
        return [order for order in self.orders if isinstance(order, kind)]

    # --- what an honest signer answers ---

    def honest(self, order: wire.Wire) -> Iterable[wire.Wire]:
        match order:
            case wire.PrepareOrder(ceremony, purpose):
                nonce = wire.SignedNonce(self.index, purpose, bytes(32), bytes([self.index]) * 32, bytes(64))
                return [wire.NonceReport(ceremony, nonce)]
            case wire.SetupOrder(ceremony, epoch):
                self.epoch = epoch
                return [wire.SetupDone(ceremony, epoch)]
            case wire.ConsentOrder(ceremony):
                return [wire.Consented(ceremony)]
            case wire.KeygenOrder(ceremony, (request,)):
                own, certificate = self.acknowledgements(request)
                return [
                    wire.KeysAcknowledged(ceremony, (own,)),
                    wire.KeysActivated(ceremony, (certificate,)),
                ]
            case wire.ActivateOrder(ceremony, _, acknowledgements):
                return [wire.KeysActivated(ceremony, (acknowledgements,))]
            case wire.PresignOrder(ceremony, committee, count):
                sid = hashlib.sha256(ceremony).digest()
                self.batches[sid] = order
                return [wire.PresignDone(ceremony, sid, committee, count)]
            case wire.RecallOrder():
                return [wire.Recalled(order.ceremony, self.kept.get(external_id(order.request)))]
            case wire.SignOrder() | wire.BatchSignOrder() if self.is_answered(order):
                return [wire.Recalled(order.ceremony, self.kept[external_id(order.request)])]
            case wire.SignOrder(presignature=name) if name in unheld(1):
                return [wire.UnknownPresignature(order.ceremony, name)]
            case wire.BatchSignOrder(presignatures=names) if set(names) <= set(unheld(len(names))):
                return [wire.UnknownPresignatures(order.ceremony, names)]
            case wire.SignOrder():
                return [wire.Authorized(order.ceremony, self.authorization(order))]
            case wire.OnlineOrder():
                return [self.keep(order, self.share(order))]
            case wire.BatchSignOrder():
                return [wire.BatchAuthorized(order.ceremony, self.batch_authorization(order))]
            case wire.BatchOnlineOrder():
                return [self.keep(order, self.batch_shares(order))]
            case wire.PoolsOrder() | wire.ForgetBatchOrder():
                if isinstance(order, wire.ForgetBatchOrder):
                    self.batches.pop(order.sid, None)
                return [self.pools()]
            case _:
                return []

    def is_answered(self, order: wire.SignOrder | wire.BatchSignOrder) -> bool:
        """Whether something was answered to this request that is not what the order names (SPEC 4.10)."""
        self.requests[order.request.digest("test")] = order.request
        answer = self.kept.get(external_id(order.request))
        return answer is not None and answer.report.ceremony != order.after

    def keep(self, order: wire.OnlineOrder | wire.BatchOnlineOrder, report: wire.KeptReport) -> wire.KeptReport:
        """Keep an answer as a signer's store does; the report itself."""
        terms = order.authorizations[0].authorization.terms
        request = self.requests.get(terms.request_digest)
        if request is None:
            return report
        body = body_digest(request.path, request.body)
        kept = wire.Kept(bytes(32), body, terms.request_digest, terms.committee)
        self.kept[external_id(request)] = wire.Answer(kept, report)
        return report

    def acknowledgements(
        self, request: wire.ClientRequest
    ) -> tuple[wire.SignedAcknowledgement, tuple[wire.SignedAcknowledgement, ...]]:
        """Our own acknowledgement and the whole certificate of the key that `request` asks for."""
        key_id = "key_" + hashlib.sha256(request.body).hexdigest()[:32]
        label = msgspec.json.decode(request.body)["label"]
        certificate = self.dealer.certificate(lambda ack: msgspec.structs.replace(ack, key_id=key_id, label=label))
        return certificate[self.index - 1], tuple(certificate)

    def authorization(self, order: wire.SignOrder, **changes: object) -> wire.SignedAuthorization:
        body = msgspec.json.decode(order.request.body, type=SigningBody)
        self._bodies[order.presignature] = body
        terms = wire.AuthorizationTerms(
            "KU25",
            "secp256k1",
            self.dealer.roster.digest(),
            self.epoch,
            1,
            order.key_id,
            self.dealer.secret.public_key.format(),
            body.derivation_path,
            what_is_signed(body),
            order.request.digest("test"),
            order.committee,
            order.presignature,
        )
        terms = msgspec.structs.replace(terms, **changes)
        authorization = wire.Authorization(terms, self.index, bytes(32), bytes(32), int(time.time()) + 30)
        return wire.SignedAuthorization(authorization, bytes(64))

    def share(self, order: wire.OnlineOrder, add: int = 0) -> wire.ShareReport:
        """Our share of degree `2t`; wrong by `add`."""
        terms = order.authorizations[0].authorization.terms
        name = terms.presignature
        self.taken.add((name.sid, name.index))
        _, tweak = derive(terms.public_key, self.dealer.chain_code, terms.path)
        secret = (self.dealer.coefficients[0] + tweak) % ORDER
        s_j, point = ecdsa_share(secret, terms.h, self.index, terms.committee, (name.sid, name.index))
        s = (s_j + add) % ORDER
        return wire.ShareReport(order.ceremony, self.index, point, s.to_bytes(32, "big"))

    def batch_authorization(self, order: wire.BatchSignOrder, **changes: object) -> wire.SignedBatchAuthorization:
        body = msgspec.json.decode(order.request.body, type=HashBatch)
        items = tuple(
            wire.BatchItem(path, bytes.fromhex(h[2:]), name)
            for path, h, name in zip(body.paths(), body.hashes, order.presignatures, strict=True)
        )
        digest = wire.batch_items_digest(items)
        self._batch_items[digest] = items
        terms = wire.BatchTerms(
            "KU25",
            "secp256k1",
            self.dealer.roster.digest(),
            self.epoch,
            1,
            order.key_id,
            self.dealer.secret.public_key.format(),
            len(items),
            digest,
            order.request.digest("test"),
            order.committee,
        )
        terms = msgspec.structs.replace(terms, **changes)
        authorization = wire.BatchAuthorization(terms, self.index, bytes(32), bytes(32), int(time.time()) + 30)
        return wire.SignedBatchAuthorization(authorization, bytes(64))

    def batch_shares(self, order: wire.BatchOnlineOrder, wrong: Iterable[int] = ()) -> wire.BatchShareReport:
        """Our shares of a whole batch; those of the items numbered `wrong`, from 0, are wrong."""
        terms = order.authorizations[0].authorization.terms
        points, numbers = [], []
        for number, item in enumerate(self._batch_items[terms.items]):
            seed = (item.presignature.sid, item.presignature.index)
            self.taken.add(seed)
            _, tweak = derive(terms.public_key, self.dealer.chain_code, item.path)
            secret = (self.dealer.coefficients[0] + tweak) % ORDER
            s_j, point = ecdsa_share(secret, item.h, self.index, terms.committee, seed)
            points.append(point)
            numbers.append(((s_j + (number in wrong)) % ORDER).to_bytes(32, "big"))
        return wire.BatchShareReport(order.ceremony, self.index, tuple(points), tuple(numbers))

    def pools(self) -> wire.Pools:
        states = []
        for sid, order in self.batches.items():
            bits = (1 << order.count) - 1
            for taken_sid, index in self.taken:
                if taken_sid == sid:
                    bits &= ~(1 << (index - 1))
            remaining = bits.to_bytes((order.count + 7) // 8, "little")
            states.append(wire.BatchState(sid, order.committee, order.count, remaining))
        return wire.Pools(tuple(states))


def ecdsa_share(secret: int, h: bytes, index: int, committee: tuple[int, ...], seed: object) -> tuple[int, bytes]:
    """Member `index`'s share of the ECDSA `s`, and the nonce point, for the nonce that `seed` fixes."""

    nonce = number("nonce", seed)
    point = coincurve.PrivateKey(nonce.to_bytes(32, "big")).public_key.format()
    r = int.from_bytes(point[1:], "big") % ORDER
    s = pow(nonce, -1, ORDER) * (int.from_bytes(h, "big") + r * secret) % ORDER
    # Random shares for all but the first member, whose share makes the sum right.
    others = {j: number("share", seed, j) for j in committee[1:]}
    rest = sum(lagrange_at_zero(j, committee) * value for j, value in others.items())
    first = (s - rest) * pow(lagrange_at_zero(committee[0], committee), -1, ORDER) % ORDER
    return ({committee[0]: first} | others)[index], point


class FakeNetwork:
    """A real coordinator, fake signers of one dealer, and an HTTP client of the API."""

    http: aiohttp.ClientSession
    coordinator: Coordinator

    def __init__(self, dealer: Dealer, files: Files, config: CoordinatorConfig) -> None:
        self.dealer, self.files, self.config = dealer, files, config
        self.signers = [FakeSigner(dealer, index) for index in dealer.roster.indices]

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        directory: pathlib.Path,
        n: int = 3,
        t: int = 1,
        batch: int = 8,
        wait: WaitSettings | None = None,
        **api: object,
    ) -> AsyncIterator[FakeNetwork]:
        """The coordinator alone; signers come when a test connects them. `api` overrides its settings of the API."""
        files, dealer = Files(directory), Dealer.make(n, t)
        config = files.config(dealer, PoolSettings(low=2, high=batch, batch=batch))
        api_settings = msgspec.structs.replace(config.api, **api)
        config = msgspec.structs.replace(config, api=api_settings, wait=wait or config.wait)
        async with Coordinator(config) as coordinator:
            net = cls(dealer, files, config)
            net.use(coordinator)
            async with net.client():
                yield net

    def use(self, coordinator: Coordinator) -> None:
        """`coordinator` is the one that runs now."""
        self.coordinator = coordinator
        self.gateway = f"https://localhost:{coordinator.ports['signers']}"
        self.api = f"https://localhost:{coordinator.ports['api']}"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[None]:
        """An HTTP client of the API, for the block."""
        tls = client_context(self.files.path("ca.pem"))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), headers=headers) as self.http:
            yield

    @asynccontextmanager
    async def all_connected(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for signer in self.signers:
                await stack.enter_async_context(signer.connected(self.gateway, self.files))
            await self.ready()
            yield

    async def ready(self) -> None:
        """Until the API says that signatures can be made."""

        async def look() -> None:
            while True:
                async with self.http.get(self.api + "/healthz") as answer:
                    if (await answer.json())["status"] == "ready":
                        return
                await asyncio.sleep(0.02)

        await asyncio.wait_for(look(), 15)

    def sign(self, path: str, body: bytes) -> str:
        """The JWS of the one client over `body`."""
        return self.files.signer.request(path, body).jws

    async def post(self, path: str, body: object, wait_s: float = 20, jws: str = "") -> tuple[int, dict[str, object]]:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        headers = {"Keymoot-Signature": jws or self.sign(path, data), "Content-Type": "application/json"}
        async with self.http.post(
            f"{self.api}{path}", params={"wait": f"{wait_s:g}"}, data=data, headers=headers
        ) as answer:
            return answer.status, await answer.json(content_type=None)

    async def get(self, path: str) -> tuple[int, dict[str, object]]:
        async with self.http.get(self.api + path) as answer:
            return answer.status, await answer.json(content_type=None)

"""The client against an API that may lie: nothing unverified is returned. Real TLS."""

from __future__ import annotations

import asyncio
import hashlib
import pathlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import coincurve
import msgspec
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import utils

from appliance.api import models
from appliance.api.approvals import ApprovalsWanted
from appliance.api.batches import BatchResult, BatchState, BatchSummary, SignatureBatch, SignatureBatchList
from appliance.api.client import (
    ApiError,
    AsyncClient,
    AwaitingApprovals,
    CertificateRefused,
    Client,
    Failed,
    NotFound,
    NotNow,
    Rejected,
    SignatureRefused,
)  # fmt: skip
from appliance.api.derivation import SECP256K1_ORDER, derive
from appliance.api.jws import ClientKey, generate_client_key
from appliance.api.signatures import what_is_signed
from policies.errors import CallerError, Unavailable
from policies.requests import (
    BitcoinBip143Preimage,
    Eip712TypedData,
    EthereumTransaction,
    Hash,
    HashBatch,
    Message,
    MessageHash,
    SigningBody,
)
from policies.signed_requests import split_jws
from tests.fakes.certificates import KEY_ID, Dealer
from tests.fakes.servers import serving
from tests.fakes.tls import TlsFiles
from tests.fakes.typed_data import ETHER_MAIL, ETHER_MAIL_HASH, ether_mail, parsed

replace = msgspec.structs.replace
HASH = Hash(hash="0x" + "11" * 32, external_id="one", derivation_path=(0, 5))
DEALER = Dealer.make()
OTHER = Dealer.make(seed=2)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return TlsFiles.make(tmp_path_factory.mktemp("tls"))


class FakeApi:
    """Answers as an honest coordinator would; a test changes `lie_key` or `lie_signature`."""

    def __init__(self) -> None:
        self.lie_key: Callable[[models.Key], models.Key] = lambda key: key
        self.lie_signature: Callable[[models.Signature], models.Signature] = lambda signature: signature
        self.polls_before_done = 2
        self.full_pages = 0
        self.seen: list[tuple[str, str, bytes, str]] = []
        self.page: Callable[[str], models.SignatureList] = lambda cursor: models.SignatureList(())
        self._body: SigningBody = HASH
        lacks = models.Reason("policy/approvals", "2 approvals are needed, 0 given", "signer-2")
        self.batch = SignatureBatch("batch_1", KEY_ID, BatchState.AWAITING, 2, "two", "now", reason=lacks)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/keys", self._create)
        app.router.add_get("/v1/keys", self._list)
        app.router.add_get("/v1/keys/{id}", self._key)
        app.router.add_post("/v1/keys/{id}/signatures", self._sign)
        app.router.add_get("/v1/keys/{id}/signatures", self._signatures)
        app.router.add_get("/v1/keys/{id}/signatures/{sid}", self._signature)
        app.router.add_post("/v1/keys/{id}/signatures/{sid}/approvals", self._approve)
        app.router.add_get("/v1/keys/{id}/signature-batches", self._batches)
        for path in ("", "/{bid}/approvals"):
            app.router.add_post("/v1/keys/{id}/signature-batches" + path, self._batch)
        app.router.add_get("/v1/keys/{id}/signature-batches/{bid}/approvals", self._batch_wanted)
        return app

    async def _create(self, request: web.Request) -> web.Response:
        await self._see(request)
        pending = replace(
            DEALER.key_answer(),
            status=models.KeyState.PENDING, id=None, public_key=None, chain_code=None, certificate=None,
        )  # fmt: skip
        return answer(pending, 202)

    async def _key(self, request: web.Request) -> web.Response:
        if request.match_info["id"] not in (KEY_ID, "req_1"):
            problem = models.Problem("about:blank", "Not found", 404, "unknown-key", "there is no such key")
            return answer(problem, 404)
        return answer(self.lie_key(DEALER.key_answer()))

    async def _list(self, request: web.Request) -> web.Response:
        key = self.lie_key(DEALER.key_answer())
        if self.full_pages:
            # As a coordinator's: the page after the last full one is empty.
            page = int(request.query.get("cursor", "0"))
            full = page < self.full_pages
            return answer(models.KeyList((key,) if full else (), str(page + 1) if full else None))
        if request.query.get("cursor") == "second":
            return answer(models.KeyList(items=(replace(key, external_id="second"),)))
        return answer(models.KeyList(items=(key,), next_cursor="second"))

    async def _sign(self, request: web.Request) -> web.Response:
        self._body = msgspec.json.decode(await self._see(request), type=SigningBody)
        return answer(signature_of(self._body, models.SignatureState.PENDING), 202)

    async def _signature(self, request: web.Request) -> web.Response:
        self.polls_before_done -= 1
        done = self.polls_before_done <= 0
        state = models.SignatureState.SIGNED if done else models.SignatureState.EXECUTING
        signature = signature_of(self._body, state)
        return answer(self.lie_signature(signature) if done else signature)

    async def _signatures(self, request: web.Request) -> web.Response:
        return answer(self.page(request.query.get("cursor", "")))

    async def _approve(self, request: web.Request) -> web.Response:
        await self._see(request)
        return answer(self.lie_signature(signature_of(self._body, models.SignatureState.SIGNED)))

    async def _batch(self, request: web.Request) -> web.Response:
        await self._see(request)
        return answer(self.batch)

    async def _batch_wanted(self, request: web.Request) -> web.Response:
        shown = (request.match_info["bid"], KEY_ID, BatchState.AWAITING, "payments", "", "", "", ())
        return answer(ApprovalsWanted(*shown))

    async def _batches(self, request: web.Request) -> web.Response:
        """Without an end."""
        first = int(request.query.get("cursor", "0"))
        items = tuple(
            BatchSummary(f"batch_{number}", KEY_ID, BatchState.SIGNED, 3, str(number), "now")
            for number in range(first, first + 2)
        )
        return answer(SignatureBatchList(items, str(first + 2)))

    async def _see(self, request: web.Request) -> bytes:
        body = await request.read()
        self.seen.append((request.method, request.path, body, request.headers["Keymoot-Signature"]))
        return body


def answer(struct: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(struct), content_type="application/json")


def signature_of(body: SigningBody, state: models.SignatureState) -> models.Signature:
    """What an honest network answers for `body` under the dealt key."""
    return models.Signature(
        id="sig_1", key_id=KEY_ID, status=state, kind=type(body).__name__, external_id=body.external_id,
        derivation_path=body.derivation_path, created_at="2026-01-01T00:00:00Z",
        signature=value_of(body) if state is models.SignatureState.SIGNED else None,
    )  # fmt: skip


def value_of(body: SigningBody) -> models.SignatureValue:
    """The signature by the dealt child key."""
    public, tweak = derive(DEALER.secret.public_key.format(), DEALER.chain_code, body.derivation_path)
    child = DEALER.secret.add(tweak.to_bytes(32, "big")) if tweak else DEALER.secret
    digest = what_is_signed(body)
    raw = child.sign_recoverable(digest, hasher=None)
    r, s = raw[:32], raw[32:64]
    return models.SignatureValue(
        r="0x" + r.hex(), s="0x" + s.hex(), recid=raw[64], rsv="0x" + raw.hex(), hash="0x" + digest.hex(),
        der="0x" + utils.encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big")).hex(),
        public_key="0x" + public.hex(),
    )  # fmt: skip


@asynccontextmanager
async def connected(tls: TlsFiles, key: ClientKey | None = None) -> AsyncIterator[tuple[FakeApi, AsyncClient]]:
    api = FakeApi()
    async with serving(api.app(), tls) as port:
        client = AsyncClient(f"https://127.0.0.1:{port}", DEALER.roster, key or generate_client_key("alice"), tls.ca)
        async with client:
            yield api, client


async def test_create_get_list(tls: TlsFiles) -> None:
    async with connected(tls) as (api, client):
        key = await client.create_key("treasury", "first")
        assert (key.id, key.label, key.public_key()) == (KEY_ID, "treasury", DEALER.secret.public_key.format())
        assert key.scheme_statement == "3 signers, tolerate 1: all 3 online to sign, 2 shares reconstruct"
        ((method, path, body, jws),) = api.seen
        assert (method, path, jws.count(".")) == ("POST", "/v1/keys", 2)
        assert msgspec.json.decode(body) == {
            "scheme": "ECDSA", "curve": "secp256k1", "signers": 3, "tolerate": 1, "label": "treasury",
            "externalId": "first",
        }  # fmt: skip
        assert (await client.get_key(KEY_ID)).certified == key.certified
        listed = await client.list_keys()
        assert [item.answer.external_id for item in listed] == ["first", "second"]
        assert [item.certified is not None for item in listed] == [True, True]


@pytest.mark.parametrize(
    "body",
    [
        HASH,
        EthereumTransaction(transaction="0x02c0", external_id="two"),
        Message(message="0x61", hash=MessageHash.KECCAK_256, external_id="four"),
        Eip712TypedData(typed_data=parsed(ETHER_MAIL), external_id="five"),
        BitcoinBip143Preimage(preimage="0x" + "ab" * 182, external_id="three", derivation_path=(1,)),
    ],
)
async def test_sign_returns_what_it_verified(tls: TlsFiles, body: SigningBody) -> None:
    async with connected(tls) as (_, client):
        signature = await client.sign(KEY_ID, body)
        assert signature.signature == value_of(body)
        assert await client.get_signature(KEY_ID, "sig_1", body) == signature
        assert await client.get_signature(KEY_ID, "sig_1") == signature


def test_hashes_are_computed_here() -> None:
    preimage = bytes(range(100))
    body = BitcoinBip143Preimage(preimage="0x" + preimage.hex(), external_id="x")
    assert what_is_signed(body) == hashlib.sha256(hashlib.sha256(preimage).digest()).digest()
    keccak_of_nothing = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert what_is_signed(EthereumTransaction("0x", "x")).hex() == keccak_of_nothing
    assert what_is_signed(Eip712TypedData(parsed(ETHER_MAIL), "x")).hex() == ETHER_MAIL_HASH
    with pytest.raises(CallerError, match=r"Mail\.contents is not a string"):
        what_is_signed(Eip712TypedData(parsed(ether_mail("message", "contents", value=1)), "x"))


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"public_key": OTHER.key_answer().public_key}, "publicKey"),
        ({"chain_code": "0x" + bytes(32).hex()}, "chainCode"),
        ({"certificate": None}, "no certificate"),
        ({"certificate": OTHER.key_answer().certificate, "public_key": OTHER.key_answer().public_key}, "not signed"),
    ],
)
async def test_a_lying_coordinator_shows_no_key(tls: TlsFiles, lie: dict[str, Any], message: str) -> None:
    async with connected(tls) as (api, client):
        api.lie_key = lambda key: replace(key, **lie)
        for ask in (
            client.create_key("treasury", "first"),
            client.get_key(KEY_ID),
            client.list_keys(),
            client.sign(KEY_ID, HASH),
        ):
            with pytest.raises(CertificateRefused, match=message):
                await ask
        assert all(path == "/v1/keys" for _, path, _, _ in api.seen)  # nothing was asked to be signed


async def test_another_key_than_asked_for(tls: TlsFiles) -> None:
    async with connected(tls) as (api, client):
        with pytest.raises(CertificateRefused, match="label other"):
            await client.create_key("other", "first")
        api.lie_key = lambda key: replace(key, status=models.KeyState.PENDING)
        with pytest.raises(CertificateRefused, match="shows the public key of a key that is Pending"):
            await client.list_keys()


def high_s(value: models.SignatureValue) -> models.SignatureValue:
    r, s = bytes.fromhex(value.r[2:]), SECP256K1_ORDER - int(value.s, 16)
    raw, recid = r + s.to_bytes(32, "big"), value.recid ^ 1
    der = utils.encode_dss_signature(int.from_bytes(r, "big"), s).hex()
    rsv = f"0x{raw.hex()}{recid:02x}"
    return replace(value, s=f"0x{s:064x}", recid=recid, rsv=rsv, der="0x" + der)


def wrong_recid(value: models.SignatureValue) -> models.SignatureValue:
    return replace(value, recid=value.recid ^ 1, rsv=value.rsv[:-2] + f"{value.recid ^ 1:02x}")


def forged(value: models.SignatureValue) -> models.SignatureValue:
    """A good signature of somebody else that claims the certified key."""
    digest = bytes.fromhex(value.hash[2:])
    raw = coincurve.PrivateKey(b"\x05" * 32).sign_recoverable(digest, hasher=None)
    der = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:64], "big")).hex()
    return replace(
        value, r="0x" + raw[:32].hex(), s="0x" + raw[32:64].hex(), recid=raw[64], rsv="0x" + raw.hex(), der="0x" + der
    )


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lambda v: value_of(replace(HASH, hash="0x" + "22" * 32)), "not over what was asked for"),
        (lambda v: value_of(replace(HASH, derivation_path=(0, 6))), "not under the certified key"),
        (high_s, "not low"),
        (wrong_recid, "recid"),
        (lambda v: replace(v, rsv=v.rsv[:-2] + "1b"), "rsv does not hold"),
        (lambda v: replace(v, der=v.der[:-2] + "00"), "der does not hold"),
        (lambda v: replace(v, r="0x" + "0" * 64), "rsv does not hold"),
        (lambda v: replace(v, s=v.s.upper()), "lowercase hex"),
        (forged, "does not verify"),
        (lambda v: None, "holds no signature"),
    ],
)
async def test_a_lying_coordinator_hands_out_no_signature(tls: TlsFiles, lie: Any, message: str) -> None:
    async with connected(tls) as (api, client):
        api.lie_signature = lambda signature: replace(signature, signature=lie(signature.signature))
        with pytest.raises(SignatureRefused, match=message):
            await client.sign(KEY_ID, HASH)


async def test_a_refusal_names_signer_and_reason(tls: TlsFiles) -> None:
    async with connected(tls) as (api, client):
        reason = models.Reason(code="gate", message="not today", signer="signer-2")
        api.lie_signature = lambda s: replace(s, status=models.SignatureState.REJECTED, signature=None, reason=reason)
        with pytest.raises(Rejected, match="rejected by signer signer-2: gate: not today") as caught:
            await client.sign(KEY_ID, HASH)
        assert (caught.value.signer, caught.value.code, caught.value.reason) == ("signer-2", "gate", "not today")
        api.lie_signature = lambda s: replace(s, status=models.SignatureState.FAILED, signature=None)
        with pytest.raises(Failed, match="no reason was given"):
            await client.sign(KEY_ID, HASH)


async def test_errors_of_the_api_are_typed(tls: TlsFiles) -> None:
    async with connected(tls) as (_, client):
        with pytest.raises(ApiError) as caught:
            await client.get_key("key_" + "00" * 16)
        assert (caught.value.status, caught.value.code) == (404, "unknown-key")


async def test_a_result_that_never_comes(tls: TlsFiles) -> None:
    async with connected(tls) as (api, client):
        api.polls_before_done = 10**9
        with pytest.raises(Unavailable, match=r"no result within 0\.1 s"):
            await client.sign(KEY_ID, HASH, timeout_s=0.1)


async def test_a_coordinator_of_another_ca(tls: TlsFiles, tmp_path: pathlib.Path) -> None:
    foreign, api = TlsFiles.make(tmp_path), FakeApi()
    async with serving(api.app(), tls) as port:
        client = AsyncClient(f"https://127.0.0.1:{port}", DEALER.roster, generate_client_key("a"), foreign.ca)
        async with client:
            with pytest.raises(Unavailable, match="pinned CA"):
                await client.create_key("treasury", "first")
    assert api.seen == []
    with pytest.raises(CallerError, match="https://"):
        AsyncClient("http://127.0.0.1:1", DEALER.roster, None, tls.ca)


async def test_a_client_without_key_reads_but_asks_nothing(tls: TlsFiles) -> None:
    api = FakeApi()
    async with (
        serving(api.app(), tls) as port,
        AsyncClient(f"https://127.0.0.1:{port}", DEALER.roster, None, tls.ca) as client,
    ):
        assert (await client.get_key(KEY_ID)).id == KEY_ID
        with pytest.raises(CallerError, match="no key to sign requests with"):
            await client.sign(KEY_ID, HASH)


async def test_the_synchronous_client_does_the_same(tls: TlsFiles) -> None:
    def use(port: int) -> models.Signature:
        with Client(f"https://127.0.0.1:{port}", DEALER.roster, generate_client_key("alice"), tls.ca) as client:
            assert client.create_key("treasury", "first").id == KEY_ID
            assert len(client.list_keys()) == 2
            return client.sign(client.get_key(KEY_ID).id, HASH)

    async with serving(FakeApi().app(), tls) as port:
        signature = await asyncio.to_thread(use, port)
    assert signature.signature == value_of(HASH)


@asynccontextmanager
async def two_apis(tls: TlsFiles) -> AsyncIterator[tuple[FakeApi, FakeApi, AsyncClient, asyncio.Event]]:
    """Two APIs and a client of both; the first dies when the event is set and it is asked something."""
    first, second, dead = FakeApi(), FakeApi(), asyncio.Event()

    @web.middleware
    async def dying(request: web.Request, handler: Any) -> web.StreamResponse:
        if dead.is_set():
            assert request.transport is not None
            request.transport.abort()
        return await handler(request)

    app = first.app()
    app.middlewares.append(dying)
    async with serving(app, tls) as one, serving(second.app(), tls) as two:
        client = AsyncClient(
            f"https://127.0.0.1:{one}", DEALER.roster, generate_client_key("alice"), tls.ca,
            others=[(f"https://127.0.0.1:{two}", tls.ca)],
        )  # fmt: skip
        async with client:
            yield first, second, client, dead


async def test_where_a_coordinator_does_not_answer_the_next_is_asked_for_the_same(tls: TlsFiles) -> None:
    async with two_apis(tls) as (first, second, client, dead):
        await client.sign(KEY_ID, HASH)
        assert (len(first.seen), len(second.seen)) == (1, 0)
        dead.set()
        first.polls_before_done = second.polls_before_done = 2
        signed = await client.sign(KEY_ID, HASH)
        assert signed.status == "Signed"
        (method, path, body, jws) = second.seen[0]
        assert (method, path, body) == first.seen[0][:3]
        assert jws != first.seen[0][3]
        # It stays with the one that answers.
        seen = len(first.seen)
        await client.get_key(KEY_ID)
        assert len(first.seen) == seen


async def test_many_at_once_leave_a_dead_coordinator_together(tls: TlsFiles) -> None:
    async with two_apis(tls) as (_, second, client, dead):
        dead.set()
        second.polls_before_done = 0
        bodies = [replace(HASH, external_id=f"many-{number}") for number in range(8)]
        await asyncio.gather(*(client.create_key("treasury", body.external_id) for body in bodies))
        assert len(second.seen) == len(bodies)


async def test_where_none_answers_the_last_one_is_named(tls: TlsFiles) -> None:
    client = AsyncClient("https://127.0.0.1:1", DEALER.roster, None, tls.ca, others=[("https://127.0.0.1:2", tls.ca)])
    async with client:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:2"):
            await client.get_key(KEY_ID)


async def test_a_request_is_looked_for_at_the_coordinator_that_took_it(tls: TlsFiles) -> None:
    @web.middleware
    async def took_none(request: web.Request, handler: object) -> web.StreamResponse:
        return answer(models.Problem("about:blank", "Not found", 404, "unknown-request", "no such request"), 404)

    first, second = FakeApi(), FakeApi()
    app = first.app()
    app.middlewares.append(took_none)
    gone = ("https://127.0.0.1:1", tls.ca)
    async with serving(app, tls) as one, serving(second.app(), tls) as two:
        here, there = ((f"https://127.0.0.1:{port}", tls.ca) for port in (one, two))
        alice, shown = generate_client_key("alice"), msgspec.json.encode(HASH)
        async with AsyncClient(here[0], DEALER.roster, alice, tls.ca, others=[there]) as client:
            assert (await client.approvals_wanted(KEY_ID, "batch_1")).id == "batch_1"
        async with AsyncClient(here[0], DEALER.roster, alice, tls.ca, others=[there]) as client:
            assert (await client.approve(KEY_ID, "sig_1", shown)).status == "Signed"
            assert len(second.seen) == 1
        # Nowhere; and nobody knows where one of them says nothing.
        async with AsyncClient(here[0], DEALER.roster, alice, tls.ca, others=[here]) as client:
            with pytest.raises(NotFound):
                await client.get_signature(KEY_ID, "sig_1")
        for apis in ((here, gone), (gone, here)):
            async with AsyncClient(apis[0][0], DEALER.roster, alice, tls.ca, others=[apis[1]]) as client:
                with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1:"):
                    await client.get_signature(KEY_ID, "sig_1")


async def test_where_a_coordinator_cannot_the_next_is_asked_for_the_same(tls: TlsFiles) -> None:
    refused: list[str] = []

    @web.middleware
    async def full(request: web.Request, handler: object) -> web.StreamResponse:
        refused.append(request.path)
        return answer(models.Problem("about:blank", "Unavailable", 503, "unavailable", "the disk is full"), 503)

    first, second = FakeApi(), FakeApi()
    app = first.app()
    app.middlewares.append(full)
    alice = generate_client_key("alice")
    async with serving(app, tls) as one, serving(second.app(), tls) as two:
        here, there = ((f"https://127.0.0.1:{port}", tls.ca) for port in (one, two))
        async with AsyncClient(here[0], DEALER.roster, alice, tls.ca, others=[there]) as client:
            assert (await client.sign(KEY_ID, HASH)).status == "Signed"
            assert len(refused) == 1
        async with AsyncClient(here[0], DEALER.roster, alice, tls.ca, others=[there]) as client:
            assert (await client.get_signature(KEY_ID, "sig_1")).status == "Signed"
            assert len(refused) == 2
        async with AsyncClient(here[0], DEALER.roster, alice, tls.ca, others=[here]) as client:
            with pytest.raises(NotNow, match="the disk is full"):
                await client.sign(KEY_ID, HASH)
        assert (len(refused), first.seen) == (4, [])


async def test_what_awaits_approvals_is_no_refusal(tls: TlsFiles) -> None:
    async with connected(tls) as (api, client):
        reason = models.Reason(code="policy/approvals", message="2 approvals are needed, 0 given", signer="signer-2")
        api.lie_signature = lambda s: replace(s, status=models.SignatureState.AWAITING, signature=None, reason=reason)
        with pytest.raises(AwaitingApprovals, match="sig_1 waits for approvals: 2 approvals are needed") as caught:
            await client.sign(KEY_ID, HASH, lifetime_s=3600)
        assert caught.value.id == "sig_1"
        (_, _, _, jws) = api.seen[0]
        header = split_jws(jws).header
        assert header.exp - header.iat == 3600


async def test_a_page_of_which_nothing_can_be_shown_is_not_the_last(
    tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.api.paging.MAX_PAGES", 10)
    async with connected(tls) as (api, client):
        pages = {"": ((), "1"), "1": (("first",), "2"), "2": ((), "3"), "3": (("second",), None)}
        signed = signature_of(HASH, models.SignatureState.SIGNED)

        def page(cursor: str) -> models.SignatureList:
            names, following = pages[cursor]
            return models.SignatureList(tuple(replace(signed, external_id=name) for name in names), following)

        api.page = page
        assert [one.external_id for one in await client.list_signatures(KEY_ID)] == ["first", "second"]
        assert [one.external_id for one in await client.list_signatures(KEY_ID, limit=1)] == ["first"]
        api.page = lambda cursor: models.SignatureList((), "1")
        with pytest.raises(ApiError, match="endless-list: a list has more than 10 pages"):
            await client.list_signatures(KEY_ID, limit=2)


async def test_as_many_full_pages_of_keys_as_are_allowed_are_all_and_more_need_a_limit(
    tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exactly 100,000 keys, and with more, nobody could list any."""
    monkeypatch.setattr("appliance.api.paging.MAX_PAGES", 3)
    async with connected(tls) as (api, client):
        for api.full_pages in (2, 3):
            assert len(await client.list_keys()) == api.full_pages
        api.full_pages = 9
        with pytest.raises(ApiError, match="more than 3 pages: say how many are wanted, by a limit"):
            await client.list_keys()
        assert len(await client.list_keys(limit=8)) == 8
        assert len(await client.list_keys(limit=20)) == 9


async def test_batches_are_listed_as_many_as_are_asked_for(tls: TlsFiles) -> None:
    async with connected(tls) as (_, client):
        listed = await client.list_batches(KEY_ID, limit=5)
        assert [one.id for one in listed] == [f"batch_{number}" for number in range(5)]


async def test_an_approval_is_of_the_bytes_that_were_looked_at(tls: TlsFiles) -> None:
    async with connected(tls, alice := generate_client_key("alice")) as (api, client):
        shown = msgspec.json.encode(HASH)
        assert (await client.approve(KEY_ID, "sig_1", shown)).status == "Signed"
        ((_, path, sent, _),) = api.seen
        assert path == f"/v1/keys/{KEY_ID}/signatures/sig_1/approvals"
        approval = split_jws(msgspec.json.decode(sent)["approval"])
        alice.private_key.public_key().verify(approval.signature, approval.signing_input(shown))  # type: ignore[call-arg,union-attr]
        assert (approval.header.method, approval.header.path) == ("APPROVE", f"/v1/keys/{KEY_ID}/signatures")
        assert approval.header.exp - approval.header.iat == 24 * 3600


async def test_a_signature_that_an_approval_brought_is_verified(tls: TlsFiles) -> None:
    async with connected(tls) as (api, client):
        other = value_of(replace(HASH, hash="0x" + "22" * 32))
        api.lie_signature = lambda signature: replace(signature, signature=other)
        with pytest.raises(SignatureRefused, match="not over what was asked for"):
            await client.approve(KEY_ID, "sig_1", msgspec.json.encode(HASH))
        with pytest.raises(CallerError, match="cannot be read"):
            await client.approve(KEY_ID, "sig_1", b"{}")


BATCH = HashBatch(("0x" + "11" * 32, "0x" + "22" * 32), "two")


async def test_a_batch_that_awaits_approvals_is_no_refusal(tls: TlsFiles) -> None:
    async with connected(tls) as (api, client):
        with pytest.raises(AwaitingApprovals, match="batch_1 waits for approvals: 2 approvals are needed") as caught:
            await client.sign_batch(KEY_ID, BATCH, lifetime_s=3600)
        assert caught.value.remedy == f"keymoot approve {KEY_ID} batch_1"
        header = split_jws(api.seen[0][3]).header
        assert header.exp - header.iat == 3600


async def test_an_approval_of_a_batch_is_of_its_bytes_and_path_and_what_it_brings_is_verified(tls: TlsFiles) -> None:
    async with connected(tls, alice := generate_client_key("alice")) as (api, client):
        assert (await client.approvals_wanted(KEY_ID, "batch_1")).id == "batch_1"
        shown = msgspec.json.encode(BATCH)
        assert (await client.approve(KEY_ID, "batch_1", shown)).status == "AwaitingApprovals"
        path, sent = api.seen[0][1:3]
        assert path == f"/v1/keys/{KEY_ID}/signature-batches/batch_1/approvals"
        approval = split_jws(msgspec.json.decode(sent)["approval"])
        alice.private_key.public_key().verify(approval.signature, approval.signing_input(shown))  # type: ignore[call-arg,union-attr]
        assert (approval.header.method, approval.header.path) == ("APPROVE", f"/v1/keys/{KEY_ID}/signature-batches")
        for request_id, body in (("sig_1", shown), ("batch_1", msgspec.json.encode(HASH)), ("batch_1", b"{}")):
            with pytest.raises(CallerError, match="cannot be read"):
                await client.approve(KEY_ID, request_id, body)
        assert len(api.seen) == 1
        values = [BatchResult(value_of(Hash(h, "one"))) for h in reversed(BATCH.hashes)]
        api.batch = replace(api.batch, status=BatchState.SIGNED, results=tuple(values))
        with pytest.raises(SignatureRefused):
            await client.approve(KEY_ID, "batch_1", shown)
        api.batch = replace(api.batch, results=tuple(reversed(values)))
        assert (await client.approve(KEY_ID, "batch_1", shown)).status == "Signed"


def test_a_loop_that_an_interrupt_left_to_be_stopped_is_closed_all_the_same(tls: TlsFiles) -> None:
    with Client("https://127.0.0.1:1", DEALER.roster, None, tls.ca) as client:
        loop = client._runner.get_loop()
        # As an interrupt does in the moment a request ends.
        loop.call_soon(loop.stop)
    assert loop.is_closed()

"""Who is let in to the API: readers by token or certificate, clients by their signature; and what strangers can do."""

from __future__ import annotations

import asyncio
import pathlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest

from appliance import pki
from appliance.api.client import AsyncClient
from appliance.api.credentials import Credential, new_token, token_sha256
from appliance.coordinator.config import LimitSettings, Reader, load_config
from appliance.coordinator.openapi import OPERATIONS
from appliance.tls import client_context
from enclave import wire
from policies.errors import CallerError
from policies.requests import KEYS_PATH
from tests.fakes.clients import TestClient, open_policy
from tests.fakes.coordinator_side import TOKEN, FakeNetwork

KEY = {
    "scheme": "ECDSA", "curve": "secp256k1", "signers": 3, "tolerate": 1, "label": "treasury", "externalId": "key-1",
}  # fmt: skip
BODY = msgspec.json.encode(KEY)
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path) as made:
        yield made


@asynccontextmanager
async def stranger(net: FakeNetwork, certificate: str = "", **headers: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A session without the tests' token."""
    files = net.files.client(certificate) if certificate else ()
    tls = client_context(net.files.path("ca.pem"), *files)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), headers=headers) as http:
        yield http


async def read(net: FakeNetwork, path: str, certificate: str = "", **headers: str) -> tuple[int, dict[str, object]]:
    async with stranger(net, certificate, **headers) as http, http.get(net.api + path) as answer:
        return answer.status, await answer.json(content_type=None)


async def post(net: FakeNetwork, request: wire.ClientRequest, **headers: str) -> tuple[int, dict[str, object]]:
    sent = {**JSON, "Keymoot-Signature": request.jws, **headers}
    async with (
        stranger(net) as http,
        http.post(net.api + request.path + "?wait=0", data=request.body, headers=sent) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


# --- reading ---


async def test_every_read_but_the_open_ones_needs_a_credential(net: FakeNetwork) -> None:
    for operation in OPERATIONS:
        if operation.method != "get":
            continue
        path = operation.path.replace("{key}", "key_" + "0" * 32)
        async with stranger(net) as http, http.get(net.api + path) as answer:
            shown = await answer.json(content_type=None)
            if operation.open:
                assert answer.status in (200, 503), path
            else:
                assert (answer.status, shown["code"]) == (401, "credential-missing"), path
                assert answer.headers["WWW-Authenticate"] == 'Bearer realm="keymoot"'


async def test_what_is_not_there_needs_a_credential_too(net: FakeNetwork) -> None:
    for path in ("/", "/v1", "/v1/keys/", "/v2/keys", "/healthz/", "/metrics", "/v1/../healthz/x"):
        assert (await read(net, path))[0] == 401, path
    assert (await net.get("/v2/keys"))[0] == 404


async def test_strangers_are_told_no_details(net: FakeNetwork) -> None:
    assert await read(net, "/healthz") == (200, {"status": "degraded"})
    status, shown = await read(net, "/readyz")
    assert (status, shown["code"]) == (503, "not-ready")
    assert "signer" not in str(shown["detail"])
    async with net.all_connected():
        assert await read(net, "/healthz") == (200, {"status": "ready"})
        assert await read(net, "/readyz") == (200, {})
        assert await net.get("/readyz") == (200, {"committees": [[1, 2, 3]]})


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer " + "x" * 5000,
     f"Bearer {token_sha256(TOKEN)}", "Bearer é"],
)  # fmt: skip
async def test_a_wrong_token_is_refused_on_open_paths_too(net: FakeNetwork, header: str) -> None:
    for path in ("/v1/keys", "/healthz"):
        status, shown = await read(net, path, Authorization=header)
        assert (status, shown["code"]) == (401, "credential-unknown")
        assert TOKEN not in str(shown)


async def test_a_token_lets_read(net: FakeNetwork) -> None:
    for header in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN} "):
        assert await read(net, "/v1/keys", Authorization=header) == (200, {"items": []})


async def test_a_token_lets_ask_for_nothing(net: FakeNetwork) -> None:
    async with net.http.post(net.api + KEYS_PATH, data=BODY, headers=JSON) as answer:
        assert answer.status == 401
    assert await net.get(KEYS_PATH) == (200, {"items": []})


async def test_a_listed_certificate_lets_read_and_no_other(tmp_path: pathlib.Path) -> None:
    readers = (Reader(name="audit", certificate="auditor"),)
    async with FakeNetwork.start(tmp_path, client_ca=tmp_path / "ca.pem", readers=readers) as net:
        assert await read(net, "/v1/keys", "auditor") == (200, {"items": []})
        assert (await read(net, "/v1/keys", "signer-1"))[1]["code"] == "credential-missing"
        assert (await read(net, "/v1/keys"))[1]["code"] == "credential-missing"
        assert (await read(net, "/healthz"))[0] == 200
        ca, credential = tmp_path / "ca.pem", Credential(None, *net.files.client("auditor"))
        async with AsyncClient(net.api, net.dealer.roster, None, ca, credential=credential) as client:
            assert await client.list_keys() == ()
        other = pki.issue(pki.make_ca("other"), "auditor", pki.Purpose.CLIENT)
        other.write(tmp_path / "other.pem", tmp_path / "other.key")
        tls = client_context(tmp_path / "ca.pem", tmp_path / "other.pem", tmp_path / "other.key")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http:
            with pytest.raises(aiohttp.ClientError):
                await http.get(net.api + "/healthz")


async def test_without_a_client_ca_a_certificate_says_nothing(net: FakeNetwork) -> None:
    assert (await read(net, "/v1/keys", "tests"))[0] == 401


# --- asking ---


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"kid": "stranger"}, "request/client"),
        ({"network": "other"}, "request/network"),
        ({"path": KEYS_PATH + "/x"}, "request/path"),
        ({"method": "PUT"}, "request/path"),
        ({"iat": -400, "exp": -100}, "request/expired"),
        ({"iat": 600, "exp": 700}, "request/time"),
        ({"exp": 7200}, "request/lifetime"),
        ({"alg": "ES256"}, "request/header"),
        ({"alg": "none"}, "request/header"),
        ({"jwk": {}}, "request/header"),
        ({"jti": None}, "request/header"),
    ],
)
async def test_a_header_that_an_enclave_would_refuse_takes_no_place(
    net: FakeNetwork, header: dict[str, object], code: str
) -> None:
    """Times are seconds from now."""
    now_s = int(time.time())
    header = {name: now_s + value if isinstance(value, int) else value for name, value in header.items()}
    status, shown = await post(net, net.files.signer.request(KEYS_PATH, BODY, **header))
    assert (status, shown["code"]) == (401, code)
    assert await net.get(KEYS_PATH) == (200, {"items": []})


async def test_another_key_or_body_takes_no_external_id(net: FakeNetwork) -> None:
    forger = TestClient(time.time, network="test")
    good = net.files.signer.request(KEYS_PATH, BODY)
    for request in (forger.request(KEYS_PATH, BODY), msgspec.structs.replace(good, body=BODY + b" ")):
        status, shown = await post(net, request)
        assert (status, shown["code"]) == (401, "request/signature")
    assert await net.get(KEYS_PATH) == (200, {"items": []})
    status, shown = await post(net, good)
    assert (status, shown["status"], shown["externalId"]) == (202, "Pending", "key-1")


async def test_a_client_is_known_again_after_a_reload_and_not_before(net: FakeNetwork) -> None:
    config = net.files.path("coordinator.yaml")
    late, token = TestClient(time.time, "late", "test"), new_token()

    def write(*names: TestClient, readers: str) -> None:
        net.files.path("clients.yaml").write_bytes(msgspec.json.encode(open_policy(*names)))
        config.write_text(f"""
network: test
name: c1
roster: roster.yaml
state: coordinator.db
signers: {{listen: "127.0.0.1:0", certificate: server.pem, key: server.key, client_ca: ca.pem}}
api:
  listen: "127.0.0.1:0"
  certificate: server.pem
  key: server.key
  clients: clients.yaml
  readers: {readers}
""")

    request = late.request(KEYS_PATH, BODY)
    assert (await post(net, request))[1]["code"] == "request/client"
    write(late, readers=f"[{{name: new, token_sha256: {token_sha256(token)}}}]")
    net.coordinator.reload(config)
    assert (await post(net, request))[0] == 202
    assert (await post(net, net.files.signer.request(KEYS_PATH, BODY)))[1]["code"] == "request/client"
    assert (await net.get(KEYS_PATH))[0] == 401
    assert (await read(net, KEYS_PATH, Authorization=f"Bearer {token}"))[0] == 200
    write(readers="[{name: both}]")
    net.coordinator.reload(config)
    assert (await read(net, KEYS_PATH, Authorization=f"Bearer {token}"))[0] == 200, "what was there stays"


@pytest.mark.parametrize(
    ("readers", "reason"),
    [
        ("[{name: a}]", "reader a needs one of"),
        (f"[{{name: a, token_sha256: {'0' * 64}, certificate: b}}]", "reader a needs one of"),
        (f"[{{name: a, token_sha256: {'0' * 64}}}, {{name: b, token_sha256: {'0' * 64}}}]", "the same token_sha256"),
        ("[{name: a, certificate: b}]", "client_ca must be there"),
        (f"[{{name: a, token_sha256: {TOKEN}}}]", "token_sha256"),
    ],
)
def test_readers_that_make_no_sense(tmp_path: pathlib.Path, readers: str, reason: str) -> None:
    file = tmp_path / "coordinator.yaml"
    file.write_text(f"""
network: test
name: c1
roster: roster.yaml
state: coordinator.db
signers: {{listen: "127.0.0.1:0", certificate: server.pem, key: server.key, client_ca: ca.pem}}
api: {{listen: "127.0.0.1:0", certificate: server.pem, key: server.key, clients: clients.yaml, readers: {readers}}}
""")
    with pytest.raises(CallerError, match=reason):
        load_config(file)


# --- how much ---


async def test_a_reader_that_asks_too_often_is_told_when_to_come_back(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path, limits=LimitSettings(requests_per_s=2)) as net:
        statuses = [(await net.get("/v1/keys"))[0] for _ in range(4)]
        assert statuses == [200] * 4
        async with net.http.get(net.api + "/v1/keys") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
            assert (await answer.json(content_type=None))["code"] == "rate-limited"
        # Another client has its own share.
        assert (await post(net, net.files.signer.request(KEYS_PATH, BODY)))[0] == 202


async def test_an_address_without_credentials_has_a_small_share_and_clients_their_own(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path, limits=LimitSettings(strangers_per_s=1)) as net:
        statuses = [(await read(net, "/v1/keys", Authorization="Bearer x"))[0] for _ in range(5)]
        assert statuses == [401] * 4 + [429]
        assert (await net.get("/v1/keys"))[0] == 200
        # Nor does what is refused take anything of probes, or probes of clients with a good signature.
        assert [(await read(net, "/healthz"))[0] for _ in range(5)] == [200] * 4 + [429]
        assert (await post(net, net.files.signer.request(KEYS_PATH, BODY)))[0] == 202


async def test_bad_signatures_are_charged_to_the_address_and_the_client_they_name(tmp_path: pathlib.Path) -> None:
    """And what names nobody to the address alone, whatever else is behind it."""
    async with FakeNetwork.start(tmp_path, limits=LimitSettings(strangers_per_s=1)) as net:
        forged = TestClient(time.time, network="test").request(KEYS_PATH, BODY)
        nobodys = TestClient(time.time, "nobody", "test").request(KEYS_PATH, BODY)
        assert [(await post(net, nobodys))[0] for _ in range(5)] == [401] * 4 + [429]
        assert (await post(net, net.files.signer.request(KEYS_PATH, BODY)))[0] == 202
        assert [(await post(net, forged))[0] for _ in range(5)] == [401] * 4 + [429]


async def test_one_client_has_so_many_requests_under_way(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path, limits=LimitSettings(in_flight=1)) as net:
        first = net.files.signer.request(KEYS_PATH, BODY)
        second = net.files.signer.request(KEYS_PATH, msgspec.json.encode({**KEY, "externalId": "key-2"}))
        headers = {**JSON, "Keymoot-Signature": first.jws}
        waiting = net.http.post(net.api + KEYS_PATH + "?wait=1", data=first.body, headers=headers)

        task = asyncio.ensure_future(waiting.__aenter__())
        deadline_s = time.monotonic() + 10
        while (await net.get(KEYS_PATH))[1] == {"items": []}:
            assert time.monotonic() < deadline_s
        status, shown = await post(net, second)
        assert (status, shown["code"]) == (429, "too-many-in-flight")
        assert (await task).status == 202
        assert (await post(net, second))[0] == 202

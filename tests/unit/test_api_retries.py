"""The client's side of limits and credentials: what it shows, when it asks again, and which error it raises."""

from __future__ import annotations

import pathlib
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from appliance.api import models
from appliance.api.client import ApiError, AsyncClient, Conflict, Credential, NotFound, NotNow, TooMany, Unauthorized
from appliance.api.credentials import load_token, new_token, save_token, token_sha256
from appliance.api.jws import generate_client_key
from appliance.configure import write_client
from appliance.profile import load_profile
from appliance.templates import ClientSetup
from policies.errors import CallerError
from policies.requests import Hash
from tests.fakes.certificates import Dealer
from tests.fakes.servers import serving
from tests.fakes.tls import TlsFiles

DEALER = Dealer.make()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return TlsFiles.make(tmp_path_factory.mktemp("tls"))


class Scripted:
    """Answers one request after the other as told; `seen` has the headers of each."""

    def __init__(self, answers: Iterable[tuple[int, str, str | None]]) -> None:
        self.answers = list(answers)
        self.seen: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append(dict(request.headers))
        status, code, retry_after = self.answers.pop(0)
        if status == 200:
            return web.json_response({"items": []})
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        body = models.Problem("about:blank", "t", status, code, "why")
        return web.Response(status=status, body=msgspec.json.encode(body), headers=headers)


@asynccontextmanager
async def scripted(
    tls: TlsFiles, answers: Iterable[tuple[int, str, str | None]], credential: Credential | None = None
) -> AsyncIterator[tuple[Scripted, AsyncClient]]:
    api, app = Scripted(answers), web.Application()
    app.router.add_route("*", "/{path:.*}", api.answer)
    async with (
        serving(app, tls) as port,
        AsyncClient(
            f"https://127.0.0.1:{port}", DEALER.roster, generate_client_key("a"), tls.ca, credential=credential
        ) as client,
    ):
        yield api, client


@pytest.mark.parametrize(("status", "code"), [(429, "rate-limited"), (503, "unavailable")])
async def test_what_is_to_be_asked_again_is(tls: TlsFiles, status: int, code: str) -> None:
    async with scripted(tls, [(status, code, "0")] * 3 + [(200, "", None)]) as (api, client):
        assert await client.list_keys() == ()
        assert len(api.seen) == 4


async def test_it_is_not_asked_for_ever(tls: TlsFiles) -> None:
    async with scripted(tls, [(429, "rate-limited", "0")] * 10) as (api, client):
        with pytest.raises(TooMany) as refused:
            await client.list_keys()
        assert (len(api.seen), refused.value.code, refused.value.retry_after_s) == (4, "rate-limited", 0)


@pytest.mark.parametrize("retry_after", ["11", "99999", "999999", "-1", "soon", "1.5", None])
async def test_it_is_not_waited_for_long_or_for_what_is_no_number(tls: TlsFiles, retry_after: str | None) -> None:
    async with scripted(tls, [(503, "unavailable", retry_after)] * 2) as (api, client):
        started_s = time.monotonic()
        with pytest.raises(NotNow, match="unavailable"):
            await client.list_keys()
        assert (len(api.seen), time.monotonic() - started_s < 5) == (1, True)


async def test_not_ready_is_an_answer(tls: TlsFiles) -> None:
    async with scripted(tls, [(503, "not-ready", "0")] * 2) as (api, client):
        with pytest.raises(ApiError, match="not-ready"):
            await client.readiness()
        assert len(api.seen) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthorized), (404, NotFound), (409, Conflict), (422, ApiError), (500, ApiError)],
)
async def test_every_status_has_its_error_with_the_code(tls: TlsFiles, status: int, kind: type[ApiError]) -> None:
    async with scripted(tls, [(status, "the-code", "0")]) as (_, client):
        with pytest.raises(ApiError) as refused:
            await client.list_keys()
    assert (type(refused.value), refused.value.status, refused.value.code) == (kind, status, "the-code")


async def test_a_token_is_shown_to_read_and_never_with_a_signed_request(tls: TlsFiles) -> None:
    token = new_token()
    gone = [(404, "not-found", None)] * 3
    async with scripted(tls, [(200, "", None), *gone], Credential(token)) as (api, client):
        await client.list_keys()
        with pytest.raises(NotFound):
            await client.create_key("label", "id-1")
        with pytest.raises(NotFound):
            await client.sign("key_" + "0" * 32, Hash("0x" + "11" * 32, "id-2"))
    shown = [headers.get("Authorization") for headers in api.seen]
    assert shown == [f"Bearer {token}", None, f"Bearer {token}"]
    assert token not in repr(Credential(token))


def test_a_token_file_is_for_its_owner_alone_and_holds_a_token(tmp_path: pathlib.Path) -> None:
    token, file = new_token(), tmp_path / "t"
    save_token(token, file)
    assert load_token(file) == token
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(CallerError, match="nothing is overwritten"):
        save_token(token, file)
    file.chmod(0o640)
    with pytest.raises(CallerError, match="chmod 600"):
        load_token(file)
    for text in ("", "kmt_x", token + "x", token + "\n" + token, "x" * 5000):
        file.chmod(0o600)
        file.write_text(text)
        with pytest.raises(CallerError, match=r"holds no token|is larger than 1024 bytes"):
            load_token(file)
    with pytest.raises(CallerError, match="cannot read"):
        load_token(tmp_path / "none")


def test_a_profile_names_its_token_and_another_one_comes_first(tmp_path: pathlib.Path, tls: TlsFiles) -> None:
    setup = ClientSetup(DEALER.roster.network, "alice", "https://localhost:1", tls.ca.read_bytes())
    write_client(tmp_path, setup)
    (tmp_path / "roster.yaml").write_bytes(msgspec.json.encode(DEALER.roster))
    assert load_profile(tmp_path / "client.yaml").credential.token == setup.token
    assert setup.token not in repr(setup)
    other = new_token()
    save_token(other, tmp_path / "other")
    assert load_profile(tmp_path / "client.yaml", tmp_path / "other").credential.token == other
    assert len(token_sha256(other)) == 64

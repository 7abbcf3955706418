"""HTTP as the client speaks it: one pinned CA, bounded answers, no redirect, no proxy, no cookie."""

from __future__ import annotations

import asyncio
import pathlib
import random
from collections.abc import Mapping
from typing import Any, TypeVar

import aiohttp
import msgspec

from appliance.api import models
from appliance.api.credentials import Credential
from appliance.api.results import ApiError, api_error
from appliance.http_failures import describe
from appliance.tls import client_context
from policies.errors import CallerError, Unavailable

MAX_ANSWER_BYTES = 8 * 1024 * 1024
REQUEST_TIMEOUT_S = 30.0
RETRIED = (429, 503)
MAX_TRIES = 4
MAX_AT_ONCE = 100
MAX_RETRY_S = 10.0
# What the JSON decoder raises: of bytes that are not UTF-8 the last but one.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

A = TypeVar("A", bound=models.ApiStruct)


class NoAnswer(Unavailable):
    """Nobody answered at the API's address: another coordinator may."""


class Transport:
    """Exchanges with one API. `open` it inside the event loop.

    Reading shows `credential`; a signed request is its own credential. What is answered 429 or 503 is asked again when
    `Retry-After` says, at most `MAX_TRIES` times and within `MAX_RETRY_S`: a signed request names its `externalId`, so
    that nothing is done twice. At most `MAX_AT_ONCE` exchanges are under way; the others wait in the order in which
    they were begun.
    """

    def __init__(self, url: str, ca: pathlib.Path, credential: Credential) -> None:
        """Raises `CallerError` for what is not https, and for files that cannot be used."""
        if not url.startswith("https://"):
            raise CallerError(f"the API is served over TLS alone: use an https:// URL instead of {url}")
        self._url = url.rstrip("/")
        self._tls = client_context(ca, credential.certificate, credential.key)
        self._credential = credential
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Make ready for exchanges."""
        # A limit of the connector's own lets whoever has just had a connection overtake those that wait for one.
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            # A few bytes of a compressed answer could fill the memory.
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def exchange(self, method: str, path: str, kind: type[A], *, retried: bool = True, **arguments: Any) -> A:
        """The answer to one request as a `kind`. Raises `ApiError`; `Unavailable` where there is no answer."""
        deadline_s = asyncio.get_running_loop().time() + MAX_RETRY_S
        for tries in range(1, MAX_TRIES + 1):
            status, headers, data = await self._once(method, path, arguments)
            if 200 <= status < 300:
                break
            error = _problem(status, headers, data)
            if not retried or status not in RETRIED or error.retry_after_s is None or tries == MAX_TRIES:
                raise error
            # Some more than was asked for, by chance: not all come back at once.
            pause_s = error.retry_after_s * (1 + random.random() / 2)  # noqa: S311
            if asyncio.get_running_loop().time() + pause_s > deadline_s:
                raise error
            await asyncio.sleep(pause_s)
        return parse_answer(status, data, kind)

    async def _once(self, method: str, path: str, arguments: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body. Raises `Unavailable`."""
        if self._session is None:
            raise CallerError("use the client inside `async with` or `with`")
        if method == "GET":
            arguments = {**arguments, "headers": self._credential.headers()}
        try:
            async with (
                self._turns,
                self._session.request(method, self._url + path, allow_redirects=False, **arguments) as response,
            ):
                return response.status, response.headers, await _read_bounded(response)
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer(
                f"API {self._url}: {describe(error)}",
                "see whether the coordinator runs and the pinned CA is the one of its API",
            ) from error


def parse_answer(status: int, data: bytes, kind: type[A]) -> A:
    """The body of an answer as a `kind`. Raises `ApiError`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise ApiError(status, "malformed-answer", str(error)[:200]) from None


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > MAX_ANSWER_BYTES:
            response.close()
            raise ApiError(response.status, "answer-too-large", f"more than {MAX_ANSWER_BYTES} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _problem(status: int, headers: Mapping[str, str], data: bytes) -> ApiError:
    after = headers.get("Retry-After", "")
    retry_after_s = int(after) if after.isascii() and after.isdigit() and len(after) < 6 else None
    try:
        problem = msgspec.json.decode(data, type=models.Problem)
    except UNREADABLE:
        return api_error(status, f"http-{status}", "the answer is no problem document", retry_after_s)
    return api_error(status, problem.code, problem.detail, retry_after_s, problem.request_id)

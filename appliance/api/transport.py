"""HTTP as the client speaks it: one pinned CA, bounded answers, no redirect, no proxy, no cookie."""

from __future__ import annotations

import pathlib
from typing import Any, TypeVar

import aiohttp
import msgspec

from appliance.api import models
from appliance.api.results import ApiError
from appliance.tls import client_context
from policies.errors import CallerError, Unavailable

MAX_ANSWER_BYTES = 8 * 1024 * 1024
REQUEST_TIMEOUT_S = 30.0

A = TypeVar("A", bound=models.ApiStruct)


class Transport:
    """Exchanges with one API. `open` it inside the event loop; raises `CallerError` for what is not https."""

    def __init__(self, url: str, ca: pathlib.Path) -> None:
        if not url.startswith("https://"):
            raise CallerError(f"the API is served over TLS alone: use an https:// URL instead of {url}")
        self._url = url.rstrip("/")
        self._tls = client_context(ca)
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Make ready for exchanges."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def exchange(self, method: str, path: str, kind: type[A], **arguments: Any) -> A:
        """The answer to one request as a `kind`. Raises `ApiError`; `Unavailable` where there is no answer."""
        if self._session is None:
            raise CallerError("use the client inside `async with` or `with`")
        try:
            async with self._session.request(method, self._url + path, allow_redirects=False, **arguments) as response:
                data = await _read_bounded(response)
                status = response.status
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(
                f"API {self._url}: {str(error) or type(error).__name__}",
                "see whether the coordinator runs and the pinned CA is the one of its API",
            ) from error
        if not 200 <= status < 300:
            raise _problem(status, data)
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
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


def _problem(status: int, data: bytes) -> ApiError:
    try:
        problem = msgspec.json.decode(data, type=models.Problem)
    except (msgspec.DecodeError, RecursionError):
        return ApiError(status, f"http-{status}", "the answer is no problem document")
    return ApiError(status, problem.code, problem.detail)

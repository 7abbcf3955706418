"""HTTP of connections that a listener has accepted: whatever comes, the answer is a problem or a handler's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from appliance.coordinator.problems import name_afresh, of_http, problem
from policies.repeats import Allowance

LINGERING_S = 2.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = structlog.get_logger()


class HttpServer(web.Server):
    """aiohttp's server with protocols of our own."""

    def __init__(self, inner: web.Server, idle_timeout_s: float, strangers: Allowance) -> None:
        self._strangers = strangers
        self._idle_timeout_s = idle_timeout_s
        super().__init__(_answering(inner.request_handler), request_factory=inner.request_factory)

    def protocol(self, lost: Callable[[], None]) -> HttpProtocol:
        """For a new connection; `lost` is called when it has ended."""
        protocol = HttpProtocol(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=self._idle_timeout_s,
            lingering_time=LINGERING_S,
            auto_decompress=False,
        )
        protocol.lost, protocol.strangers = lost, self._strangers
        return protocol


class HttpProtocol(web.RequestHandler):
    """HTTP of one connection. What is no HTTP, and what no handler foresaw, is answered by a problem, logged once."""

    lost: Callable[[], None]
    strangers: Allowance

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection has ended."""
        super().connection_lost(exc)
        self.lost()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what could not be parsed, or was raised past all handlers."""
        if status < 500:
            detail = (message or "").splitlines()
            told = detail[0][:200] if detail else "not HTTP/1.1"
            response = (
                problem(431, "header-too-large", "Header too large", "the request line or a header is too large")
                if isinstance(exc, LineTooLong)
                else problem(400, "malformed-http", "Malformed HTTP", told)
            )
            request_id = name_afresh(response)
            if (not_told := self.strangers.not_told()) is not None:
                log.info("no-http", remote=request.remote, reason=told, request_id=request_id, **not_told)
        else:
            response = problem(500, "internal-error", "Internal error", "this is a fault of the coordinator")
            log.error("request-failed", remote=request.remote, exc_info=exc, request_id=name_afresh(response))
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer has been sent already")
        response.force_close()
        return response


def _answering(handler: Handler) -> Handler:
    """`handler`, with aiohttp's own refusals as problems too."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            response = of_http(error)
            name_afresh(response)
            return response

    return answer

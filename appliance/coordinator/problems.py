"""Every error of the API as RFC 9457 problem document, with a request id in the log and in the answer."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from appliance.api.models import Problem
from appliance.api.paths import HEALTH_PATHS, READY_PATH
from appliance.coordinator.bodies import TooLarge, TooSlow, UnsupportedMedia
from appliance.coordinator.credentials import Unauthorized
from appliance.coordinator.rates import Limited
from appliance.store.accepted import ExternalIdTaken
from appliance.telemetry import name_task, task_name
from enclave import wire
from policies.errors import CallerError, KeymootError, Unavailable
from policies.repeats import Allowance, of_strangers
from policies.typed_data import TypedDataInvalid

REQUEST_ID_HEADER = "X-Request-Id"
REQUEST_ID = web.RequestKey("request_id", str)
BAD_REQUEST_ID = (
    f"{REQUEST_ID_HEADER}: 8 to 64 letters, digits and . _ : = -, the first a letter or digit; or leave it out"
)
# Asked every few seconds; that the network's state changes is told where it does.
PROBES = frozenset({*HEALTH_PATHS, READY_PATH})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()


CHALLENGES = {False: 'Bearer realm="keymoot"', True: "Keymoot-Signature"}


class NotFound(CallerError):
    """There is no such thing."""


class Unprocessable(CallerError):
    """Well-formed, and yet it cannot be carried out."""


# The first that fits counts.
PROBLEMS: tuple[tuple[type[KeymootError], int, str, str], ...] = (
    (NotFound, 404, "not-found", "Not found"),
    (ExternalIdTaken, 409, "external-id-taken", "Conflict"),
    (TooSlow, 408, "body-too-slow", "Request timeout"),
    (TooLarge, 413, "too-large", "Too large"),
    (UnsupportedMedia, 415, "unsupported-media-type", "Unsupported media type"),
    (Unprocessable, 422, "unprocessable", "Unprocessable"),
    (TypedDataInvalid, 422, "unprocessable", "Unprocessable"),
    (CallerError, 400, "bad-request", "Bad request"),
    (Unavailable, 503, "unavailable", "Unavailable"),
)


class ProblemResponse(web.Response):
    """A problem document that does not know yet which request it answers."""

    def __init__(self, document: Problem) -> None:
        super().__init__(status=document.status, content_type="application/problem+json")
        self._document = document
        self.name("")

    def name(self, request_id: str) -> None:
        """Say in it which request it answers."""
        self.body = msgspec.json.encode(msgspec.structs.replace(self._document, request_id=request_id))


def problem(status: int, code: str, title: str, detail: str) -> web.Response:
    """An answer that is a problem document. The middleware names the request in it."""
    return ProblemResponse(Problem("about:blank", title, status, code, detail))


def answering_problems(clock: Callable[[], float]) -> Middleware:
    """Names the request, answers errors as problem documents, logs one line. `clock`: seconds, monotonic."""
    strangers = of_strangers(clock)

    @web.middleware
    def answer_problems(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        return _named(request, handler, strangers)

    return answer_problems


def name_afresh(response: web.Response) -> str:
    """Give the answer to what came past the middleware a request id of its own, for the log too."""
    request_id = os.urandom(16).hex()
    if isinstance(response, ProblemResponse):
        response.name(request_id)
    response.headers[REQUEST_ID_HEADER] = request_id
    return request_id


async def _named(request: web.Request, handler: Handler, strangers: Allowance) -> web.StreamResponse:
    asked = request.headers.get(REQUEST_ID_HEADER)
    named = asked is not None and re.fullmatch(wire.REQUEST_ID, asked) is not None
    request_id = request[REQUEST_ID] = asked if named and asked is not None else os.urandom(16).hex()
    # aiohttp gives each request a context of its own.
    name_task(request_id=request_id, client="")
    if asked is not None and not named:
        # What was sent is not repeated: neither log nor answer is for strangers to write in.
        response: web.StreamResponse = problem(400, "bad-request", "Bad request", BAD_REQUEST_ID)
    else:
        response = await _answer(request, handler)
    if isinstance(response, ProblemResponse):
        response.name(request_id)
    if not response.prepared:
        response.headers[REQUEST_ID_HEADER] = request_id
    if request.path not in PROBES:
        _tell(request, response, strangers)
    return response


def _tell(request: web.Request, response: web.StreamResponse, strangers: Allowance) -> None:
    """One line; of a flood of those who are nobody's client some, and how many were passed over."""
    facts = {} if task_name("client") else strangers.not_told()
    if facts is not None:
        log.info("request", method=request.method, path=request.path[:300], status=response.status, **facts)


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except KeymootError as error:
        return of_error(error)
    except web.HTTPException as error:
        return of_http(error)
    except Exception:
        log.exception("request-failed", method=request.method, path=request.path[:300])
        return problem(500, "internal-error", "Internal error", "this is a fault of the coordinator: see its log")


def of_error(error: KeymootError) -> web.Response:
    """The answer to an error that was raised on purpose."""
    response = problem(*_told(error))
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = CHALLENGES[error.code.startswith("request/")]
    elif isinstance(error, Limited):
        response.headers["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, Unavailable):
        response.headers["Retry-After"] = "2"
    if isinstance(error, TooSlow | TooLarge | UnsupportedMedia):
        # What is left of the body is not waited for.
        response.force_close()
    return response


def of_http(error: web.HTTPException) -> web.Response:
    """The answer to what aiohttp itself refuses: no such route, no such method, an expectation."""
    code = (error.reason or "error").lower().replace(" ", "-")
    response = problem(error.status, code, error.reason or "Error", error.text or "")
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def _told(error: KeymootError) -> tuple[int, str, str, str]:
    match error:
        case Unauthorized(code=code, detail=detail):
            return 401, code, "Unauthorized", detail
        case Limited(code=code, detail=detail):
            return 429, code, "Too many requests", detail
    for kind, status, code, title in PROBLEMS:
        if isinstance(error, kind):
            return status, code, title, str(error)
    log.error("request-failed", reason=str(error)[:512], kind=type(error).__name__)
    return 500, "internal-error", "Internal error", "this is a fault of the coordinator: see its log"

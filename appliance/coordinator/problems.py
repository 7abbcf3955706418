"""Every error of the API as RFC 9457 problem document, with a request id in the log and in the answer."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import web

from appliance.api.models import Problem
from appliance.store.accepted import ExternalIdTaken
from policies.errors import CallerError, Unavailable

REQUEST_ID_HEADER = "X-Request-Id"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()


class NotFound(CallerError):
    """There is no such thing."""


def problem(status: int, code: str, title: str, detail: str) -> web.Response:
    """An answer that is a problem document."""
    document = Problem("about:blank", title, status, code, detail)
    return web.Response(status=status, body=msgspec.json.encode(document), content_type="application/problem+json")


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Name the request, answer errors as problem documents, log one line."""
    request_id = secrets.token_hex(8)
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        response = await _answer(request, handler)
        if not response.prepared:
            response.headers[REQUEST_ID_HEADER] = request_id
        log.info("request", method=request.method, path=request.path[:300], status=response.status)
    return response


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except NotFound as error:
        return problem(404, "not-found", "Not found", str(error))
    except ExternalIdTaken as error:
        return problem(409, "external-id-taken", "Conflict", str(error))
    except CallerError as error:
        return problem(400, "bad-request", "Bad request", str(error))
    except Unavailable as error:
        response = problem(503, "unavailable", "Unavailable", str(error))
        response.headers["Retry-After"] = "2"
        return response
    except web.HTTPRequestEntityTooLarge:
        return problem(413, "too-large", "Too large", "the body is larger than the API takes")
    except web.HTTPException as error:
        code = (error.reason or "error").lower().replace(" ", "-")
        response = problem(error.status, code, error.reason or "Error", error.text or "")
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response

"""The reference handler of a validation gate: `keymoot gate serve`. Start your own from this.

It verifies that its signer asks (Standard Webhooks, HMAC), applies a few rules, and signs its answer, which the
enclave verifies. An answer echoes what it answers, so that it serves for nothing else.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import structlog
from aiohttp import web
from standardwebhooks import WebhookVerificationError

from appliance.eventloop import new_event_loop
from appliance.expiry import CertificateWatch, CurrentContext, TlsFiles
from appliance.gate.config import GateConfig, GateRules
from appliance.gate.keys import KeysFile
from appliance.telemetry import configure_logging
from appliance.tls import server_context

MAX_BODY_BYTES = 512 * 1024
MAX_REMEMBERED = 10_000
ANSWER_LIFETIME = datetime.timedelta(seconds=60)

log = structlog.get_logger()


def decide(rules: GateRules, request: dict[str, Any]) -> str:
    """Why the rules refuse this request; empty where they do not."""
    info, decoded = request["signerInfo"], request["requestInfo"]["decoded"] or {}
    if info["kind"] not in rules.kinds:
        return f"nobody has allowed steps of kind {info['kind']}"
    if rules.refuse_blind and info.get("blind"):
        return "it is blind: nothing but a hash is known"
    destination = str(decoded.get("to") or "").lower()
    if destination and destination in {address.lower() for address in rules.refuse_destinations}:
        return f"destination {destination} is on the list of refused ones"
    if rules.max_wei is not None and "value" in decoded and int(decoded["value"]) > rules.max_wei:
        return f"value {int(decoded['value'])} wei is more than {rules.max_wei}"
    return ""


def make_app(config: GateConfig, tls: TlsFiles | None = None) -> web.Application:
    """The handler as an aiohttp application: `POST` to any path. Who connected before an authority of `tls` was
    withdrawn connects again, or cannot. Raises `CallerError` for unusable secrets."""
    keys = KeysFile(config.secrets)
    answered: dict[str, str] = {}  # the newest uids, and what each was about

    async def handle(http: web.Request) -> web.Response:
        if tls is not None and tls.outdated(http.transport):
            response = web.Response(status=503, text="an authority was withdrawn: connect again\n")
            response.force_close()
            return response
        data = await http.read()
        try:
            body = data.decode()
            request = (ours := keys.current()).verify(body, http.headers)
            told = (request["version"], request["type"], request["uid"])
            if told != ("1", "validation.request", http.headers["webhook-id"]):
                raise ValueError("not a validation request")
            reason = decide(config.rules, request)
            echo = {name: request["signerInfo"][name] for name in ("request_digest", "signer_id", "kind")}
            if answered.setdefault(request["uid"], echo["request_digest"]) != echo["request_digest"]:
                raise ValueError("another question under the same uid")
            if len(answered) > MAX_REMEMBERED:
                del answered[next(iter(answered))]
        except (WebhookVerificationError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("gate-request-invalid", reason=type(error).__name__)
            return web.Response(status=401, text="not a signed validation request\n")
        now = datetime.datetime.now(datetime.UTC)
        status = {"code": "refused" if reason else "ok", "reason": reason, "message": ""}
        answer = msgspec.json.encode(
            {
                "type": "validation.answer",
                "uid": request["uid"],
                **echo,
                "dryRun": request["dryRun"],
                "allowed": not reason,
                "status": status,
                "expiresAt": (now + ANSWER_LIFETIME).replace(microsecond=0),
            }
        )
        # Not signed, and only for people: JSON keeps it on its line.
        request_id = http.headers.get("x-request-id", "")[:64]
        log.info("gate-answer", uid=request["uid"], request_id=request_id, allowed=not reason, reason=reason)
        headers = {
            "webhook-id": request["uid"],
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": ours.sign(request["uid"], now, answer.decode()),
            "content-type": "application/json",
        }
        return web.Response(body=answer, headers=headers)

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/{path:.*}", handle)
    return app


async def _watching(watch: CertificateWatch, _: web.Application) -> AsyncIterator[None]:
    """Renewed certificates are taken up while the handler runs."""
    task = asyncio.create_task(watch.run())
    yield
    task.cancel()


def run(config: GateConfig) -> None:
    """Serve over TLS until SIGTERM or SIGINT. Raises `CallerError` for unusable files."""
    configure_logging("gate")
    host, _, port = config.listen.rpartition(":")
    files = (config.certificate, config.key, config.client_ca)
    tls = TlsFiles(partial(server_context, *files), *files)
    app = make_app(config, tls)
    watch = CertificateWatch([config.certificate], [tls])
    app.cleanup_ctx.append(partial(_watching, watch))
    web.run_app(
        app,
        host=host,
        port=int(port),
        ssl_context=CurrentContext.of(tls),
        access_log=None,
        print=lambda *_: None,
        loop=new_event_loop(),
    )

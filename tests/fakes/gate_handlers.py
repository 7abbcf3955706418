"""A validation handler that is right, and can be told to have single faults."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import time
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

MAX_BODY_BYTES = 512 * 1024
KINDS = ("Signing", "SigningBatch", "KeyCreation")
VALIDATION_REQUEST = "validation.request"


class Unsigned(Exception):
    """Not a question of our signer's."""


class FaultyHandler:
    """`faults`: what is wrong with it, by the words that are looked for below; none: nothing."""

    def __init__(self, secrets: dict[str, str], refused: str, *faults: str) -> None:
        self.asks, self.answers = (
            base64.b64decode(secrets[name].removeprefix("whsec_")) for name in ("request_hmac", "answer_hmac")
        )
        self.refused, self.faults = refused, faults
        self.digests: dict[str, str] = {}
        self.under_way = 0
        self.one_by_one = asyncio.Lock()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES if "reads all" not in self.faults else 2**40)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def handle(self, http: web.Request) -> web.StreamResponse:
        self.under_way += 1
        try:
            if "one by one" in self.faults:
                async with self.one_by_one:
                    await http.read()
            if "slow" in self.faults or "four at once" in self.faults:
                await asyncio.sleep(0.03)
            if "four at once" in self.faults and self.under_way > 4:
                return web.Response(status=503)
            response = await self.respond(http)
        finally:
            self.under_way -= 1
        if "closes" in self.faults:
            response.force_close()
        return response

    async def respond(self, http: web.Request) -> web.StreamResponse:
        body = await http.read()
        if "small bodies" in self.faults and len(body) > 100 * 1024:
            return web.Response(status=413)
        if "redirects" in self.faults:
            return web.Response(status=307, headers={"Location": "/elsewhere"})
        try:
            self.verify(http, body)
            message = json.loads(body)
            self.understand(message)
        except Unsigned:
            return web.Response(status=500 if "crashes on strangers" in self.faults else 401)
        except (ValueError, KeyError):
            if "yes to nonsense" not in self.faults:
                return web.Response(status=500 if "crashes on nonsense" in self.faults else 400)
            message = {"uid": http.headers["webhook-id"], "dryRun": True, "requestInfo": {}}
            message["signerInfo"] = {"kind": "Signing", "request_digest": "", "signer_id": ""}
        kind = message["signerInfo"]["kind"]
        if f"hangs on {kind}" in self.faults:
            await asyncio.Event().wait()  # until the caller goes
        if f"crashes on {kind}" in self.faults:
            return web.Response(status=500)
        if "asks people" in self.faults:
            headers = {} if "no Retry-After" in self.faults else {"Retry-After": "60"}
            if "forgets whom it asked" in self.faults and message["attempt"] > 1:
                return web.Response(status=404)
            return web.Response(status=202, headers=headers)
        return self.answer(http, body, message)

    def verify(self, http: web.Request, body: bytes) -> None:
        name, at = http.headers.get("webhook-id", ""), http.headers.get("webhook-timestamp", "")
        header = http.headers.get("webhook-signature", "")
        if "nobody needs to sign" in self.faults or ("empty signatures" in self.faults and not header):
            return
        off_s = time.time() - int(at)
        if (off_s > 300 and "old ones" not in self.faults) or (off_s < -300 and "future ones" not in self.faults):
            raise Unsigned
        keys = [self.asks, self.answers] if "both secrets" in self.faults else [self.asks]
        content = f"{name}.{at}.".encode() + body
        given = header.encode().split(b" ")
        if "first signature alone" in self.faults:
            given = given[:1]
        if "any signature" in self.faults and all(len(one) == 47 for one in given):
            return
        if not any(self.fits(key, content, one) for key in keys for one in given):
            raise Unsigned

    def fits(self, key: bytes, content: bytes, signature: bytes) -> bool:
        return signature == self.sign(key, content)

    def sign(self, key: bytes, content: bytes) -> bytes:
        return b"v1," + base64.b64encode(hmac.digest(key, content, "sha256"))

    def understand(self, message: dict[str, Any]) -> None:
        if message["version"] != "1" and "any version" not in self.faults:
            raise ValueError("version")
        if message["type"] != VALIDATION_REQUEST and "any type" not in self.faults:
            raise ValueError("type")
        kind = message["signerInfo"]["kind"]
        # What hangs or crashes on a kind has not turned it away.
        dealt_with = {"any kind", f"knows {kind}", f"hangs on {kind}", f"crashes on {kind}"} & {*self.faults}
        if (kind not in KINDS or f"no {kind}" in self.faults) and not dealt_with:
            raise ValueError("kind")
        if "gateCheckUnknown" in message and "no new fields" in self.faults:
            raise ValueError("field")
        if message["attempt"] > 1 and "no retries" in self.faults:
            raise ValueError("attempt")
        request_digest = message["signerInfo"]["request_digest"]
        known = self.digests.setdefault(message["uid"], request_digest)
        if known != request_digest and "forgets" not in self.faults:
            raise ValueError("uid")

    def answer(self, http: web.Request, body: bytes, message: dict[str, Any]) -> web.Response:
        info, faults, now_s = message["signerInfo"], self.faults, int(time.time())
        decoded = message["requestInfo"].get("decoded") or {}
        allowed = decoded.get("to") != self.refused or "never refuses" in faults
        if "always refuses" in faults:
            allowed = False
        if not allowed and "403" in faults:
            return web.Response(status=403)
        lives_s = 5 if "short yes" in faults else -5 if "expired yes" in faults else 60
        ends = datetime.fromtimestamp(now_s + lives_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        answer: dict[str, Any] = {
            "type": "validation.answer",
            "uid": message["uid"] if "other uid" not in faults else "another",
            "request_digest": info["request_digest"],
            "signer_id": info["signer_id"],
            "kind": info["kind"],
            "dryRun": message["dryRun"] if "never dry" not in faults else False,
            "allowed": allowed,
            "status": {"reason": "" if allowed else "a refused destination"},
            "expiresAt": "soon" if "ends soon" in faults else ends,
        }
        if "always dry" in faults:
            answer["dryRun"] = True
        if "more fields" in faults:
            answer["note"] = "fine"
        at_s = now_s - 3600 if "old clock" in faults else now_s
        data = json.dumps(answer).encode()
        signed = data
        if "html" in faults:
            data = signed = b"<html>yes</html>"
        if "signs other bytes" in faults:
            signed = json.dumps(answer, indent=1).encode()
        key = self.asks if "request secret" in faults else self.answers
        signature = self.sign(key, f"a.{at_s}.".encode() + signed).decode()
        headers = {"webhook-id": "a", "webhook-timestamp": str(at_s), "webhook-signature": signature}
        if "reflects" in faults:
            data = body
            headers = {name: http.headers.get(name, "") for name in headers}
        if "unsigned" in faults:
            del headers["webhook-signature"]
        return web.Response(body=data, headers=headers)


class Ed25519Handler(FaultyHandler):
    """The same with `v1a`: `asks` is the enclave's point, `answers` a seed of its own."""

    def __init__(self, asks: bytes, answers: bytes, refused: str, *faults: str) -> None:
        none = "whsec_" + base64.b64encode(bytes(32)).decode()
        super().__init__({"request_hmac": none, "answer_hmac": none}, refused, *faults)
        self.asks, self.answers = asks, answers

    def fits(self, key: bytes, content: bytes, signature: bytes) -> bool:
        version, _, encoded = signature.partition(b",")
        try:
            VerifyKey(key).verify(content, base64.b64decode(encoded, validate=True))
        except (BadSignatureError, ValueError, binascii.Error):
            return False
        return version == b"v1a"

    def sign(self, key: bytes, content: bytes) -> bytes:
        return b"v1a," + base64.b64encode(SigningKey(key).sign(content).signature)

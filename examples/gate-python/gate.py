"""A validation gate in Python: verifies its signer's question, decides, signs its answer. Start yours from this.

    pip install aiohttp standardwebhooks
    SECRETS=gate-secrets.json CERTIFICATE=server.pem KEY=server.key PORT=8090 python gate.py

CLIENT_CA=signers-ca.pem admits only signers with a certificate of that authority.
"""

import datetime
import json
import os
import ssl
from pathlib import Path

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

MAX_WEI = 10**18
MAX_BODY_BYTES = 512 * 1024  # no question is larger
MAX_REMEMBERED = 10_000

secrets = json.loads(Path(os.environ["SECRETS"]).read_text())
asks, answers = Webhook(secrets["request_hmac"]), Webhook(secrets["answer_hmac"])
seen = {}  # the newest uids, and what each was about


def decide(question):
    """Why not; an empty text is a yes. What is raised here becomes a 500, which is a refusal too."""
    info, decoded = question["signerInfo"], question["requestInfo"]["decoded"]
    if info["kind"] != "Signing":
        return f"this gate does not know {info['kind']}"
    if info["blind"] or decoded is None:
        return "nothing but a hash is known"
    if "value" not in decoded or int(decoded["value"]) > MAX_WEI:
        return f"not a transaction of at most {MAX_WEI} wei"
    return ""


async def handle(http):
    try:
        # Verifies the raw body, and refuses a timestamp that is more than five minutes off.
        question = asks.verify(await http.text(), dict(http.headers))
        if (question["version"], question["type"]) != ("1", "validation.request"):
            raise ValueError("not for us")
        echo = {name: question["signerInfo"][name] for name in ("request_digest", "signer_id", "kind")}
        # A second attempt has the same uid and is about the same; anything else is not from an enclave.
        if seen.setdefault(question["uid"], echo["request_digest"]) != echo["request_digest"]:
            raise ValueError("another question under the same uid")
    except (WebhookVerificationError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return web.Response(status=401)
    if len(seen) > MAX_REMEMBERED:
        del seen[next(iter(seen))]
    reason, now = decide(question), datetime.datetime.now(datetime.UTC)
    if not question["dryRun"]:
        print(question["uid"], reason or "allowed", flush=True)  # and whatever else a decision sets off
    answer = {"type": "validation.answer", "uid": question["uid"], **echo, "dryRun": question["dryRun"]}
    answer |= {"allowed": not reason, "status": {"reason": reason}}
    answer["expiresAt"] = (now + datetime.timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    body = json.dumps(answer)
    signature = answers.sign(question["uid"], now, body)
    headers = {"webhook-id": question["uid"], "webhook-timestamp": str(int(now.timestamp()))}
    return web.Response(text=body, headers={**headers, "webhook-signature": signature}, content_type="application/json")


if __name__ == "__main__":
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=os.environ.get("CLIENT_CA"))
    tls.load_cert_chain(os.environ["CERTIFICATE"], os.environ["KEY"])
    if "CLIENT_CA" in os.environ:
        tls.verify_mode = ssl.CERT_REQUIRED
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/validate", handle)
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8090"))
    web.run_app(app, host=host, port=port, ssl_context=tls, access_log=None)

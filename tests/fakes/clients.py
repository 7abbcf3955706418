"""Clients and gates for in-memory enclaves: requests signed as a client would, answers signed as a handler would."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave import webhooks, wire
from enclave.gate_keys import GateKeys, parse_gate_secrets
from policies.approvals import Approvals
from policies.clients import Algorithm, Client
from policies.model import Action, Kind, Policy, Rule
from policies.requests import KEYS_PATH, Hash, KeyCreation, signatures_path
from policies.signed_requests import APPROVE


def b64url(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TestClient:
    """A client with an Ed25519 key. `header` overrides members of the protected header."""

    __test__ = False

    def __init__(self, clock: Callable[[], float], kid: str = "payments", network: str = "testnet") -> None:
        self.clock, self.kid, self.network = clock, kid, network
        self.key = Ed25519PrivateKey.generate()

    @property
    def entry(self) -> Client:
        """This client as a policy lists it."""
        return Client(self.kid, Algorithm.ED25519, b64url(self.key.public_key().public_bytes_raw()))

    def request(self, path: str, body: Any, /, **header: Any) -> wire.ClientRequest:
        """A signed POST of a body (a struct, or bytes as they are)."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        now_s = int(self.clock())
        protected = {
            "alg": "Ed25519",
            "kid": self.kid,
            "b64": False,
            "crit": ["b64"],
            "network": self.network,
            "method": "POST",
            "path": path,
            "iat": now_s,
            "exp": now_s + 300,
            "jti": os.urandom(16).hex(),
            **header,
        }
        encoded = b64url(json.dumps({k: v for k, v in protected.items() if v is not None}).encode())
        signature = self.key.sign(encoded.encode() + b"." + data)
        return wire.ClientRequest("POST", path, data, f"{encoded}..{b64url(signature)}")

    def approval(self, request: wire.ClientRequest, /, **header: Any) -> str:
        """This client's detached JWS that approves another's request, for an hour."""
        now_s = int(self.clock())
        fields = {"method": APPROVE, "iat": now_s, "exp": now_s + 3600, **header}
        return self.request(request.path, request.body, **fields).jws

    def create_key(self, label: str = "hot/1", n: int = 3, t: int = 1) -> wire.ClientRequest:
        """A signed request for a key."""
        return self.request(KEYS_PATH, KeyCreation("ECDSA", "secp256k1", n, t, label, os.urandom(8).hex()))

    def sign_hash(self, key_id: str, h: bytes, path: tuple[int, ...] = (), **header: Any) -> wire.ClientRequest:
        """A signed request for a signature over a bare hash."""
        body = Hash("0x" + h.hex(), os.urandom(8).hex(), path)
        return self.request(signatures_path(key_id), body, **header)


def open_policy(*clients: TestClient) -> Policy:
    """Allows the given clients everything under the label `hot/`."""
    names = tuple(client.kid for client in clients)
    rule = Rule(
        name="everything",
        clients=names,
        actions=tuple(Action),
        labels=("hot/*",),
        kinds=tuple(Kind),
        blind=True,
        derivation_paths=("m", "m/**"),
    )
    return Policy(1, tuple(client.entry for client in clients), (rule,))


def approved_policy(client: TestClient, *approvers: TestClient, **changes: Any) -> Policy:
    """Allows `client` everything under `hot/`, to sign only what two of the approvers approve."""
    policy = open_policy(client, *approvers)
    (rule,) = policy.rules
    wanted = Approvals(tuple(one.kid for one in approvers), 2, **changes)
    keys = Rule(name="keys", clients=(client.kid,), actions=(Action.CREATE_KEY,), labels=rule.labels)
    signing = msgspec.structs.replace(rule, clients=(client.kid,), actions=(Action.SIGN,), approvals=wanted)
    return msgspec.structs.replace(policy, rules=(keys, signing))


class TestGate:
    """Answers as a handler does. `decide(member, request)` gives allowed and reason; `alter` changes the reply."""

    __test__ = False

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        secrets = {
            name: "whsec_" + base64.b64encode(os.urandom(32)).decode() for name in ("request_hmac", "answer_hmac")
        }
        self.secrets = json.dumps(secrets).encode()
        self.keys: GateKeys = parse_gate_secrets(self.secrets)
        self.decide: Callable[[int, dict[str, Any]], tuple[bool, str]] = lambda member, request: (True, "")
        self.alter: Callable[[int, wire.CallGate, wire.GateReply], Any] = lambda member, call, reply: reply

    def __call__(self, member: int, call: wire.CallGate) -> Any:
        request = json.loads(call.body)
        webhooks.verify(
            self.keys.request,
            call.webhook_id,
            call.webhook_timestamp,
            call.webhook_signature,
            call.body,
            int(self.clock()),
        )
        allowed, reason = self.decide(member, request)
        return self.alter(member, call, self.reply(call.uid, self.answer(request, allowed, reason)))

    def answer(self, request: dict[str, Any], allowed: bool, reason: str = "") -> dict[str, Any]:
        """The answer to a request."""
        info = request["signerInfo"]
        expires = datetime.fromtimestamp(self.clock() + 120, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "type": "validation.answer",
            "uid": request["uid"],
            "request_digest": info["request_digest"],
            "signer_id": info["signer_id"],
            "kind": info["kind"],
            "dryRun": request["dryRun"],
            "allowed": allowed,
            "status": {"code": "", "reason": reason, "message": ""},
            "expiresAt": expires,
        }

    def reply(self, uid: str, answer: dict[str, Any] | bytes, status: int = 200) -> wire.GateReply:
        """An answer, signed now, as the signer process hands it over."""
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        now_s = int(self.clock())
        signature = webhooks.sign(self.keys.answer, uid, now_s, body)
        return wire.GateReply(uid, status, uid, str(now_s), signature, 0, body)

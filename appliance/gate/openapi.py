"""`keymoot gate openapi`: OpenAPI 3.1 of the validation gate, made from the structs that the enclave uses.

It describes your handler: what is posted to it, and what it answers.
"""

from __future__ import annotations

import inspect
from typing import Any, get_args

import msgspec

from appliance.gate.check.samples import SAMPLES
from enclave.wire import MAX_GATE_BODY_BYTES, MAX_GATE_REQUEST_BYTES
from policies.gate_messages import Answer, GateInfo, GateRequest

SCHEMAS = "#/components/schemas/"
INFOS = get_args(GateInfo)
EXAMPLE_DEADLINE_S = 1_767_225_600  # 2026-01-01T00:00:00Z

Json = dict[str, Any]

WEBHOOK_HEADERS = {
    "webhook-id": (
        "Names the message. Of a question: its `uid`. Of an answer: anything of its own.",
        {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"},
    ),
    "webhook-timestamp": (
        "Unix seconds of the signature; refuse what is more than 300 s off.",
        {"type": "string", "pattern": "^[1-9][0-9]{0,11}$"},
    ),
    "webhook-signature": (
        "Standard Webhooks: signatures of `id.timestamp.body`, with a space between, each `v1,` and the base64 of an "
        "HMAC-SHA256, or `v1a,` and that of an Ed25519 signature. One that verifies is enough; pass over versions you "
        "do not know. Each direction has its own secret.",
        {"type": "string"},
    ),
}
TOLD = {
    "202": "A person decides: the question comes again with the same `uid`, after `Retry-After`, until its deadline. "
    "In mode `status` a refusal.",
    "401": "The question is not signed by this signer, or not now. A refusal.",
    "403": "A refusal in mode `status`. In mode `signed` better say no with 200, which gives a reason.",
    "413": "Larger than a question can be. A refusal.",
    "default": "A refusal. After 429, 502, 503 and 504 the question comes again within its deadline.",
}


def describe(version: str) -> Json:
    """The document, for the gate of this `version` of Keymoot."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Keymoot's validation gate",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "The HTTP handler of a signer's operator. The signer's enclave asks it before it signs. "
            "Whatever is not a signed yes to this question is a refusal. Check a handler with `keymoot gate check`.",
        },
        "paths": {"/": {"post": _operation()}},
        "components": {
            "schemas": _schemas(),
            "headers": {
                name: {"description": told, "required": True, "schema": schema}
                for name, (told, schema) in WEBHOOK_HEADERS.items()
            },
        },
    }


def _operation() -> Json:
    return {
        "operationId": "validate",
        "summary": "May this be signed?",
        "description": "The path is yours: it is that of `gate.url` in `signer.yaml`. Redirects are refusals. TLS with "
        "a pinned authority, with a client certificate where you want one.",
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": told, "schema": schema}
            for name, (told, schema) in WEBHOOK_HEADERS.items()
        ]
        + [
            {
                "name": "x-request-id",
                "in": "header",
                "required": False,
                "description": "What logs call the request. Not signed: it proves nothing.",
                "schema": {"type": "string"},
            }
        ],
        "requestBody": {
            "required": True,
            "description": f"At most {MAX_GATE_REQUEST_BYTES} bytes. A later version may have more fields.",
            "content": {"application/json": {"schema": {"$ref": SCHEMAS + "GateRequest"}, "examples": _examples()}},
        },
        "responses": {
            "200": {
                "description": f"Yes or no, signed, at most {MAX_GATE_BODY_BYTES} bytes. In mode `status`: yes.",
                "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in WEBHOOK_HEADERS},
                "content": {"application/json": {"schema": {"$ref": SCHEMAS + "Answer"}}},
            },
            **{status: {"description": told} for status, told in TOLD.items()},
        },
    }


def _examples() -> Json:
    """One question of each kind."""
    examples = {}
    for kind, (info, request) in SAMPLES.items():
        asked = GateRequest.about(info, request, uid="00" * 16, attempt=1, deadline_s=EXAMPLE_DEADLINE_S, dry_run=True)
        purpose = inspect.cleandoc(type(info).__doc__ or "").partition(".")[0]
        examples[kind] = {"summary": purpose, "value": msgspec.json.decode(msgspec.json.encode(asked))}
    return examples


def _schemas() -> Json:
    _, schemas = msgspec.json.schema_components([GateRequest, Answer, *INFOS], ref_template=SCHEMAS + "{name}")
    digest = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "The hash of the rest of `signerInfo`."}
    for kind in INFOS:
        schema = schemas[kind.__name__]
        schema["properties"]["request_digest"] = digest
        schema["required"] = sorted({*schema["required"], "kind", "request_digest"})
    request = schemas["GateRequest"]["properties"]
    request["signerInfo"] = {"anyOf": [{"$ref": SCHEMAS + kind.__name__} for kind in INFOS]}
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    for name, schema in schemas.items():
        # What is asked may have more fields in a later version; what is answered may not.
        if name not in ("Answer", "Verdict"):
            schema.pop("additionalProperties", None)
    shown: Json = msgspec.json.decode(msgspec.json.encode(schemas))
    return shown

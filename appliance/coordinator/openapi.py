"""`GET /openapi.json`: OpenAPI 3.1 of this API, made from the structs that requests and answers are parsed with.

`OPERATIONS` is the one list to keep beside the routes; a test holds the two equal.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.api import models
from appliance.api.approvals import ApprovalBody, ApprovalsWanted
from appliance.api.batches import BATCH_ID_PREFIX, SignatureBatch, SignatureBatchList
from appliance.api.paths import COORDINATOR_PATH, HEALTH_PATHS, OPENAPI_PATH, POOLS_PATH, READY_PATH, SIGNERS_PATH
from appliance.coordinator.limits import (
    CURSOR_PATTERN,
    DEFAULT_WAIT_S,
    JWS_HEADER,
    JWS_PATTERN,
    MAX_BURST,
    MAX_WAIT_S,
    PAGE,
)
from appliance.coordinator.problems import REQUEST_ID_HEADER
from enclave import wire
from enclave.wire import MAX_BODY_BYTES
from policies.requests import KEY_ID_PATTERN, KEYS_PATH, HashBatch, KeyCreation, SigningBody

SCHEMAS = "#/components/schemas/"
SIGNATURE_ID_PATTERN = "^sig_[0-9a-f]{32}$"
BATCH_ID_PATTERN = f"^{BATCH_ID_PREFIX}[0-9a-f]{{32}}$"
KEY_PATH = KEYS_PATH + "/{key}"
SIGNATURES_PATH = KEY_PATH + "/signatures"
BATCHES_PATH = KEY_PATH + "/signature-batches"

Json = dict[str, Any]

SECURITY_SCHEMES: Json = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "For reading: a token that the coordinator's configuration lists by its SHA-256.",
    },
    "certificate": {
        "type": "mutualTLS",
        "description": "For reading: a client certificate that the coordinator's configuration lists.",
    },
}


@dataclass(frozen=True)
class Operation:
    """One route. `answer` None: any JSON object. A `body` makes it a signed request; `paged` a list with a cursor.
    `open`: strangers get an answer too, without details."""

    method: str
    path: str
    name: str
    summary: str
    answer: type[msgspec.Struct] | None
    body: Any = None
    paged: bool = False
    parameters: tuple[str, ...] = ()
    open: bool = False
    problems: tuple[int, ...] = ()

    @property
    def queries(self) -> tuple[str, ...]:
        """The query parameters that it takes."""
        return (
            *self.parameters,
            *(["cursor"] if self.paged else []),
            *(["wait"] if self.body is not None else []),
        )


PROBLEMS = {
    400: "Something in the request cannot be understood; `detail` says what. Code `bad-request`.",
    401: "No credential for reading, or not a good one (`credential-missing`, `credential-unknown`); or a signed "
    "request that is not a known client's, for this path, fresh (`request/…`, the codes that enclaves use).",
    404: "There is no such thing, or not yet. Code `not-found`.",
    409: "Another request has this `externalId` already. Code `external-id-taken`.",
    408: "The body came too slowly. Code `body-too-slow`.",
    413: "The body is too large. Code `too-large`.",
    415: "The body is not application/json, or compressed. Code `unsupported-media-type`.",
    422: "Well-formed, and yet it cannot be carried out: another scheme than the network's, typed data that has no "
    "hash, a path without a key. Code `unprocessable`.",
    429: "More than one client may take. Code `rate-limited`, `too-many-in-flight` or `too-many-awaiting` (approvals).",
    503: "Not possible now; `detail` says what is missing and what to do. Code `unavailable` or `not-ready`.",
}
# What every operation may answer, and what a signed request may besides.
ALWAYS = (400, 401, 429)
POSTED = (408, 409, 413, 415, 422, 503)
# What reading one thing of the store may answer besides: it is not there, or cannot be read.
STORED = (404, 503)
# What is worth asking again, after a while.
WAITED = (429, 503)

OPERATIONS = (
    Operation(
        "post", KEYS_PATH, "createKey", "Make a key, by all signers.", models.Key, body=KeyCreation, problems=POSTED
    ),
    Operation("get", KEYS_PATH, "listKeys", "Keys, oldest first.", models.KeyList, paged=True, problems=(503,)),
    Operation("get", KEY_PATH, "getKey", "A key, by its id or by the id of its request.", models.Key, problems=STORED),
    Operation(
        "post",
        SIGNATURES_PATH,
        "createSignature",
        "Sign, where policies and gates agree.",
        models.Signature,
        body=SigningBody,
        problems=(404, *POSTED),
    ),
    Operation(
        "get",
        SIGNATURES_PATH,
        "listSignatures",
        "The signing requests of a key, oldest first.",
        models.SignatureList,
        paged=True,
        problems=STORED,
    ),
    Operation(
        "get",
        SIGNATURES_PATH + "/{signature}",
        "getSignature",
        "A signing request and what came of it.",
        models.Signature,
        problems=STORED,
    ),
    Operation(
        "get",
        SIGNATURES_PATH + "/{signature}/approvals",
        "getApprovals",
        "What an approver of a signing request signs, and who has.",
        ApprovalsWanted,
        problems=STORED,
    ),
    Operation(
        "post",
        SIGNATURES_PATH + "/{signature}/approvals",
        "approveSignature",
        "Approve another client's signing request; it is carried out once there are enough.",
        models.Signature,
        body=ApprovalBody,
        problems=(404, *POSTED),
    ),
    Operation(
        "post",
        BATCHES_PATH,
        "createSignatureBatch",
        "Sign up to 1,000 hashes under one decision, where policies and gates agree.",
        SignatureBatch,
        body=HashBatch,
        problems=(404, *POSTED),
    ),
    Operation(
        "get",
        BATCHES_PATH,
        "listSignatureBatches",
        "The batches of a key, oldest first, without their results.",
        SignatureBatchList,
        paged=True,
        problems=STORED,
    ),
    Operation(
        "get",
        BATCHES_PATH + "/{batch}",
        "getSignatureBatch",
        "A batch, and what came of each of its hashes.",
        SignatureBatch,
        problems=STORED,
    ),
    Operation(
        "get",
        BATCHES_PATH + "/{batch}/approvals",
        "getBatchApprovals",
        "What an approver of a batch signs, and who has.",
        ApprovalsWanted,
        problems=STORED,
    ),
    Operation(
        "post",
        BATCHES_PATH + "/{batch}/approvals",
        "approveSignatureBatch",
        "Approve another client's batch; it is carried out once there are enough.",
        SignatureBatch,
        body=ApprovalBody,
        problems=(404, *POSTED),
    ),
    Operation("get", SIGNERS_PATH, "listSigners", "The signers, as they announced themselves.", models.SignerList),
    Operation(
        "get",
        POOLS_PATH,
        "listPools",
        "The pools of presignatures.",
        models.PoolList,
        parameters=("burst",),
    ),
    Operation(
        "get",
        COORDINATOR_PATH,
        "getCoordinator",
        "The coordinator, and what is wrong with it.",
        models.Coordinator,
        problems=(503,),
    ),
    Operation(
        "get",
        READY_PATH,
        "getReadiness",
        "Whether a signature can be made now. Readers are told what is missing, where not.",
        models.Readiness,
        open=True,
        problems=(503,),
    ),
    Operation("get", HEALTH_PATHS[0], "getHealth", "What is there and what is missing; always 200.", models.Health),
    Operation("get", HEALTH_PATHS[1], "getHealthUnversioned", "The same, for probes.", models.Health, open=True),
    Operation("get", OPENAPI_PATH, "getDescription", "This document.", None, open=True),
)


def describe(version: str) -> Json:
    """The document, for the API of this `version` of Keymoot."""
    paths: Json = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Keymoot",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Threshold signatures. Whoever reads this API believes certificates and signatures that he "
            "has verified, not the coordinator. Every error is a problem document of RFC 9457 with a stable `code`; "
            "`X-Request-Id` of an answer finds it in the coordinator's log.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "parameters": _parameters(),
            "headers": {
                "RequestId": {"description": "Names this request in the log.", "schema": {"type": "string"}},
                "Challenge": {"description": "What to show.", "schema": {"type": "string"}},
                "RetryAfter": {"description": "Ask again after so many seconds.", "schema": {"type": "integer"}},
            },
            "securitySchemes": SECURITY_SCHEMES,
            "responses": {f"Problem{status}": _problem(status, told) for status, told in PROBLEMS.items()}
            | {"Problem": _problem(0, "Any other error, such as a method that the path does not have (405).")},
        },
    }


def _operation(operation: Operation) -> Json:
    named = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    signed = operation.body is not None
    # A signature is asked of an active key, which is named by its id alone.
    parameters = ["ActiveKey" if signed and name == "key" else name for name in named]
    parameters += operation.queries
    parameters += [JWS_HEADER] if signed else []
    parameters += [REQUEST_ID_HEADER]
    described: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "security": [] if signed else [*([{}] if operation.open else []), {"token": []}, {"certificate": []}],
        "responses": _responses(operation, signed=signed),
    }
    described["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in parameters]
    if signed:
        described["requestBody"] = {
            "required": True,
            "description": f"At most {MAX_BODY_BYTES} bytes. The header {JWS_HEADER} signs exactly these bytes. "
            "JSON is read strictly: no key twice, integers without a fraction or an exponent.",
            "content": {"application/json": {"schema": _schema(operation.body)}},
        }
    return described


def _responses(operation: Operation, *, signed: bool) -> Json:
    schema = {"type": "object"} if operation.answer is None else _schema(operation.answer)
    told = {"200": "As it stands."}
    if signed:
        told = {
            "200": "The same request was there before, and has ended.",
            "201": "Done: `status` says with which outcome.",
            "202": "Under way: ask for it again.",
        }
    answers: Json = {
        status: {
            "description": text,
            "headers": {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}},
            "content": {"application/json": {"schema": schema}},
        }
        for status, text in told.items()
    }
    for status in sorted({*operation.problems, *ALWAYS}):
        answers[str(status)] = {"$ref": f"#/components/responses/Problem{status}"}
    return answers | {"default": {"$ref": "#/components/responses/Problem"}}


def _problem(status: int, told: str) -> Json:
    headers: Json = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
    if status == 401:
        headers["WWW-Authenticate"] = {"$ref": "#/components/headers/Challenge"}
    if status in WAITED:
        headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    return {
        "description": told,
        "headers": headers,
        "content": {"application/problem+json": {"schema": _schema(models.Problem)}},
    }


def _parameters() -> Json:
    return {
        "key": _parameter("key", "path", "The id of a key, or of the request for it.", {"type": "string"}),
        "ActiveKey": _parameter("key", "path", "The id of a key.", {"type": "string", "pattern": KEY_ID_PATTERN}),
        "signature": _parameter(
            "signature", "path", "The id of a signing request.", {"type": "string", "pattern": SIGNATURE_ID_PATTERN}
        ),
        "batch": _parameter("batch", "path", "The id of a batch.", {"type": "string", "pattern": BATCH_ID_PATTERN}),
        "cursor": _parameter(
            "cursor",
            "query",
            f"`nextCursor` of the page before; pages have 0 to {PAGE} items, the last one has no `nextCursor`.",
            {"type": "string", "pattern": CURSOR_PATTERN.pattern},
        ),
        "burst": _parameter(
            "burst",
            "query",
            "For how many signatures at once marks are recommended; without it, for each pool's busiest minute.",
            {"type": "integer", "minimum": 0, "maximum": MAX_BURST},
        ),
        "wait": _parameter(
            "wait",
            "query",
            "Seconds to wait for the outcome before the answer is 202.",
            {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S, "default": DEFAULT_WAIT_S},
        ),
        REQUEST_ID_HEADER: _parameter(
            REQUEST_ID_HEADER,
            "header",
            "What the logs of coordinator, signers and enclaves call this request, and gates hear. One is made where "
            "it is left out. It proves nothing, and need not be unique.",
            {"type": "string", "pattern": f"^{wire.REQUEST_ID}$"},
        ),
        JWS_HEADER: _parameter(
            JWS_HEADER,
            "header",
            "A detached JWS (RFC 7515, appendix F) of a client that the policies name, over the exact bytes of the "
            "body; its header binds method, path, network and time. The coordinator verifies it, then the enclaves do. "
            "It is all the credential that a signed request needs.",
            {"type": "string", "pattern": JWS_PATTERN.pattern},
            required=True,
        ),
    }


def _parameter(name: str, where: str, told: str, schema: Json, *, required: bool = False) -> Json:
    return {"name": name, "in": where, "required": required or where == "path", "description": told, "schema": schema}


def _schema(kind: Any) -> Json:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=SCHEMAS + "{name}")
    return schema


def _schemas() -> Json:
    kinds = [kind for operation in OPERATIONS for kind in (operation.answer, operation.body) if kind is not None]
    _, schemas = msgspec.json.schema_components([*kinds, models.Problem], ref_template=SCHEMAS + "{name}")
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    # Defaults are tuples until they are JSON.
    shown: Json = msgspec.json.decode(msgspec.json.encode(schemas))
    return shown

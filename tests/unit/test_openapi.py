"""The API's description: valid OpenAPI 3.1, complete, and true of what the API takes and answers."""

from __future__ import annotations

import pathlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import msgspec
import openapi_spec_validator
import pytest
from aiohttp import web
from jsonschema import Draft202012Validator

from appliance.coordinator.api import Api
from appliance.coordinator.openapi import OPERATIONS
from tests.fakes.coordinator_side import FakeNetwork
from tests.fakes.typed_data import ETHER_MAIL

H = "0x" + "11" * 32
KEY = {
    "scheme": "ECDSA", "curve": "secp256k1", "signers": 3, "tolerate": 1, "label": "treasury", "externalId": "key-1",
}  # fmt: skip
HASH = {"kind": "Hash", "hash": H, "externalId": "sig-1", "derivationPath": [0, 5]}
TYPED = {"kind": "Eip712TypedData", "typedData": ETHER_MAIL, "externalId": "sig-2"}
BATCH = {"kind": "HashBatch", "hashes": [H, H], "externalId": "batch-1", "derivationPaths": [[], [0, 5]]}


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path) as made, made.all_connected():
        yield made


async def described(net: FakeNetwork) -> dict[str, Any]:
    status, document = await net.get("/openapi.json")
    assert status == 200
    return document


def valid(document: dict[str, Any], schema: dict[str, Any], value: object) -> bool:
    """Whether `value` is what `schema` of `document` allows."""
    resolvable = {"allOf": [schema], "components": document["components"]}
    return Draft202012Validator(resolvable).is_valid(value)


def resolve(document: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """`entry`, or what its `$ref` names."""
    while "$ref" in entry:
        _, *names = entry["$ref"].split("/")
        entry = document
        for name in names:
            entry = entry[name]
    return entry


class Caller:
    """Calls operations, and holds every answer against what the document says of it."""

    def __init__(self, net: FakeNetwork, document: dict[str, Any]) -> None:
        self.net, self.document = net, document
        self.answered: set[tuple[str, str, str]] = set()

    async def call(self, method: str, template: str, path: str = "", body: object = None, **headers: str | None) -> Any:
        """`headers`, with _ for -, override what a client sends; None leaves one out."""
        told = self.document["paths"][template][method]["responses"]
        path = path or template
        data = b"" if body is None else msgspec.json.encode(body)
        sent: dict[str, str | None] = {}
        if method == "post":
            sent = {
                "Content-Type": "application/json",
                "Keymoot-Signature": self.net.sign(path.partition("?")[0], data),
            }
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        shown_headers = {name: value for name, value in sent.items() if value is not None}
        async with self.net.http.request(
            method, self.net.api + path, data=data or None, headers=shown_headers
        ) as answer:
            status = str(answer.status)
            shown = await answer.json(content_type=None)
            response = resolve(self.document, told[status if status in told else "default"])
            schema = response["content"][answer.content_type]["schema"]
            assert valid(self.document, schema, shown), (method, template, status, shown)
            for name, header in response["headers"].items():
                assert name in answer.headers, (template, status, name, header)
        self.answered.add((method, template, status if status in told else "default"))
        return shown


async def test_the_document_is_valid_and_of_this_version(net: FakeNetwork) -> None:
    document = await described(net)
    openapi_spec_validator.validate(document, cls=openapi_spec_validator.OpenAPIV31SpecValidator)
    assert document["openapi"] == "3.1.0"
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names)) == len(OPERATIONS)


async def test_every_route_is_described_and_every_description_is_a_route(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apps: list[web.Application] = []
    make = Api.application

    def recorded(api: Api) -> web.Application:
        apps.append(make(api))
        return apps[-1]

    monkeypatch.setattr(Api, "application", recorded)
    async with FakeNetwork.start(tmp_path) as net:
        document = await described(net)
    (app,) = apps
    # HEAD comes with every GET.
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    shown = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert shown == routes, "appliance/coordinator/openapi.py: OPERATIONS differs from the routes of api.py"


async def test_every_signed_request_is_described_with_its_header(net: FakeNetwork) -> None:
    document = await described(net)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parameters = [resolve(document, entry) for entry in operation.get("parameters", [])]
            headers = {entry["name"]: entry for entry in parameters if entry["in"] == "header"}
            assert sorted(headers) == ["Keymoot-Signature"] * (method == "post") + ["X-Request-Id"], path
            assert [entry["required"] for entry in headers.values()] == [True] * (method == "post") + [False]
            in_path = {entry["name"] for entry in parameters if entry["in"] == "path"}
            assert in_path == {part[1:-1] for part in path.split("/") if part.startswith("{")}


async def test_answers_are_as_described(net: FakeNetwork) -> None:
    document = await described(net)
    caller = Caller(net, document)
    keys, key, signatures = "/v1/keys", "/v1/keys/{key}", "/v1/keys/{key}/signatures"
    made = await caller.call("post", keys, body=KEY)
    assert made["status"] == "Active"
    key_path = f"/v1/keys/{made['id']}"
    assert await caller.call("post", keys, body=KEY) == made
    await caller.call("post", keys, body={**KEY, "label": "other"})
    await caller.call("post", keys, body={})
    await caller.call("post", keys, body=KEY, Keymoot_Signature=None)
    await caller.call("post", keys, body={**KEY, "signers": 4})
    await caller.call("post", keys, body=KEY, Content_Type="text/plain")
    await caller.call("post", keys, body={"x": "x" * 300_000})
    await caller.call("get", keys)
    await caller.call("get", keys, "/v1/keys?cursor=x")
    await caller.call("get", keys, Authorization="Bearer kmt_x")
    await caller.call("get", key, key_path)
    await caller.call("get", key, "/v1/keys/none")
    signed = await caller.call("post", signatures, key_path + "/signatures", HASH)
    assert signed["status"] == "Signed"
    assert (await caller.call("post", signatures, key_path + "/signatures", TYPED))["status"] == "Signed"
    assert await caller.call("post", signatures, key_path + "/signatures", HASH) == signed
    await caller.call("post", signatures, key_path + "/signatures?wait=0", {**HASH, "externalId": "sig-3"})
    await caller.call("post", signatures, key_path + "/signatures?wait=61", HASH)
    await caller.call("post", signatures, "/v1/keys/none/signatures", HASH)
    listed = await caller.call("get", signatures, key_path + "/signatures")
    assert listed["items"][0] == signed
    await caller.call("get", signatures, key_path + "/signatures?cursor=x")
    await caller.call("get", signatures, "/v1/keys/none/signatures")
    one = signatures + "/{signature}"
    await caller.call("get", one, f"{key_path}/signatures/{signed['id']}")
    await caller.call("get", one, f"{key_path}/signatures/none")
    batches, batch_path = "/v1/keys/{key}/signature-batches", key_path + "/signature-batches"
    batch = await caller.call("post", batches, batch_path, BATCH)
    assert (batch["status"], len(batch["results"])) == ("Signed", 2)
    one_batch = batches + "/{batch}"
    assert await caller.call("get", one_batch, f"{batch_path}/{batch['id']}") == batch
    await caller.call("get", one_batch, f"{batch_path}/none")
    (summary,) = (await caller.call("get", batches, batch_path))["items"]
    assert summary == {name: value for name, value in batch.items() if name != "results"}
    await caller.call("get", batches, "/v1/keys/none/signature-batches")
    for path in ("/v1/signers", "/v1/pools", "/readyz", "/healthz", "/v1/healthz", "/openapi.json"):
        await caller.call("get", path)
    assert caller.answered == {
        *(("post", keys, status) for status in ("200", "201", "400", "401", "409", "413", "415", "422")),
        *(("post", signatures, status) for status in ("200", "201", "202", "400", "404")),
        *(("get", signatures, status) for status in ("200", "400", "404")), ("get", keys, "401"),
        ("get", keys, "200"), ("get", keys, "400"), ("get", key, "200"), ("get", key, "404"),
        ("post", batches, "201"), ("get", batches, "200"), ("get", batches, "404"),
        ("get", one_batch, "200"), ("get", one_batch, "404"),
        ("get", one, "200"), ("get", one, "404"), ("get", "/v1/signers", "200"), ("get", "/v1/pools", "200"),
        ("get", "/readyz", "200"), ("get", "/healthz", "200"), ("get", "/v1/healthz", "200"),
        ("get", "/openapi.json", "200"),
    }  # fmt: skip


async def test_a_row_that_cannot_be_read_is_as_described(net: FakeNetwork) -> None:
    """Its 503 was none of the answers that reading was said to have."""
    caller = Caller(net, await described(net))
    _, made = await net.post("/v1/keys", KEY)
    path = f"/v1/keys/{made['id']}"
    _, signed = await net.post(path + "/signatures", HASH)
    _, batch = await net.post(path + "/signature-batches", BATCH)
    ids = {"{key}": str(made["id"]), "{signature}": str(signed["id"]), "{batch}": str(batch["id"])}
    with closing(sqlite3.connect(net.config.state)) as database, database:
        for table in ("keys", "signatures", "signature_batches"):
            assert database.execute(f"UPDATE {table} SET created_at_ms = 'late'").rowcount == 1
    paths = ["/v1/keys/{key}"]
    paths += ["/v1/keys/{key}/signatures/{signature}", "/v1/keys/{key}/signature-batches/{batch}"]
    for template in [*paths, *(path + "/approvals" for path in paths[1:])]:
        shown = template
        for name, value in ids.items():
            shown = shown.replace(name, value)
        told = await caller.call("get", template, shown)
        assert (told["code"], "damaged" in told["detail"]) == ("unavailable", True), told
        assert ("get", template, "503") in caller.answered


async def test_not_ready_is_as_described(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path) as net:
        caller = Caller(net, await described(net))
        await caller.call("get", "/readyz")
        await caller.call("get", "/v1/signers")
        assert caller.answered == {("get", "/readyz", "503"), ("get", "/v1/signers", "200")}


@pytest.mark.parametrize(("wait", "status"), [("0", 202), ("5e-324", 202), ("1.5e1", 201), ("12.052760154566647", 201),
    ("60", 201), ("60.1", 400), ("1e999", 400), ("-1", 400), ("nan", 400), ("", 400)])  # fmt: skip
async def test_a_wait_is_any_number_that_the_document_allows(net: FakeNetwork, wait: str, status: int) -> None:
    _, made = await net.post("/v1/keys", KEY)
    path, data = f"/v1/keys/{made['id']}/signatures", msgspec.json.encode(HASH)
    headers = {"Keymoot-Signature": net.sign(path, data), "Content-Type": "application/json"}
    async with net.http.post(f"{net.api}{path}?wait={wait}", data=data, headers=headers) as answer:
        assert answer.status == status, await answer.text()


async def test_a_method_that_is_not_there_is_answered_with_those_that_are(net: FakeNetwork) -> None:
    async with net.http.delete(net.api + "/v1/keys") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD,POST")
        assert (await answer.json(content_type=None))["code"] == "method-not-allowed"


async def test_lists_are_described_with_their_cursor(net: FakeNetwork) -> None:
    document = await described(net)
    parameters = [resolve(document, entry) for entry in document["paths"]["/v1/keys"]["get"]["parameters"]]
    (cursor,) = [entry for entry in parameters if entry["in"] == "query"]
    assert (cursor["name"], cursor["in"], cursor["required"]) == ("cursor", "query", False)
    assert "nextCursor" in document["components"]["schemas"]["KeyList"]["properties"]


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (HASH, True),
        (TYPED, True),
        ({"kind": "Message", "message": "0x61", "hash": "EIP-191", "externalId": "a"}, True),
        ({**HASH, "hash": "0x11"}, False),
        ({**HASH, "hash": H + "\n"}, False),
        ({**HASH, "kind": "Other"}, False),
        ({**HASH, "more": 1}, False),
        ({**HASH, "derivationPath": [-1]}, False),
        ({**HASH, "derivationPath": [0] * 11}, False),
        ({"kind": "Hash", "hash": H}, False),
        ([], False),
    ],
)
async def test_a_body_is_taken_exactly_where_its_schema_allows_it(net: FakeNetwork, body: object, good: bool) -> None:
    document = await described(net)
    operation = document["paths"]["/v1/keys/{key}/signatures"]["post"]
    assert valid(document, operation["requestBody"]["content"]["application/json"]["schema"], body) is good
    _, made = await net.post("/v1/keys", KEY)
    status, _ = await net.post(f"/v1/keys/{made['id']}/signatures", body)
    assert status == (201 if good else 400)

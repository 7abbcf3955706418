"""The API against its own description: schemathesis makes requests that the document allows, and some that it forbids.

Every request goes over TLS to a real coordinator with fake signers, shows a reader's token, and is signed over the
bytes that are sent.
"""

from __future__ import annotations

import asyncio
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from appliance.coordinator.config import LimitSettings
from appliance.coordinator.openapi import OPERATIONS
from policies.requests import KEYS_PATH
from tests.fakes.coordinator_side import TOKEN, FakeNetwork

EXAMPLES, MANY_EXAMPLES = 60, 600
# What is allowed by the document and yet cannot be carried out: another scheme, typed data without a hash.
CONFIG = {
    "checks": {"positive_data_acceptance": {"expected-statuses": ["200", "201", "202", "404", "409", "422", "503"]}}
}
LIMITS = LimitSettings(requests_per_s=100_000, strangers_per_s=100_000)


def documented_status(_: object, response: Any, case: Any) -> None:
    """What `default` stands for, such as 405, is no answer to anything here: every status has its own entry."""
    assert str(response.status_code) in case.operation.definition.raw["responses"], response.status_code


CONFORMS = [
    not_a_server_error,
    status_code_conformance,
    documented_status,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
KEY = {
    "scheme": "ECDSA", "curve": "secp256k1", "signers": 3, "tolerate": 1, "label": "described", "externalId": "key-1",
}  # fmt: skip


class Served:
    """A network that serves in a thread of its own, with one key, one signature and one batch."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self.names: dict[str, str] = {}
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(30)
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(self.net.files.path("ca.pem"))
        self.session.headers["Authorization"] = f"Bearer {TOKEN}"
        document = self.session.get(self.net.api + "/openapi.json").json()
        self.schema = schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict(CONFIG))
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def _serve(self) -> None:
        async with FakeNetwork.start(self._directory, batch=1024, limits=LIMITS) as self.net, self.net.all_connected():
            _, key = await self.net.post(KEYS_PATH, KEY)
            path = f"{KEYS_PATH}/{key['id']}/signatures"
            _, signed = await self.net.post(path, {"kind": "Hash", "hash": "0x" + "11" * 32, "externalId": "sig-1"})
            hashes = {"kind": "HashBatch", "hashes": ["0x" + "22" * 32], "externalId": "batch-1"}
            _, batch = await self.net.post(f"{KEYS_PATH}/{key['id']}/signature-batches", hashes)
            self.names = {"key": str(key["id"]), "signature": str(signed["id"]), "batch": str(batch["id"])}
            self._ready.set()
            await self._stop.wait()

    def send(self, case: Any) -> requests.Response:
        """Send a case as it is, but with a good token and, for a POST, a JWS over the very bytes that are sent; unless
        its headers are what is wrong with it."""
        prepared = self.session.prepare_request(requests.Request(**case.as_transport_kwargs(base_url=self.net.api)))
        if is_wrong(case, ParameterLocation.HEADER):
            return self.session.send(prepared, timeout=30)
        prepared.headers["Authorization"] = f"Bearer {TOKEN}"
        if prepared.method == "POST":
            body = prepared.body or b""
            data = body.encode() if isinstance(body, str) else body
            prepared.headers["Keymoot-Signature"] = self.net.sign(prepared.path_url.partition("?")[0], data)
        return self.session.send(prepared, timeout=30)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("served")) as made:
        yield made


def cases(served: Served, method: str, path: str, mode: GenerationMode) -> st.SearchStrategy[Any]:
    operation = served.schema[path][method.upper()]
    return operation.as_strategy(generation_mode=mode)


def is_wrong(case: Any, location: ParameterLocation) -> bool:
    """Whether this part of the case is what the document forbids."""
    component = case.meta.components.get(location)
    return component is not None and component.mode is GenerationMode.NEGATIVE


def without_fractions(value: Any) -> Any:
    """4.0 as 4: JSON Schema calls both integers, and cannot say what the document says in words."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: without_fractions(one) for name, one in value.items()}
    return [without_fractions(one) for one in value] if isinstance(value, list) else value


bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
# Other ones each time.
many = settings(bounded, max_examples=MANY_EXAMPLES, derandomize=False)
every_operation = pytest.mark.parametrize(
    ("method", "path"), [(one.method, one.path) for one in OPERATIONS], ids=[one.name for one in OPERATIONS]
)


def try_allowed(served: Served, method: str, path: str, how: settings) -> None:
    @how
    @given(case=cases(served, method, path, GenerationMode.POSITIVE), there=st.booleans())
    def check(case: Any, there: bool) -> None:
        if there:
            case.path_parameters.update(
                {name: served.names[name] for name in case.path_parameters if name in served.names}
            )
        case.body = without_fractions(case.body)
        response = served.send(case)
        case.validate_response(response, checks=[*CONFORMS, positive_data_acceptance])

    check()


def try_forbidden(served: Served, method: str, path: str, how: settings) -> None:
    @how
    @given(case=cases(served, method, path, GenerationMode.NEGATIVE))
    def check(case: Any) -> None:
        if "key" in (case.path_parameters or {}) and not is_wrong(case, ParameterLocation.PATH):
            case.path_parameters["key"] = served.names["key"]
        response = served.send(case)
        case.validate_response(response, checks=[*CONFORMS, negative_data_rejection])

    check()


@every_operation
def test_what_the_document_allows_is_answered_as_it_says(served: Served, method: str, path: str) -> None:
    try_allowed(served, method, path, bounded)


@every_operation
def test_what_the_document_forbids_is_refused_as_it_says(served: Served, method: str, path: str) -> None:
    try_forbidden(served, method, path, bounded)


@pytest.mark.slow
@pytest.mark.timeout(600)
@every_operation
def test_much_that_the_document_allows_is_answered_as_it_says(served: Served, method: str, path: str) -> None:
    try_allowed(served, method, path, many)


@pytest.mark.slow
@pytest.mark.timeout(600)
@every_operation
def test_much_that_the_document_forbids_is_refused_as_it_says(served: Served, method: str, path: str) -> None:
    try_forbidden(served, method, path, many)

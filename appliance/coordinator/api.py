"""The API: `/v1`. The coordinator only takes requests in and shows what came of them; enclaves judge them."""

from __future__ import annotations

import importlib.metadata
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import msgspec
from aiohttp import web

from appliance.api.approvals import ApprovalBody
from appliance.api.batches import SignatureBatch, SignatureBatchList
from appliance.api.models import Key, KeyList, KeyState, Readiness, Signature, SignatureList
from appliance.api.paths import COORDINATOR_PATH, OPENAPI_PATH, POOLS_PATH, READY_PATH, SIGNERS_PATH
from appliance.coordinator.admission import READER, SIGNED, Admission
from appliance.coordinator.approving import Approving
from appliance.coordinator.identity import Identity
from appliance.coordinator.keybook import CertifiedKey, KeyBook
from appliance.coordinator.limits import (
    BURST_PATTERN,
    CURSOR_PATTERN,
    DEFAULT_WAIT_S,
    MAX_BURST,
    MAX_WAIT_S,
    PAGE,
    WAIT_PATTERN,
)
from appliance.coordinator.network import Network, Shortage
from appliance.coordinator.network_views import show_health, show_pools, show_readiness, show_signers
from appliance.coordinator.openapi import OPERATIONS, describe
from appliance.coordinator.problems import Handler, NotFound, Unprocessable, answering_problems, problem
from appliance.coordinator.views import show_all, show_batch, show_key, show_signature, show_signed, summarise_batch
from appliance.coordinator.work import Work
from appliance.store import CoordinatorStore
from appliance.store.accepted import CONFLICT, OPEN, ExternalIdTaken
from appliance.store.batches import BatchRow
from appliance.store.keys import KeyRow
from appliance.store.rows import Page
from appliance.store.signatures import SignatureRow
from policies.errors import CallerError
from policies.json_strict import JsonInvalid, parse_as, parse_json
from policies.requests import KEY_ID_PATTERN, KEYS_PATH, HashBatch, KeyCreation, SigningBody
from policies.roster import Roster

QUERIES = {(one.method.upper(), one.path): one.queries for one in OPERATIONS}
UNFINISHED_KEY = (KeyState.PENDING,)

T = TypeVar("T")


class Api:
    """The handlers of the API."""

    def __init__(
        self,
        store: CoordinatorStore,
        roster: Roster,
        work: Work,
        keybook: KeyBook,
        network: Network,
        admission: Admission,
        identity: Identity,
        wall_clock: Callable[[], float],
    ) -> None:
        """`wall_clock`: Unix seconds."""
        self._store, self._roster, self._work = store, roster, work
        self._identity, self._wall_clock = identity, wall_clock
        self._approving = Approving(store, work, admission)
        self._keybook, self._network, self._admission = keybook, network, admission
        self._described = msgspec.json.encode(describe(importlib.metadata.version("keymoot")))

    def application(self) -> web.Application:
        """The aiohttp application."""
        problems = answering_problems(time.monotonic)
        app = web.Application(middlewares=[problems, self._admission.middleware(), _refuse_unknown_queries])
        app.add_routes(
            [
                web.post(KEYS_PATH, self._create_key),
                web.get(KEYS_PATH, self._list_keys),
                web.get(KEYS_PATH + "/{key}", self._get_key),
                web.post(KEYS_PATH + "/{key}/signatures", self._create_signature),
                web.get(KEYS_PATH + "/{key}/signatures", self._list_signatures),
                web.get(KEYS_PATH + "/{key}/signatures/{signature}", self._get_signature),
                web.get(KEYS_PATH + "/{key}/signatures/{signature}/approvals", self._show_wanted),
                web.post(KEYS_PATH + "/{key}/signatures/{signature}/approvals", self._approve),
                web.post(KEYS_PATH + "/{key}/signature-batches", self._create_batch),
                web.get(KEYS_PATH + "/{key}/signature-batches", self._list_batches),
                web.get(KEYS_PATH + "/{key}/signature-batches/{batch}", self._get_batch),
                web.get(KEYS_PATH + "/{key}/signature-batches/{batch}/approvals", self._show_wanted),
                web.post(KEYS_PATH + "/{key}/signature-batches/{batch}/approvals", self._approve),
                web.get("/v1/healthz", self._health),
                web.get("/healthz", self._health),
                web.get(OPENAPI_PATH, self._describe),
                web.get(READY_PATH, self._readiness),
                web.get(SIGNERS_PATH, self._list_signers),
                web.get(POOLS_PATH, self._list_pools),
                web.get(COORDINATOR_PATH, self._show_coordinator),
            ]
        )
        return app

    async def _create_key(self, request: web.Request) -> web.Response:
        wait_s = _wait_s(request)
        signed = request[SIGNED]
        body = _parse(signed.request.body, KeyCreation)
        if (body.signers, body.tolerate) != (self._roster.n, self._roster.tolerate):
            raise Unprocessable(f"this network has {self._roster.n} signers and tolerates {self._roster.tolerate}")
        request_id, new = await self._work.create_key(signed, body)
        await self._work.wait(request_id, wait_s)
        shown = show_key(self._key_row(request_id), self._roster)
        return _posted(shown, new, ended=shown.status not in UNFINISHED_KEY)

    async def _create_signature(self, request: web.Request) -> web.Response:
        wait_s = _wait_s(request)
        key = self._active_key(request)
        signed = request[SIGNED]
        body: SigningBody = _parse(signed.request.body, SigningBody)  # type: ignore[arg-type]
        accepted, new = await self._work.create_signature(signed, key, body)
        ended = await self._work.wait(accepted.id, wait_s)
        if new and ended is not None and ended.signature is not None:
            # It is on disk as well: what is known here needs not be read there.
            key_id = key.acknowledgement.key_id
            return _posted(show_signed(accepted, key_id, body, ended.signature), new, ended=True)
        return self._posted_row(self._store.signatures.get(accepted.id), new)

    async def _create_batch(self, request: web.Request) -> web.Response:
        wait_s = _wait_s(request)
        key = self._active_key(request)
        signed = request[SIGNED]
        batch_id, new = await self._work.create_batch(signed, key, _parse(signed.request.body, HashBatch))
        await self._work.wait(batch_id, wait_s)
        return self._posted_row(self._store.batches.get(batch_id), new)

    async def _get_batch(self, request: web.Request) -> web.Response:
        return _json(show_batch(self._batch_row(request)))

    async def _list_keys(self, request: web.Request) -> web.Response:
        page = self._store.keys.after(_cursor(request), PAGE)
        shown = show_all(page.rows, partial(show_key, roster=self._roster))
        return _json(KeyList(shown, _following(page)))

    async def _get_key(self, request: web.Request) -> web.Response:
        return _json(show_key(self._key_row(request.match_info["key"]), self._roster))

    async def _list_signatures(self, request: web.Request) -> web.Response:
        page = self._store.signatures.after(self._known_key_id(request), _cursor(request), PAGE)
        return _json(SignatureList(show_all(page.rows, show_signature), _following(page)))

    async def _list_batches(self, request: web.Request) -> web.Response:
        page = self._store.batches.after(self._known_key_id(request), _cursor(request), PAGE)
        return _json(SignatureBatchList(show_all(page.rows, summarise_batch), _following(page)))

    async def _get_signature(self, request: web.Request) -> web.Response:
        return _json(show_signature(self._signature_row(request)))

    async def _show_wanted(self, request: web.Request) -> web.Response:
        return _json(self._approving.show(self._approvable(request)))

    async def _approve(self, request: web.Request) -> web.Response:
        wait_s = _wait_s(request)
        row, signed = self._approvable(request), request[SIGNED]
        body = _parse(signed.request.body, ApprovalBody)
        await self._approving.approve(row, signed.client, body.approval)
        await self._work.wait(row.id, wait_s)
        return self._posted_row(self._approvable(request), new=False)

    def _approvable(self, request: web.Request) -> SignatureRow | BatchRow:
        return self._batch_row(request) if "batch" in request.match_info else self._signature_row(request)

    def _signature_row(self, request: web.Request) -> SignatureRow:
        row = self._store.signatures.get(request.match_info["signature"])
        if row is None or row.key_id != request.match_info["key"]:
            raise NotFound("there is no such signature of this key")
        return row

    def _batch_row(self, request: web.Request) -> BatchRow:
        row = self._store.batches.get(request.match_info["batch"])
        if row is None or row.key_id != request.match_info["key"]:
            raise NotFound("there is no such batch of this key")
        return row

    def _posted_row(self, row: SignatureRow | BatchRow | None, new: bool) -> web.Response:
        if row is None:
            raise NotFound("there is no such request")
        shown = show_batch(row) if isinstance(row, BatchRow) else show_signature(row)
        return _posted(shown, new, ended=row.state not in OPEN)

    async def _health(self, request: web.Request) -> web.Response:
        return _json(show_health(self._network, self._store.recovery.failure, details=READER in request))

    async def _readiness(self, request: web.Request) -> web.Response:
        failure, shortage = self._store.recovery.failure, self._network.shortage()
        if failure is not None:
            shortage = Shortage(failure.what, failure.remedy)
        if shortage is not None:
            told = f"{shortage.missing}: {shortage.remedy}" if READER in request else "a reader is told why"
            response = problem(503, "not-ready", "Not ready", told)
            response.headers["Retry-After"] = "2"
            return response
        return _json(show_readiness(self._network) if READER in request else Readiness())

    async def _describe(self, _: web.Request) -> web.Response:
        return web.Response(body=self._described, content_type="application/json")

    async def _list_signers(self, _: web.Request) -> web.Response:
        return _json(show_signers(self._roster, self._network))

    async def _list_pools(self, request: web.Request) -> web.Response:
        return _json(show_pools(self._network, _burst(request)))

    async def _show_coordinator(self, _: web.Request) -> web.Response:
        return _json(self._identity.show(self._network, self._store.awaiting_approvals(), self._wall_clock()))

    def _known_key_id(self, request: web.Request) -> str:
        key_id = request.match_info["key"]
        if self._store.keys.get(key_id) is None:
            raise NotFound("there is no key of this id")
        return key_id

    def _active_key(self, request: web.Request) -> CertifiedKey:
        key_id = request.match_info["key"]
        key = self._keybook.get(key_id) if re.match(KEY_ID_PATTERN, key_id) else None
        if key is None:
            raise NotFound("there is no active key of this id")
        return key

    def _key_row(self, name: str) -> KeyRow:
        """By key id, or by the id of its request, which is all there is before the key is active."""
        row = self._store.keys.get(name) or self._store.keys.requested(name)
        if row is None:
            raise NotFound("there is no such key")
        return row


@web.middleware
def _refuse_unknown_queries(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
    """A query parameter that the operation does not have, or that comes twice, is the caller's mistake."""
    if request.query_string:
        resource = request.match_info.route.resource
        method = "GET" if request.method == "HEAD" else request.method
        known = QUERIES.get((method, resource.canonical if resource is not None else ""), ())
        if len(set(request.query)) != len(request.query) or not set(request.query) <= set(known):
            takes = " and ".join(known) or "none"
            raise CallerError(f"query: this operation takes {takes}, each once at most")
    return handler(request)


def _parse(body: bytes, kind: type[T]) -> T:
    """As strictly as enclaves do. Raises `CallerError`; `Unprocessable` for what only its parts together make wrong."""
    try:
        return parse_as(body, kind)
    except (JsonInvalid, msgspec.DecodeError) as error:
        refusal: Exception = error
    try:
        # What is wrong with it as JSON is told first.
        parse_json(body)
    except JsonInvalid as error:
        refusal = error
    wrong = Unprocessable if isinstance(refusal.__cause__, ValueError) else CallerError
    raise wrong(f"body: {str(refusal)[:300]}")


def _cursor(request: web.Request) -> int:
    cursor = request.query.get("cursor", "0")
    if not CURSOR_PATTERN.fullmatch(cursor):
        raise CallerError("cursor: use the nextCursor of the page before")
    return int(cursor)


def _following(page: Page[T]) -> str | None:
    """The cursor of the next page; None where this one is the last."""
    return None if page.following is None else str(page.following)


def _wait_s(request: web.Request) -> float:
    text = request.query.get("wait")
    if text is None:
        return DEFAULT_WAIT_S
    if not WAIT_PATTERN.fullmatch(text) or float(text) > MAX_WAIT_S:
        raise CallerError(f"wait: seconds, 0 to {MAX_WAIT_S:.0f}")
    return float(text)


def _burst(request: web.Request) -> int | None:
    text = request.query.get("burst")
    if text is None:
        return None
    if not BURST_PATTERN.fullmatch(text) or int(text) > MAX_BURST:
        raise CallerError(f"burst: how many signatures at once, 0 to {MAX_BURST}")
    return int(text)


def _posted(shown: Key | Signature | SignatureBatch, new: bool, *, ended: bool) -> web.Response:
    """202 while it is under way; 201 for a new resource that has ended, 200 for one that was there already. Raises
    `ExternalIdTaken` where the signers know the external id as another request's."""
    if shown.reason is not None and shown.reason.code == CONFLICT:
        raise ExternalIdTaken(f"externalId {shown.external_id}: {shown.reason.message}")
    return _json(shown, 202 if not ended else 201 if new else 200)


def _json(shown: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(shown), content_type="application/json")

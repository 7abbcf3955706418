"""Requests for single signatures in the coordinator's store: what was asked, where each stands, and its signature."""

from __future__ import annotations

import msgspec
from sqlalchemy import Column, Index, LargeBinary, String, Table, select

from appliance.store.accepted import (
    UNFINISHED,
    Acceptance,
    Accepted,
    RequestState,
    accept,
    metadata,
    request_columns,
    request_row,
    restarting,
)
from appliance.store.database import Database
from appliance.store.progress import Progress
from appliance.store.rows import Page, fetch, fetch_page, parse_row, parse_rows
from appliance.store.statements import Statement, insertion, parameter
from appliance.store.writer import GroupCommitWriter

signatures = Table(
    "signatures",
    metadata,
    *request_columns(),
    Column("key_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("derivation_path", LargeBinary, nullable=False),
    Column("result", LargeBinary),
    Index("signatures_key", "key_id"),
)


class ListedSignatureRow(RequestState, frozen=True, kw_only=True):
    """A requested signature without the request, which can be 96 KiB. `result`: JSON of the `SignatureValue`;
    `derivation_path`: JSON array."""

    key_id: str
    kind: str
    derivation_path: bytes
    result: bytes | None


class SignatureRow(ListedSignatureRow, frozen=True, kw_only=True):
    """The same with what was asked, as in `RequestRow`."""

    path: str
    body: bytes
    jws: str


_RESTART_SIGNATURE = restarting(signatures)
_INSERT_SIGNATURE = insertion(signatures, without=("seq", "result"))
_SIGNATURE_BY_ID = Statement(select(signatures).where(signatures.c.id == parameter("row")))
_UNFINISHED_SIGNATURES = Statement(
    select(signatures).where(signatures.c.state.in_(UNFINISHED)).order_by(signatures.c.seq)
)
_SIGNATURES_AFTER = Statement(
    select(*(signatures.c[name] for name in ListedSignatureRow.__struct_fields__))
    .where(signatures.c.key_id == parameter("key"), signatures.c.seq > parameter("after"))
    .order_by(signatures.c.seq)
    .limit(parameter("most"))
)


class Signatures(Progress):
    """The signatures' part of `CoordinatorStore`. All reads raise `Unavailable`."""

    def __init__(self, database: Database, writer: GroupCommitWriter) -> None:
        super().__init__(database, writer, signatures)

    async def accept(self, request: Accepted, key_id: str, kind: str, derivation_path: tuple[int, ...]) -> Acceptance:
        """Commit a signing request. Returns and raises as `Keys.accept`."""
        values = {
            **request_row(request),
            "key_id": key_id,
            "kind": kind,
            "derivation_path": msgspec.json.encode(derivation_path),
        }
        return await self._writer.submit(
            lambda connection: accept(connection, request, _INSERT_SIGNATURE, _RESTART_SIGNATURE, values)
        )

    def get(self, signature_id: str) -> SignatureRow | None:
        """A signing request by its id."""
        rows = fetch(self._database, _SIGNATURE_BY_ID, {"row": signature_id})
        return parse_row(rows[0], SignatureRow, signature_id) if rows else None

    def after(self, key_id: str, seq: int, limit: int) -> Page[ListedSignatureRow]:
        """At most `limit` signing requests of a key that came after number `seq`, oldest first."""
        return fetch_page(self._database, _SIGNATURES_AFTER, {"key": key_id, "after": seq}, limit, ListedSignatureRow)

    def unfinished(self) -> list[SignatureRow]:
        """Signing requests that have not ended, and do not await approvals."""
        return parse_rows(fetch(self._database, _UNFINISHED_SIGNATURES, {}), SignatureRow)

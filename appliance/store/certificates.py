"""Certificates of keys in the signer's store, numbered as they came: what coordinators learn of each other's keys."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog
from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, String, Table, select
from sqlalchemy.dialects.sqlite import insert

from appliance.store.database import Database
from appliance.store.failures import Damaged
from appliance.store.rows import fetch
from appliance.store.statements import Statement, parameter
from enclave import wire

Certificate = tuple[wire.SignedAcknowledgement, ...]

log = structlog.get_logger()


def certificates_table(metadata: MetaData) -> Table:
    """The table, as part of `metadata`."""
    return Table(
        "certificates",
        metadata,
        Column("seq", Integer, primary_key=True),
        Column("key_id", String, nullable=False, unique=True),
        Column("certificate", LargeBinary, nullable=False),
    )


class Certificates:
    """Public: everything here was shown to a coordinator."""

    def __init__(self, database: Database, table: Table) -> None:
        self._database = database
        self._insert = insert(table).on_conflict_do_nothing()
        self._known = Statement(
            select(table.c.seq).where(table.c.seq == parameter("seq"), table.c.key_id == parameter("key_id"))
        )
        self._after = Statement(
            select(table.c.seq, table.c.certificate)
            .where(table.c.seq > parameter("seq"))
            .order_by(table.c.seq)
            .limit(parameter("limit"))
        )

    def write(self, connection: Connection, certificates: Sequence[Certificate]) -> None:
        """Keep them in the transaction of `connection`; one that is there stays as it is."""
        if certificates:
            connection.execute(
                self._insert,
                [
                    {"key_id": each[0].acknowledgement.key_id, "certificate": encode_certificate(each)}
                    for each in certificates
                ],
            )

    def after(self, seq: int, key_id: str, limit: int) -> tuple[int, list[tuple[int, Certificate]]]:
        """At most `limit` certificates after number `seq`, which has to be that of `key_id`: else from the beginning.
        Returns the number after which they come, too. Raises `Unavailable`."""
        if seq and not fetch(self._database, self._known, {"seq": seq, "key_id": key_id}):
            seq = 0
        found = []
        for row in fetch(self._database, self._after, {"seq": seq, "limit": limit}):
            try:
                found.append((row["seq"], decode_certificate(row["certificate"])))
            except Damaged as error:
                log.error("row-damaged", row=row["seq"], reason=str(error)[:512])
        return seq, found


def encode_certificate(certificate: Certificate) -> bytes:
    """As the stores keep it."""
    return msgspec.msgpack.encode([wire.encode(signed) for signed in certificate])


def decode_certificate(data: bytes) -> Certificate:
    """What `encode_certificate` made. Raises `Damaged`: it was verified before it was stored."""
    try:
        parts = msgspec.msgpack.decode(data, type=list[bytes])
        certificate = tuple(wire.decode(part, wire.SignedAcknowledgement) for part in parts)
    except (msgspec.DecodeError, wire.Malformed, TypeError) as error:
        raise Damaged("a key's certificate", str(error)) from None
    if not certificate:
        raise Damaged("a key's certificate", "it is empty")
    return certificate

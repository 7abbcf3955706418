"""Certificates of keys in the signer's store, numbered as they came: what coordinators learn of each other's keys."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, String, Table, bindparam, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError

from appliance.store.database import Database
from appliance.store.failures import store_failure
from enclave import wire
from policies.errors import Bug

Certificate = tuple[wire.SignedAcknowledgement, ...]


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
        self._known = select(table.c.seq).where(table.c.seq == bindparam("seq"), table.c.key_id == bindparam("key_id"))
        self._after = (
            select(table.c.seq, table.c.certificate)
            .where(table.c.seq > bindparam("seq"))
            .order_by(table.c.seq)
            .limit(bindparam("limit"))
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
        reader = self._database.reader
        try:
            if seq and reader.execute(self._known, {"seq": seq, "key_id": key_id}).one_or_none() is None:
                seq = 0
            rows = reader.execute(self._after, {"seq": seq, "limit": limit}).all()
        except DBAPIError as error:
            raise store_failure(self._database.path, error) from error
        return seq, [(row.seq, decode_certificate(row.certificate)) for row in rows]


def encode_certificate(certificate: Certificate) -> bytes:
    """As the stores keep it."""
    return msgspec.msgpack.encode([wire.encode(signed) for signed in certificate])


def decode_certificate(data: bytes) -> Certificate:
    """What `encode_certificate` made. Raises `Bug`: it was verified before it was stored."""
    try:
        parts = msgspec.msgpack.decode(data, type=list[bytes])
        return tuple(wire.decode(part, wire.SignedAcknowledgement) for part in parts)
    except (msgspec.DecodeError, wire.Malformed) as error:
        raise Bug(f"a stored certificate cannot be read: {error}") from error

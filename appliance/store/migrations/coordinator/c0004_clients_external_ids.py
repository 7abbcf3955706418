"""External ids are a client's own: the client that signed a request is part of what is unique."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from policies.signed_requests import claimed_client

revision = "c0004"
down_revision = "c0003"

TABLES = ("keys", "signatures", "signature_batches")


def upgrade() -> None:
    """Name the client behind each external id that stands for a request: as signers do."""
    connection = op.get_bind()
    for name in TABLES:
        table = sa.table(name, sa.column("id"), sa.column("external_id"), sa.column("jws"))
        held = ~table.c.external_id.contains("#") & ~table.c.external_id.startswith("@")
        for row in connection.execute(sa.select(table).where(held)).fetchall():
            client = claimed_client(row.jws)
            if client:
                owned = {"external_id": f"{row.external_id}/{client}"}
                connection.execute(sa.update(table).where(table.c.id == row.id).values(owned))
                names = sa.table("external_ids", sa.column("id"), sa.column("external_id"))
                connection.execute(sa.update(names).where(names.c.id == row.id).values(owned))

"""Which signing requests await approvals: by client, and by when they end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from policies.signed_requests import claimed_client, claimed_expiry_s

revision = "c0008"
down_revision = "c0007"


def upgrade() -> None:
    """A table beside the requests', with those that await some now."""
    awaiting = op.create_table(
        "awaiting",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("client", sa.String, nullable=False),
        sa.Column("expires_s", sa.Integer, nullable=False),
    )
    op.create_index("awaiting_client", "awaiting", ["client"])
    op.create_index("awaiting_expires_s", "awaiting", ["expires_s"])
    connection = op.get_bind()
    requests = sa.table("signatures", sa.column("id"), sa.column("state"), sa.column("jws"))
    for row in connection.execute(sa.select(requests).where(requests.c.state == "AwaitingApprovals")).fetchall():
        facts = {"id": row.id, "client": claimed_client(row.jws), "expires_s": claimed_expiry_s(row.jws)}
        connection.execute(sa.insert(awaiting).values(facts))

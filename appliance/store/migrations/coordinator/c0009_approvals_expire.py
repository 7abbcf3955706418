"""Until when an approval counts, so that it can go then."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from policies.signed_requests import claimed_expiry_s

revision = "c0009"
down_revision = "c0008"


def upgrade() -> None:
    """Another table in the place of the one before, with all that it held."""
    op.rename_table("approvals", "approvals_before")
    approvals = op.create_table(
        "approvals",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("approver", sa.String, primary_key=True),
        sa.Column("jws", sa.String, nullable=False),
        sa.Column("expires_s", sa.Integer, nullable=False),
    )
    op.create_index("approvals_expires_s", "approvals", ["expires_s"])
    before = sa.table("approvals_before", sa.column("id"), sa.column("approver"), sa.column("jws"))
    connection = op.get_bind()
    for row in connection.execute(sa.select(before)).fetchall():
        facts = {"id": row.id, "approver": row.approver, "jws": row.jws, "expires_s": claimed_expiry_s(row.jws)}
        connection.execute(sa.insert(approvals).values(facts))
    op.drop_table("approvals_before")

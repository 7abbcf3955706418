"""Approvals of signing requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c0007"
down_revision = "c0006"


def upgrade() -> None:
    """A table beside the requests'."""
    op.create_table(
        "approvals",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("approver", sa.String, primary_key=True),
        sa.Column("jws", sa.String, nullable=False),
    )

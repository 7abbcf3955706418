"""Requests that wait for gates: which ones, and until when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c0005"
down_revision = "c0004"


def upgrade() -> None:
    """A table beside the requests'."""
    op.create_table(
        "waiting",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("committee", sa.LargeBinary, nullable=False),
        sa.Column("until", sa.LargeBinary, nullable=False),
    )

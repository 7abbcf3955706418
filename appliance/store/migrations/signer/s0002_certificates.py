"""Certificates of keys, for coordinators that did not make them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "s0002"
down_revision = "s0001"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "certificates",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("key_id", sa.String, nullable=False, unique=True),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
    )

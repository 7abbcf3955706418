"""How far this coordinator has read each signer's list of keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c0003"
down_revision = "c0002"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "key_sources",
        sa.Column("signer", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("key_id", sa.String, nullable=False),
    )

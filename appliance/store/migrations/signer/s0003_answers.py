"""The newest answer under each request's name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "s0003"
down_revision = "s0002"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "answers",
        sa.Column("name", sa.LargeBinary, primary_key=True),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.Column("at_s", sa.Integer, nullable=False),
    )

"""Batches of signatures."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c0002"
down_revision = "c0001"


def upgrade() -> None:
    """Create the table of batches and its indices."""
    op.create_table(
        "signature_batches",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("external_id", sa.String, nullable=False, unique=True),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("jws", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("created_at_ms", sa.Integer, nullable=False),
        sa.Column("reason_code", sa.String, nullable=False),
        sa.Column("reason_message", sa.String, nullable=False),
        sa.Column("reason_signer", sa.String, nullable=False),
        sa.Column("key_id", sa.String, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("result", sa.LargeBinary),
    )
    op.create_index("ix_signature_batches_state", "signature_batches", ["state"])
    op.create_index("signature_batches_key", "signature_batches", ["key_id"])

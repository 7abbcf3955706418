"""Keys, signatures and external ids."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "c0001"
down_revision = None


def _request_columns() -> list[sa.Column[Any]]:
    return [
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
    ]


def upgrade() -> None:
    """Create all tables and indices."""
    op.create_table(
        "keys",
        *_request_columns(),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("key_id", sa.String, unique=True),
        sa.Column("certificate", sa.LargeBinary),
        sa.Column("activated", sa.Integer, nullable=False),
    )
    op.create_index("ix_keys_state", "keys", ["state"])
    op.create_table(
        "signatures",
        *_request_columns(),
        sa.Column("key_id", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("derivation_path", sa.LargeBinary, nullable=False),
        sa.Column("result", sa.LargeBinary),
    )
    op.create_index("ix_signatures_state", "signatures", ["state"])
    op.create_index("signatures_key", "signatures", ["key_id"])
    op.create_table(
        "external_ids",
        sa.Column("external_id", sa.String, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("id", sa.String, nullable=False),
    )

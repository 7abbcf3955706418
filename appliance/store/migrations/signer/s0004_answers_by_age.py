"""Answers are found by their age: a row that is written again keeps its place in the table."""

from __future__ import annotations

from alembic import op

revision = "s0004"
down_revision = "s0003"


def upgrade() -> None:
    """Index the time of the last writing."""
    op.create_index("answers_at_s", "answers", ["at_s"])

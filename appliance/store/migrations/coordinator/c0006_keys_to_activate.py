"""Which keys some signer cannot use yet, without reading all that everybody can."""

from __future__ import annotations

from alembic import op

revision = "c0006"
down_revision = "c0005"


def upgrade() -> None:
    """Create the index."""
    op.create_index("keys_activated", "keys", ["activated", "key_id"])

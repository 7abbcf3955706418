"""What processes keep on disk: one SQLite file each, one group-commit writer, migrations run at start."""

from appliance.store.coordinator import CoordinatorStore
from appliance.store.signer import SignerStore

__all__ = ["CoordinatorStore", "SignerStore"]

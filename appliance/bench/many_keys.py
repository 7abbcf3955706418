"""Stores with as many keys as a large custodian has, to measure whether their number slows a signature down.

Some keys are made by the signers; all others are copies of one of them under other names, written into the stopped
stores: as large on disk and in every index, and nobody can sign with one, since what is sealed names its key.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.localnet import LocalNet
from appliance.localnet.files import COORDINATOR

# Made by the signers, and used in turn.
REAL_KEYS = 64
AT_ONCE = 4
SIGNER_STORE, COORDINATOR_STORE = "state/signer.db", "state/coordinator.db"

Progress = Callable[[str], None]


def make_keys(network: LocalNet, keys: int, progress: Progress) -> list[str]:
    """Bring every store of a running network to so many `keys`. Returns the ids of those that sign. Raises
    `KeymootError`."""
    made = min(keys, REAL_KEYS)
    progress(f"making {made} keys")
    ids = asyncio.run(_create(network, made))
    if keys > made:
        progress(f"copying {keys - made:,} keys into the stores")
        names = [name for name in network.processes if name.partition("-")[0] in (COORDINATOR, "signer")]
        for name in names:
            network.processes[name].stop()
        _copy(network, ids[0], made, keys)
        for name in names:
            network.processes[name].start()
        for name in names:
            network.wait_ready(name)
    return ids


async def _create(network: LocalNet, count: int) -> list[str]:
    numbers = iter(range(count))
    ids: list[str] = []

    async def work() -> None:
        for number in numbers:
            key = await client.create_key(f"bench/{number}", f"bench-key-{number}")
            ids.append(key.id)

    async with network.async_client() as client, asyncio.TaskGroup() as group:
        for _ in range(min(count, AT_ONCE)):
            group.create_task(work())
    return ids


def _copy(network: LocalNet, key_id: str, first: int, keys: int) -> None:
    """Copy the key `key_id` under `keys - first` other names into each store."""
    names = [_name(number) for number in range(first, keys)]
    ends = {
        index: _into_signer(network.plan.signer(index) / SIGNER_STORE, key_id, names) for index in network.plan.indices
    }
    for name in network.plan.coordinator_names:
        _into_coordinator(network.root / name / COORDINATOR_STORE, key_id, names, ends)


def _name(number: int) -> str:
    return "key_" + hashlib.sha256(number.to_bytes(8, "big")).hexdigest()[:32]


def _into_signer(path: Path, key_id: str, names: list[str]) -> tuple[int, str]:
    """Returns number and id of the last key of the signer's list."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        values = [{"copy": name, "key": key_id} for name in names]
        database.executemany(
            "INSERT INTO records SELECT kind, :copy, version, sealed FROM records WHERE kind = 'key' AND name = :key",
            values,
        )
        database.executemany(
            "INSERT INTO certificates SELECT NULL, :copy, certificate FROM certificates WHERE key_id = :key", values
        )
        seq, last = database.execute("SELECT seq, key_id FROM certificates ORDER BY seq DESC LIMIT 1").fetchone()
    return int(seq), str(last)


def _into_coordinator(path: Path, key_id: str, names: list[str], ends: Mapping[int, tuple[int, str]]) -> None:
    """`ends`: by signer, what `_into_signer` returned: all that it lists is known."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(keys)")]
        changed = {"seq": "NULL", "id": "'kreq_' || :copy", "external_id": "'@' || :copy", "key_id": ":copy"}
        values = ", ".join(changed.get(column, column) for column in columns)
        database.executemany(
            f"INSERT INTO keys SELECT {values} FROM keys WHERE key_id = :key",  # noqa: S608 - our own columns
            [{"copy": name, "key": key_id} for name in names],
        )
        database.executemany(
            "INSERT OR REPLACE INTO key_sources (signer, seq, key_id) VALUES (?, ?, ?)",
            [(index, *end) for index, end in ends.items()],
        )

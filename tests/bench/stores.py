"""What signer and coordinator ask of their stores for a signature, with few and with many keys in them.

`python -m tests.bench.stores` prints medians in microseconds, the keys asked for at random.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from appliance.store import CoordinatorStore, SignerStore
from appliance.store.accepted import Accepted
from appliance.store.keys import LearnedKey
from enclave import wire

KEYS = (10, 100_000)
AT_ONCE = 1000
ROUNDS = 2000
SEALED_BYTES = 1000
CERTIFICATE_BYTES = 1500


def key_id(number: int) -> str:
    return f"key_{number:032x}"


def median_us(call: Callable[[int], object], keys: int) -> float:
    """The median of `ROUNDS` calls with numbers below `keys`."""
    times: list[int] = []
    for number in random.choices(range(keys), k=ROUNDS):
        start = time.perf_counter_ns()
        call(number)
        times.append(time.perf_counter_ns() - start)
    return round(statistics.median(times) / 1000, 1)


async def fill_signer(store: SignerStore, first: int, keys: int) -> None:
    for start in range(first, keys, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, keys))
        await store.put_records([wire.Record("key", key_id(n), 3, os.urandom(SEALED_BYTES)) for n in numbers])


async def fill_coordinator(store: CoordinatorStore, first: int, keys: int) -> None:
    for start in range(first, keys, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, keys))
        new = [LearnedKey(key_id(n), "bench/many", os.urandom(CERTIFICATE_BYTES)) for n in numbers]
        await store.keys.learn(1, new, (), (numbers[-1] + 1, key_id(numbers[-1])), 0)


async def signature_us(store: CoordinatorStore, keys: int) -> float:
    """The median time from acceptance to the committed result."""
    times: list[int] = []
    for number in random.choices(range(keys), k=ROUNDS // 4):
        name = os.urandom(16).hex()
        request = Accepted(
            id=f"sig_{name}", external_id=name, path="/", body=b"{}", jws="", created_at_ms=0, digest=bytes(32)
        )
        start = time.perf_counter_ns()
        await store.signatures.accept(request, key_id(number), "Hash", ())
        await store.signatures.finish(request.id, "Signed", b"{}")
        times.append(time.perf_counter_ns() - start)
    return round(statistics.median(times) / 1000, 1)


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        signer = SignerStore.open(Path(directory) / "signer.db")
        coordinator = CoordinatorStore.open(Path(directory) / "coordinator.db")
        filled = 0
        for keys in KEYS:
            await fill_signer(signer, filled, keys)
            await fill_coordinator(coordinator, filled, keys)
            filled = keys
            numbers = {
                "signer, sealed record": median_us(lambda n: signer.record("key", key_id(n)), keys),
                "coordinator, key": median_us(lambda n: coordinator.keys.get(key_id(n)), keys),
                "coordinator, signature accepted and finished": await signature_us(coordinator, keys),
            }
            print(f"{keys} keys:", ", ".join(f"{name} {value}" for name, value in numbers.items()))
        await signer.close()
        await coordinator.close()


if __name__ == "__main__":
    asyncio.run(main())

"""What a network carries: clients in a closed loop, each sending its next request when the last one is answered.

As in production: real processes, TLS, HSMs, signed requests, signed answers of every gate, audit and fsync on; the
clients, every process of the network and every gate share this machine.
"""

from __future__ import annotations

import asyncio
import datetime
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import msgspec

from appliance import eventloop
from appliance.api.batches import BatchState
from appliance.api.client import AsyncClient
from appliance.bench.many_keys import make_keys
from appliance.localnet import LocalNet
from appliance.localnet.process import cpu_seconds
from policies.errors import Unavailable
from policies.requests import Hash, HashBatch

WARM_UP_REQUESTS = 32
POOL_LOW, POOL_HIGH, POOL_BATCH = 5_000, 20_000, 10_000

Progress = Callable[[str], None]
Request = Callable[[AsyncClient, str], Coroutine[object, object, int]]


class LoadResult(msgspec.Struct, frozen=True):
    """`p50_ms`, `p99_ms`, `worst_ms`: of whole requests, as a client sees them. `hashes`: hashes in a request. `keys`:
    in each store. `refills`: batches of presignatures made meanwhile; `refill_p99_ms` of the `refill_requests` that
    were under way at the same time as one, `idle_p99_ms` of the others (0 for none). `cpu_ms_per_signature`: user and
    system time by process, the clients' own among them."""

    signers: int
    tolerate: int
    clients: int
    hashes: int
    keys: int
    seconds: float
    requests: int
    signatures_per_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    refills: int
    refill_requests: int
    refill_p99_ms: float
    idle_p99_ms: float
    cpu_ms_per_signature: dict[str, float]


@dataclass
class Load:
    """What clients have seen: begin and end of each request (Unix seconds), and how many signatures came of them."""

    requests: list[tuple[float, float]] = field(default_factory=list)
    signatures: int = 0

    def quantile_ms(self, quantile: float, which: Callable[[tuple[float, float]], bool] = lambda _: True) -> float:
        """Of the durations of the requests of `which` it holds; 0 for none."""
        ordered_s = sorted(ended - begun for begun, ended in filter(which, self.requests))
        if not ordered_s:
            return 0.0
        return round(ordered_s[min(int(len(ordered_s) * quantile), len(ordered_s) - 1)] * 1000, 2)


def run(
    signers: int, tolerate: int, clients: int, seconds: float, hashes: int, keys: int, refill: bool, progress: Progress
) -> LoadResult:
    """Sign for so many `seconds`. `hashes`: 0 for single requests, else hashes in each batch. `keys`: in each store.
    `refill`: start with pools so low that batches of 10,000 presignatures are made meanwhile. Raises
    `KeymootError`."""
    progress(f"setting up {signers} signers, each with its gate")
    pool = (POOL_HIGH, 2 * POOL_HIGH, POOL_BATCH) if refill else (POOL_LOW, POOL_HIGH, POOL_BATCH)
    with LocalNet(signers, tolerate, pool=pool) as network:
        if not refill:
            network.wait_for_pool(POOL_HIGH)
        ids = make_keys(network, keys, progress)
        network.wait_for_pool(POOL_BATCH)
        return eventloop.run(measure(network, ids, clients, seconds, hashes, progress, keys=keys))


async def measure(
    network: LocalNet,
    ids: Sequence[str],
    clients: int,
    seconds: float,
    hashes: int,
    progress: Progress,
    *,
    keys: int = 1,
) -> LoadResult:
    """See `run`, for a network whose pools are full."""
    request = _batches_of(hashes) if hashes else _single
    async with network.async_client() as client:
        progress("warming up")
        await _closed_loop(client, ids, request, clients, lambda done: done < max(clients, WARM_UP_REQUESTS))
        progress(f"signing for {seconds:g} s, {clients} clients")
        cpu_before_s, begun_s = _cpu_s(network), time.time()
        own_before_s, started_s = time.process_time(), time.monotonic()
        load = await _closed_loop(client, ids, request, clients, lambda _: time.monotonic() < started_s + seconds)
        wall_s = time.monotonic() - started_s
        own_s = time.process_time() - own_before_s
        cpu_s = {name: after - cpu_before_s[name] for name, after in _cpu_s(network).items()}
    refills = [(start_s, end_s) for start_s, end_s in _refills(network) if end_s > begun_s]

    def beside_refill(request: tuple[float, float]) -> bool:
        return any(request[0] < end_s and start_s < request[1] for start_s, end_s in refills)

    return LoadResult(
        signers=network.plan.signers,
        tolerate=network.plan.tolerate,
        clients=clients,
        hashes=max(hashes, 1),
        keys=keys,
        seconds=round(wall_s, 2),
        requests=len(load.requests),
        signatures_per_s=round(load.signatures / wall_s, 1),
        p50_ms=load.quantile_ms(0.5),
        p99_ms=load.quantile_ms(0.99),
        worst_ms=load.quantile_ms(1.0),
        refills=len(refills),
        refill_requests=sum(map(beside_refill, load.requests)),
        refill_p99_ms=load.quantile_ms(0.99, beside_refill),
        idle_p99_ms=load.quantile_ms(0.99, lambda request: not beside_refill(request)),
        cpu_ms_per_signature={
            name: round(used_s / load.signatures * 1000, 3) for name, used_s in {**cpu_s, "clients": own_s}.items()
        },
    )


async def _closed_loop(
    client: AsyncClient, ids: Sequence[str], request: Request, clients: int, more: Callable[[int], bool]
) -> Load:
    """Every client asks with the keys in turn; `more(requests begun)` says when to end."""
    load, begun, turn = Load(), 0, cycle(ids)

    async def work() -> None:
        nonlocal begun
        while more(begun):
            begun += 1
            wall_s, started_s = time.time(), time.perf_counter()
            made = await request(client, next(turn))
            load.requests.append((wall_s, wall_s + time.perf_counter() - started_s))
            load.signatures += made

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(work())
    return load


async def _single(client: AsyncClient, key_id: str) -> int:
    await client.sign(key_id, Hash("0x" + secrets.token_hex(32), f"bench-{secrets.token_hex(8)}"))
    return 1


def _batches_of(hashes: int) -> Request:
    async def request(client: AsyncClient, key_id: str) -> int:
        body = HashBatch(tuple("0x" + secrets.token_hex(32) for _ in range(hashes)), f"bench-{secrets.token_hex(8)}")
        ended = await client.sign_batch(key_id, body)
        if ended.status is not BatchState.SIGNED:
            raise Unavailable(f"a batch ended as {ended.status}", "see the coordinator's log")
        return hashes

    return request


def _cpu_s(network: LocalNet) -> dict[str, float]:
    """User and system time of each process and its children so far."""
    return {name: cpu_seconds(process.pid) for name, process in network.processes.items()}


def _refills(network: LocalNet) -> list[tuple[float, float]]:
    """Begin and end (Unix seconds) of each batch of presignatures that the coordinator's log tells of."""
    found = []
    for line in network.processes["coordinator"].log.read_bytes().splitlines():
        if b'"presigned"' in line:
            told = msgspec.json.decode(line, type=_Presigned)
            found.append((told.timestamp.timestamp() - told.ms / 1000, told.timestamp.timestamp()))
    return found


class _Presigned(msgspec.Struct, frozen=True):
    """What is read of the line that tells of a batch."""

    timestamp: datetime.datetime
    ms: float

"""What the hops of one signature cost without Keymoot: `python -m tests.bench.hops [CLIENTS [SECONDS]]`.

The same processes (a client, a coordinator, three signers, enclaves and gates), the same hops over the same libraries
(aiohttp on uvloop with TLS 1.3, a Unix socket, SQLite with one writer that commits in groups), messages of the same
sizes; and of the work only the libraries' calls that no implementation can leave out: the client's signature made and
verified everywhere, the HSM's unsealing, the authorizations, one multiplication of a point, the result verified. No
policy, audit, log, metrics, bounds, state or checks. Its rate is what this machine could do at this hour; `keymoot
bench load` beside it says what Keymoot adds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, TCPConnector

from appliance import eventloop, pki
from appliance.localnet.files import free_ports
from appliance.tls import client_context
from tests.bench.hops.processes import SIGNERS, coordinator, enclave, gate, sign, signer

BODY_BYTES = 200


async def client(root: Path, port: int, clients: int, seconds: float) -> list[float]:
    """The latencies of a closed loop, in seconds."""
    times: list[float] = []
    number = 0
    end_s = time.monotonic() + seconds

    async def work(http: ClientSession) -> None:
        nonlocal number
        while time.monotonic() < end_s:
            number += 1
            started_s = time.monotonic()
            body = json.dumps({"number": number, "padding": "x" * BODY_BYTES}).encode()
            headers = {"signature": sign(hashlib.sha256(body).digest()).hex()}
            async with http.post(f"https://127.0.0.1:{port}/signatures", data=body, headers=headers) as got:
                assert got.status == 200
                await got.json(content_type=None)
            times.append(time.monotonic() - started_s)

    connector = TCPConnector(ssl=client_context(root / "ca.crt"), limit=clients)
    async with ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(work(http))
    return times


def start(work: Callable[..., Any], *args: Any) -> multiprocessing.Process:
    """`work` in a process of its own; a coroutine on an event loop."""

    def run() -> None:
        if asyncio.iscoroutinefunction(work):
            eventloop.run(work(*args))
        else:
            work(*args)

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    return process


def cpu_s(pid: int) -> float:
    """User and system time of a process, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the rate, the latencies and the CPU of each process for one signature."""
    clients, seconds = int((sys.argv[1:2] or ["16"])[0]), float((sys.argv[2:3] or ["10"])[0])
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        authority = pki.make_ca("hops")
        (root / "ca.crt").write_bytes(authority.certificate_pem)
        pki.issue(authority, "hops", pki.Purpose.SERVER, addresses=("127.0.0.1",)).write(
            root / "server.crt", root / "server.key"
        )
        ports = free_ports(1 + SIGNERS)
        processes = {"coordinator": start(coordinator, root, ports[0])}
        for index in range(SIGNERS):
            processes[f"gate-{index + 1}"] = start(gate, root, ports[1 + index])
            processes[f"enclave-{index + 1}"] = start(enclave, root, index)
        _await(lambda: all((root / f"enclave-{index}").exists() for index in range(SIGNERS)))
        for index in range(SIGNERS):
            processes[f"signer-{index + 1}"] = start(signer, root, index, ports[0], ports[1 + index])
        _await(lambda: _connected(root))
        eventloop.run(client(root, ports[0], clients, 2))
        before_s, own_before_s = {name: cpu_s(process.pid) for name, process in processes.items()}, time.process_time()
        times = eventloop.run(client(root, ports[0], clients, seconds))
        used_s = {name: cpu_s(process.pid) - before_s[name] for name, process in processes.items()}
        used_s["clients"] = time.process_time() - own_before_s
        for process in processes.values():
            process.terminate()
    ranked = sorted(times)
    print(f"{len(times) / seconds:.1f} signatures/s, p50 {statistics.median(ranked) * 1000:.1f} ms,", end=" ")
    print(f"p99 {ranked[int(len(ranked) * 0.99)] * 1000:.1f} ms, {clients} clients")
    for name, used in sorted(used_s.items()):
        print(f"{name:12} {used / len(times) * 1000:6.2f} ms CPU a signature")
    print(f"{'all':12} {sum(used_s.values()) / len(times) * 1000:6.2f} ms")


def _await(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end_s:
            raise SystemExit("the processes do not start")
        time.sleep(0.05)


def _connected(root: Path) -> bool:
    return len(list(root.glob("connected-*"))) == SIGNERS


if __name__ == "__main__":
    main()

"""Full disks under real processes: clear refusals, nothing acknowledged lost, no share without its decision record on
disk, and service again by itself once there is room."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.api.client import ApiError, AsyncClient, CertifiedKey, Failed
from appliance.localnet import LocalNet
from enclave import wire
from policies.errors import KeymootError, Unavailable
from policies.requests import Hash
from tests.fakes.disks import Disk, small_disk

POOL = (100, 300, 100)
STORE_KIB, LOG_KIB = 6144, 4096
CALLERS = 4

pytestmark = pytest.mark.timeout(170)


@dataclass
class Machine:
    """A network whose coordinator, first signer and logs have a small disk each."""

    net: LocalNet
    coordinator: Disk
    signer: Disk
    logs: Disk
    key: CertifiedKey = field(init=False)

    def events(self, process: str) -> list[dict[str, object]]:
        """What a process has logged, whole lines only."""
        lines = self.net.log(process).read_text(errors="replace").splitlines()
        found = []
        for line in lines:
            with suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def count(self, process: str, event: str) -> int:
        return sum(one.get("event") == event for one in self.events(process))

    def wait_ready(self) -> None:
        def ready() -> bool:
            health = self.net.health()
            return health is not None and health.status == "ready"

        self.net.wait_for(ready, "the network to be ready again")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with ExitStack() as stack:
        net = LocalNet(pool=POOL)
        stack.callback(net.close)
        net.write()
        disks = [
            stack.enter_context(small_disk(path, size))
            for path, size in (
                (net.root / "coordinator" / "state", STORE_KIB),
                (net.plan.signer(1) / "state", STORE_KIB),
                (net.root / "logs", LOG_KIB),
            )
        ]
        net.start()
        net.wait_for_pool(POOL[0])
        made = Machine(net, *disks)
        with net.client() as client:
            made.key = client.create_key("test/disk", "disk-key")
        yield made
        for process in net.processes.values():
            process.stop()


Call = Callable[[AsyncClient, str], Awaitable[object]]


@dataclass
class Load:
    """Callers that do `call` again and again, each time under another external id, until told to stop."""

    client: AsyncClient
    call: Call
    stopped: bool = False
    done: list[str] = field(default_factory=list)
    failed: list[KeymootError] = field(default_factory=list)

    async def run(self) -> None:
        await asyncio.gather(*(self._repeat() for _ in range(CALLERS)))

    async def _repeat(self) -> None:
        while not self.stopped:
            name = "disk-" + secrets.token_hex(8)
            try:
                await self.call(self.client, name)
                self.done.append(name)
            except (ApiError, Failed, Unavailable) as error:
                self.failed.append(error)
                await asyncio.sleep(0.05)

    async def do_more(self) -> None:
        """Until some more are done than now."""
        target = len(self.done) + 2 * CALLERS
        async with asyncio.timeout(60):
            while len(self.done) < target:  # noqa: ASYNC110 - counted by other tasks
                await asyncio.sleep(0.02)

    async def until_not_ready(self) -> str:
        """Until the coordinator says that nothing can be signed, and why."""
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.client.readiness()
                except ApiError as error:
                    return str(error)
                await asyncio.sleep(0.02)


@dataclass
class Outcome:
    """`why`: what the coordinator said of itself meanwhile. `late`: how a request ended that came meanwhile."""

    load: Load
    why: str
    late: BaseException | None


def run_load(machine: Machine, disk: Disk, call: Call, late: Call) -> Outcome:
    """Callers at work, `disk` full meanwhile, then with room again. What was done stays done."""

    async def run() -> Outcome:
        async with machine.net.async_client() as client:
            load = Load(client, call)
            running = asyncio.create_task(load.run())
            await load.do_more()
            disk.fill()
            why = await load.until_not_ready()
            assert (await client.get_key(machine.key.id)).id == machine.key.id
            come_late = asyncio.ensure_future(late(client, "late-" + secrets.token_hex(8)))
            await asyncio.wait([come_late], timeout=1)
            disk.free()
            await asyncio.wait([come_late])
            await load.do_more()
            load.stopped = True
            await running
            for name in load.done:
                await call(client, name)
        machine.wait_ready()
        return Outcome(load, why, come_late.exception())

    return asyncio.run(run())


def hash_of(name: str) -> Hash:
    """The same body for the same external id."""
    return Hash("0x" + hashlib.sha256(name.encode()).hexdigest(), name)


def test_a_full_coordinator_refuses_says_why_and_returns_by_itself(machine: Machine) -> None:
    failed, back = machine.count("coordinator", "store-failed"), machine.count("coordinator", "store-works-again")
    outcome = run_load(
        machine,
        machine.coordinator,
        lambda client, name: client.sign(machine.key.id, hash_of(name), timeout_s=40),
        lambda client, name: client.create_key("test/disk", name),
    )
    assert "the disk is full: free space, work goes on by itself" in outcome.why
    assert outcome.late is None, "the client asks again after a 503, and there is room by then"
    assert [e for e in outcome.load.failed if not isinstance(e, ApiError) or e.status != 503] == []
    assert machine.count("coordinator", "store-failed") == failed + 1
    assert machine.count("coordinator", "store-works-again") == back + 1
    assert unfinished(machine) == 0


@pytest.mark.parametrize("making", ["signatures", "keys"])
def test_a_full_signer_returns_by_itself_and_no_share_went_without_its_record(machine: Machine, making: str) -> None:
    failed, back = machine.count("signer-1", "store-failed"), machine.count("signer-1", "store-works-again")

    async def sign(client: AsyncClient, name: str) -> None:
        await client.sign(machine.key.id, hash_of(name), timeout_s=40)

    async def create(client: AsyncClient, name: str) -> None:
        key = await client.create_key("test/disk", name, timeout_s=80)
        await client.sign(key.id, hash_of(name + "-1"), timeout_s=40)

    outcome = run_load(machine, machine.signer, sign if making == "signatures" else create, sign)
    assert "away: signer-1" in outcome.why
    assert outcome.late is None, "it waits for the signer to return"
    reasons = [str(error) for error in outcome.load.failed]
    assert [reason for reason in reasons if "signer-1" not in reason and "signer 1" not in reason] == []
    assert machine.count("signer-1", "store-failed") == failed + 1
    assert machine.count("signer-1", "store-works-again") == back + 1
    assert unfinished(machine) == 0
    results = requests(machine)
    assert len(results) > 2 * CALLERS
    for index in (1, 2, 3):
        assert results <= decided(machine, index)


def test_full_logs_cost_lines_and_no_process(machine: Machine) -> None:
    pids = {name: process.pid for name, process in machine.net.processes.items()}
    machine.logs.fill()
    with machine.net.client() as client:
        for i in range(40):  # the last page of the log has room for some lines yet
            client.sign(machine.key.id, hash_of(f"log-{i}"))
        machine.net.restart("enclave-2")
        machine.logs.free()
        machine.net.restart("enclave-3")
        machine.wait_ready()
        client.sign(machine.key.id, hash_of("log-room"))
    for process in machine.net.processes.values():
        process.check()
    assert machine.count("coordinator", "log-lines-lost") == 1
    assert machine.count("signer-1", "log-lines-lost") <= 1
    for name in ("coordinator", "signer-1", "signer-2", "enclave-1", "gate-1"):
        assert machine.net.processes[name].pid == pids[name]


def unfinished(machine: Machine) -> int:
    """Requests that have not ended in the coordinator's store."""
    with sqlite3.connect(machine.net.root / "coordinator" / "state" / "coordinator.db") as store:
        (count,) = store.execute("SELECT count(*) FROM signatures WHERE state IN ('Pending', 'Executing')").fetchone()
    return int(count)


def requests(machine: Machine) -> set[str]:
    """Digests of all requests that have a signature."""
    with sqlite3.connect(machine.net.root / "coordinator" / "state" / "coordinator.db") as store:
        rows = store.execute("SELECT path, body, jws FROM signatures WHERE state = 'Signed'").fetchall()
    return {wire.ClientRequest("POST", *row).digest(machine.net.roster.network).hex() for row in rows}


def decided(machine: Machine, index: int) -> set[str]:
    """Digests of the requests for which a signer's audit chain, on its disk, says that a share was given."""
    path: Path = machine.net.plan.signer(index) / "state" / "signer.db"
    with sqlite3.connect(path) as store:
        bodies = [json.loads(body) for (body,) in store.execute("SELECT body FROM audit")]
    return {body["request"] for body in bodies if body["event"] == "share"}

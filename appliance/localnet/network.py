"""`LocalNet`: starts, watches, kills and restarts the processes of a loopback network, and cleans up."""

from __future__ import annotations

import dataclasses
import http.client
import os
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import msgspec

from appliance import templates
from appliance.api.client import AsyncClient, Client
from appliance.api.credentials import Credential, load_token
from appliance.coordinator.committees import windows
from appliance.localnet.files import COORDINATOR, LOOPBACK, Plan, Written, write_network
from appliance.localnet.process import ManagedProcess
from appliance.profile import Profile, load_profile
from policies.errors import Unavailable
from policies.roster import Roster

READY_TIMEOUT_S = 60.0
POLL_S = 0.02
DEFAULT_POOL = (200, 600, 200)


class Health(msgspec.Struct, frozen=True):
    """What is read of the coordinator's /healthz."""

    status: str
    trouble: str = ""
    presignatures: dict[str, int] = msgspec.field(default_factory=dict)


class LocalNet:
    """A network of real processes, each signer with a token of its own; a context manager.

    Start it in a thread that lives as long as the network: the kernel ends the children with that thread.
    """

    def __init__(
        self,
        signers: int = 3,
        tolerate: int = 1,
        *,
        gate: bool = True,
        pool: tuple[int, int, int] = DEFAULT_POOL,
        refuse: Mapping[int, tuple[str, ...]] | None = None,
        directory: Path | None = None,
        coordinators: int = 1,
        coordinator_port: int | None = None,
    ) -> None:
        """`pool`: low, high, batch, of each coordinator. `refuse`: signer index → destinations its gate refuses.
        The coordinators are called `coordinator`, `coordinator-2`, and so on; the profile names the first.

        `coordinator_port`: signers look for the coordinator there, where somebody passes on to `signers_port`.

        `directory`: must be new or empty, and short, since socket paths end at 107 bytes; it is removed at the end.
        """
        self._owned = Path(tempfile.mkdtemp(prefix="keymoot-")) if directory is None else directory
        self.plan = Plan(
            self._owned.resolve(),
            "loopback",
            signers,
            tolerate,
            gate,
            pool,
            refuse or {},
            coordinators,
            coordinator_port,
        )
        self.processes: dict[str, ManagedProcess] = {}
        self._written: Written | None = None

    @property
    def root(self) -> Path:
        """The network's directory."""
        return self.plan.root

    @property
    def profile(self) -> Path:
        """The client's profile, as `keymoot keys --profile` takes it."""
        return self.root / "client" / "client.yaml"

    @property
    def roster(self) -> Roster:
        """The roster. Raises `Unavailable` before the files are written."""
        return self._files.roster

    def __enter__(self) -> LocalNet:
        try:
            self.write()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self) -> None:
        """Write all files and make the signers' keys in their HSMs."""
        self._written = write_network(self.plan)
        (self.root / "logs").mkdir()
        for index in self.plan.indices:
            if self.plan.gate:
                self._define(f"gate-{index}", self.plan.gate_directory(index), "gate", "serve", "gate.yaml")
            self._define(f"enclave-{index}", self.plan.signer(index), "enclave", "run", "enclave.yaml", index)
        for name in self.plan.coordinator_names:
            self._define(name, self.root / name, "coordinator", "run", "coordinator.yaml")
        for index in self.plan.indices:
            self._define(f"signer-{index}", self.plan.signer(index), "signer", "run", "signer.yaml")

    def start(self) -> None:
        """Start every process and wait until each of them answers. Raises `Unavailable`."""
        for process in self.processes.values():
            process.start()
        for name in self.processes:
            self.wait_ready(name)

    def close(self) -> None:
        """Stop every process and remove the directory."""
        for process in self.processes.values():
            if process.running:
                process.kill(signal.SIGTERM)
        for process in self.processes.values():
            process.stop()
        shutil.rmtree(self._owned, ignore_errors=True)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process such as `enclave-2`, `signer-1`, `gate-3`, `coordinator`."""
        self.processes[name].kill(number)

    def restart(self, name: str) -> None:
        """Stop a process where it runs, start it again, and wait until it answers."""
        self.processes[name].stop()
        self.processes[name].start()
        self.wait_ready(name)

    def wait_ready(self, name: str) -> None:
        """Wait until a process answers. A signer listens nowhere: it is only watched for an early end."""
        kind, _, number = name.partition("-")
        if kind == "enclave":
            self.wait_for(self.socket(int(number)).exists, f"{name} to listen on its socket")
        elif kind == "gate":
            port = self._files.gate_ports[int(number) - 1]
            self.wait_for(lambda: _listens(port), f"{name} to listen")
        elif kind == COORDINATOR:
            self.wait_for(lambda: self.health(name) is not None, f"{name} to answer")

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Poll until `condition` holds. Raises `Unavailable` if a process ends meanwhile, or after the time-out."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            for process in self.processes.values():
                process.check()
            if time.monotonic() > deadline_s:
                raise Unavailable(f"waited {timeout_s:.0f} s for {what}", "see what the processes said last")
            time.sleep(POLL_S)

    @property
    def signers_port(self) -> int:
        """Where the first coordinator listens for signers. Raises `Unavailable` before the files are written."""
        return int(self._files.coordinators[COORDINATOR].listen_signers.rpartition(":")[2])

    def wait_for_pool(self, count: int, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until every coordinator has `count` presignatures of every committee that is kept filled while all
        signers are there; it may hold others, made while some were away.

        Raises `Unavailable`.
        """
        kept = windows(self.roster.indices, self.roster.committee_size)

        def filled() -> bool:
            pools = [self.pools(name) for name in self.plan.coordinator_names]
            return all(each.get(committee, 0) >= count for each in pools for committee in kept)

        self.wait_for(filled, f"a pool of {count} presignatures", timeout_s)

    def pools(self, coordinator: str = COORDINATOR) -> dict[tuple[int, ...], int]:
        """Presignatures that a coordinator can name now, by committee; empty while it is away."""
        health = self.health(coordinator)
        if health is None:
            return {}
        return {tuple(map(int, name.split("-"))): number for name, number in health.presignatures.items()}

    def configure_pool(self, pool: tuple[int, int, int]) -> None:
        """Write another pool (low, high, batch) into every coordinator.yaml; it counts after a restart."""
        for name, setup in self._files.coordinators.items():
            text = templates.coordinator_yaml(dataclasses.replace(setup, pool=pool))
            (self.root / name / "coordinator.yaml").write_text(text)

    def api(self, coordinator: str = COORDINATOR) -> tuple[str, Path]:
        """URL of a coordinator's API, and the CA of its certificate."""
        return f"https://{LOOPBACK}:{self._files.api_ports[coordinator]}", self.root / coordinator / "ca.pem"

    def health(self, coordinator: str = COORDINATOR) -> Health | None:
        """What a coordinator says of itself; None while it does not answer."""
        context = ssl.create_default_context(cafile=self.root / coordinator / "ca.pem")
        port = self._files.api_ports[coordinator]
        connection = http.client.HTTPSConnection(LOOPBACK, port, context=context, timeout=2.0)
        try:
            credential = Credential(load_token(self.profile.parent / templates.TOKEN_FILE))
            connection.request("GET", "/healthz", headers=credential.headers())
            answer = connection.getresponse()
            return msgspec.json.decode(answer.read(), type=Health) if answer.status == http.client.OK else None
        except (OSError, http.client.HTTPException, msgspec.DecodeError):
            return None
        finally:
            connection.close()

    def client(self, coordinator: str = COORDINATOR) -> Client:
        """A client of one coordinator's API with the network's one client key; use it as `with`."""
        return Client.of(self._profile_of(coordinator))

    def async_client(self, coordinator: str = COORDINATOR) -> AsyncClient:
        """The same for code with an event loop."""
        return AsyncClient.of(self._profile_of(coordinator))

    def _profile_of(self, coordinator: str) -> Profile:
        url, ca = self.api(coordinator)
        return dataclasses.replace(load_profile(self.profile), api=url, ca=ca, others=())

    def socket(self, index: int) -> Path:
        """The socket of a signer's enclave."""
        return self.plan.signer(index) / "run" / "enclave.sock"

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return self.root / "logs" / f"{name}.log"

    @property
    def _files(self) -> Written:
        if self._written is None:
            raise Unavailable("the network's files are not written", "enter the context manager first")
        return self._written

    def _define(self, name: str, directory: Path, kind: str, action: str, config: str, hsm: int | None = None) -> None:
        self.processes[name] = ManagedProcess(
            name=name,
            arguments=[sys.executable, "-I", "-m", "appliance.cli", kind, action, "--config", str(directory / config)],
            directory=directory,
            log=self.log(name),
            environment=dict(os.environ) if hsm is None else self.plan.environment(hsm),
        )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0

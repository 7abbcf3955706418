"""Real enclave processes on SoftHSM, joined by a dumb relay in the test: no signer process, no coordinator."""

from __future__ import annotations

import base64
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from enclave import wire
from enclave.framing import Stream
from enclave.hsm import HsmConfig
from policies.model import Policy
from policies.roster import Roster
from tests.fakes.enclaves import GateAnswer, Net
from tests.fakes.softhsm import SoftToken

DEADLINE_S = 30.0


class Process:
    """One enclave process and the socket to it."""

    def __init__(self, index: int, directory: Path) -> None:
        self.index, self.directory = index, directory
        self.store: dict[tuple[str, str], wire.Record] = {}
        self.audit: list[wire.AuditEntry] = []
        self.answers: dict[bytes, wire.Answer] = {}
        self.gate_calls: list[wire.CallGate] = []
        self.said: list[Any] = []
        self.stream: Stream | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {"SOFTHSM2_CONF": str(directory / "hsm" / "softhsm2.conf")}

    @property
    def config(self) -> Path:
        return self.directory / "enclave.yaml"

    def command(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        """Run one of the enclave's other commands; its standard output."""
        return subprocess.run(
            [sys.executable, "-I", "-m", "enclave", *arguments, "--config", str(self.config)],
            env=self._environment(),
            input=stdin,
            check=True,
            capture_output=True,
        ).stdout

    def run_to_end(self, command: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a command that is expected to fail by itself."""
        return subprocess.run(
            [sys.executable, "-I", "-m", "enclave", command, "--config", str(self.config)],
            env={**self._environment(), **(environment or {})},
            capture_output=True,
            check=False,
            timeout=DEADLINE_S,
        )

    def start(self) -> None:
        """Start it and connect."""
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "enclave", "run", "--config", str(self.config)],
            env=self._environment(),
            stderr=(self.directory / "log").open("ab"),
        )
        deadline_s = time.monotonic() + DEADLINE_S
        sock = socket.socket(socket.AF_UNIX)
        while sock.connect_ex(str(self.directory / "enclave.sock")) != 0:
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline_s, "the enclave does not listen"
            time.sleep(0.01)
        self.stream = Stream(sock, 1 << 26)

    def stop(self) -> None:
        """Terminate it, politely."""
        if self.stream is not None:
            self.stream.close()
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


class ProcessNet(Net):
    """`Net` over real processes. Waits for expected reports, with a deadline."""

    def __init__(
        self,
        directory: Path,
        policy: Policy,
        secrets: bytes,
        gate: GateAnswer,
        n: int = 3,
        t: int = 1,
        gates: dict[int, dict[str, Any]] | None = None,
    ) -> None:
        """`gates`: the `gate` section of some signers' enclave.yaml."""
        self._gates = gates or {}
        self.clock, self.gate = time.time, gate  # type: ignore[assignment]
        self.relay = lambda sender, receiver, data: [(sender, receiver, data)]
        self.reports = {j: [] for j in range(1, n + 1)}
        self.frames = []
        self.via, self.stores = {}, lambda j, message: True
        self.members: dict[int, Process] = {}  # type: ignore[assignment]
        identities = {}
        for j in range(1, n + 1):
            member = self.members[j] = Process(j, directory / f"signer-{j}")
            identities[j] = self._provision(member)
        signers = [
            {"index": j, "name": f"signer-{j}", "operator": "Tests", "identity_key": key}
            for j, key in identities.items()
        ]
        roster = {"version": 1, "network": "testnet", "tolerate": t, "signers": signers}
        self.roster = msgspec.convert(roster, Roster)
        for member in self.members.values():
            (member.directory / "roster.yaml").write_text(json.dumps(roster))
            (member.directory / "policy.yaml").write_text(json.dumps(msgspec.to_builtins(policy)))
            member.command("seal-gate-secret", stdin=secrets)
        self._selector = selectors.DefaultSelector()

    def make_token(self, member: Process) -> HsmConfig:
        """A token for `member`: SoftHSM's here."""
        token = SoftToken(member.directory / "hsm", f"token-{member.index}")
        token.create()
        return token.config

    def _provision(self, member: Process) -> str:
        hsm = self.make_token(member)
        config = {
            "network": "testnet",
            "signer": f"signer-{member.index}",
            "roster": "roster.yaml",
            "policy": "policy.yaml",
            "socket": "enclave.sock",
            "hsm": {key: value for key, value in msgspec.to_builtins(hsm).items() if value},
            "gate": self._gates.get(member.index, {"mode": "signed"}),
        }
        member.config.write_text(json.dumps(config))
        shown = json.loads(member.command("provision"))
        assert len(base64.b64decode(shown["identity_key"])) == 65
        return str(shown["identity_key"])

    def start(self) -> None:
        """Start all processes, attach, bring the links up."""
        for j, member in self.members.items():
            member.start()
            self.watch(member)
            self.attach(j)
        self.presence(tuple(self.members))
        n = len(self.members)
        self.wait(
            lambda: all(
                sum(isinstance(r, wire.LinkReport) and r.up for r in found) == n - 1 for found in self.reports.values()
            )
        )
        self.drain()

    def watch(self, member: Process) -> None:
        """Take in what a started process says."""
        assert member.stream is not None
        self._selector.register(member.stream.socket, selectors.EVENT_READ, member)

    def unwatch(self, member: Process) -> None:
        """Take in nothing more of it: it is about to be stopped."""
        assert member.stream is not None
        self._selector.unregister(member.stream.socket)

    def stop(self) -> None:
        """Terminate all."""
        for member in self.members.values():
            member.stop()
        self._selector.close()

    def tell(self, j: int, message: Any) -> None:
        stream = self.members[j].stream
        assert stream is not None
        stream.write(wire.encode(message))

    def run(self) -> None:
        """Nothing to do: processes run by themselves."""

    def take(self, kind: type[Any], members: tuple[int, ...] = ()) -> dict[int, Any]:
        self.wait(lambda: all(any(isinstance(r, kind) for r in self.reports[j]) for j in members))
        return super().take(kind, members)

    def wait(self, condition: Any) -> None:
        """Relay until the condition holds."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline_s, self.reports
            for member in self.members.values():
                if member.stream is not None:
                    member.stream.flush()
            for key, _ in self._selector.select(0.05):
                for data in key.data.stream.read():
                    self._said(key.data, wire.decode(data, wire.FromEnclave))  # type: ignore[arg-type]

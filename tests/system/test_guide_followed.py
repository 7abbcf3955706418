"""The operator's page as somebody follows it who has never seen Keymoot: its own commands, in its order, in an empty
directory, until a signature is made."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.localnet.process import ManagedProcess
from tests.fakes.nat import alone, missing
from tests.fakes.softhsm import SoftToken, library

PAGE = (Path(__file__).parents[2] / "packaging" / "README.md").read_text()
SIGNERS = ("s1", "s2", "s3")
DEADLINE_S = 90.0
RULES = "".join(textwrap.dedent(rule) for rule in re.findall(r"^ +rules:\n +- .+\n", PAGE, re.MULTILINE))


def section(title: str) -> list[list[str]]:
    """The `keymoot` commands of a section of the page, in order."""
    found = re.search(rf"^## {title}\n(.+?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return [line.split() for line in re.findall(r"^ {4,7}keymoot (.+)$", found[1], re.MULTILINE)]


class Reader:
    """Somebody with a host of their own and an HSM for each signer."""

    def __init__(self, root: Path, prefix: tuple[str, ...]) -> None:
        self.root, self._prefix = root, prefix
        self._tokens = {name: SoftToken(root / f"hsm-{name}", "keymoot") for name in SIGNERS}
        self._confs = {name: token.create() for name, token in self._tokens.items()}
        self.processes: list[ManagedProcess] = []
        self.done: list[str] = []

    def _whose(self, command: list[str]) -> str:
        return next((name for name in SIGNERS if any(word.split("/")[0] == name for word in command)), "")

    def _environment(self, command: list[str]) -> dict[str, str]:
        conf = self._confs.get(self._whose(command))
        return {**os.environ, **({} if conf is None else {"SOFTHSM2_CONF": str(conf)})}

    def run(self, command: list[str], codes: tuple[int, ...] = (0,)) -> str:
        """One command of the page; the questions of `setup` on HSM and PIN are answered."""
        stdin = ""
        if "--operator" in command and "setup" in command:
            stdin = self._tokens[self._whose(command)].user_pin
            command = [*command, "--lib", str(library()), "--token-label", "keymoot", "--pin-stdin"]
        done = subprocess.run(
            [*self._prefix, sys.executable, "-I", "-m", "appliance.cli", *command],
            input=stdin, capture_output=True, text=True, check=False, cwd=self.root, env=self._environment(command),
        )  # fmt: skip
        assert done.returncode in codes, f"{command}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        self.done.append(" ".join(command[:2]))
        return done.stdout

    def start(self, command: list[str]) -> None:
        log = self.root / f"{len(self.processes)}.log"
        arguments = [*self._prefix, sys.executable, "-I", "-m", "appliance.cli", *command]
        process = ManagedProcess(" ".join(command[:2]), arguments, self.root, log, self._environment(command))
        process.start()
        self.processes.append(process)

    def healthy(self) -> bool:
        """The page's own question with curl."""
        asked = re.search(r"`curl (--cacert \S+ \S+/healthz)` answers `(.+?)`", PAGE)
        assert asked is not None
        command = [*self._prefix, "curl", "-s", *asked[1].split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.root)
        return done.stdout == asked[2]

    def wait(self) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not self.healthy():
            for process in self.processes:
                process.check()
            assert time.monotonic() < deadline_s, "never ready"
            time.sleep(0.2)


def for_all(command: list[str]) -> Iterator[list[str]]:
    """What the page says of s1, for each signer. The others have no gate, which the page allows."""
    yield command
    for name in SIGNERS[1:]:
        other = [name if word == "s1" else word.replace("s1/", f"{name}/") for word in command]
        for option, instead in (("--gate", ["--gate-mode", "none"]), ("--gate-ca", []), ("--gate-secrets-out", [])):
            if option in other:
                place = other.index(option)
                other[place : place + 2] = instead
        yield other


@pytest.fixture
def reader() -> Iterator[Reader]:
    if missing():
        pytest.skip(f"the ports of the page are free in a network of its own, which needs {missing()}")
    with ExitStack() as undo:
        try:
            prefix = undo.enter_context(alone())
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network of its own here: {error.stderr.strip()}")
        root = Path("/tmp") / f"km-guide-{os.getpid()}"  # short, since socket paths end at 107 bytes
        root.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, root)
        made = Reader(root, prefix)
        undo.callback(lambda: [process.stop() for process in made.processes])
        yield made


def enrol(reader: Reader) -> None:
    """`## Enrol, once`, with what it says to put into files."""
    reader_token, known = "", ""
    for command in section("Enrol, once"):
        match command:
            case ["init", "client", *_]:
                told = json.loads(reader.run([*command, "--json"]))
                known = f"version: 1\nclients: [{json.dumps(told['client'])}]\n"
                reader_token = f"    - name: payouts\n      token_sha256: {told['reader']['token_sha256']}\n"
                (reader.root / "policy.yaml").write_text(known + RULES)
                reader.run(["policy", "check", "policy.yaml"])
                shutil.copy(reader.root / "roster.yaml", reader.root / "k")
            case ["setup", "--role", "signer", *_]:
                with ThreadPoolExecutor() as operators:
                    list(operators.map(reader.run, for_all(command)))
            case _:
                reader.run(command)
    (reader.root / "c" / "clients.yaml").write_text(known + "rules: []\n")
    config = reader.root / "c" / "coordinator.yaml"
    text = config.read_text().replace("  readers:\n", f"  readers:\n{reader_token}")
    config.write_text(text.replace("low: 2048", "low: 10").replace("high: 8192", "high: 20").replace("4096", "20"))


def test_whoever_follows_the_page_gets_a_signature(reader: Reader) -> None:
    enrol(reader)
    for command in section("Start"):
        if {"run", "serve"} & set(command[:2]):
            for one in for_all(command) if "s1/" in command[-1] else [command]:
                reader.start(one)
            continue
        if not reader.done[-1].startswith(("status", "doctor", "keys")):
            reader.wait()
        # What doctor says of this machine's clock and units is not the page's affair.
        reader.run(command, codes=(0, 1) if command[0] == "doctor" else (0,))
    shown = json.loads(reader.run(["keys", "list", "--profile", "k/client.yaml", "--json"]))
    signed = reader.run(["sign", "message", shown[0]["id"], "hello", "--profile", "k/client.yaml", "--json"])
    assert '"rsv":"0x' in signed
    for title in ("Certificates", "Presignatures"):
        for command in section(title):
            follows = command[0] == "pool" and "--once" not in command
            reader.run([*command, "--once"] if follows else command)
    assert {"setup --role", "roster check", "status s1", "doctor s1", "keys create", "pki renew"} <= set(reader.done)

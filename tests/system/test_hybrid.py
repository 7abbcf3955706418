"""Two organisations: A hosts the coordinator and two signers, B one signer behind NAT, with an HSM, CA and gate of its
own. They enrol by files and fingerprints (packaging/HYBRID.md); then B's gate refuses, A's coordinator lies, and A's
authority issues a certificate in the name of B's signer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance import pki
from appliance.localnet.process import ManagedProcess
from tests.fakes.nat import INSIDE, ROUTER_OUTSIDE, Host, Hosts, hosts, reaches
from tests.fakes.softhsm import SoftToken, library

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
PAGE = ROOT / "packaging" / "HYBRID.md"
AUTHORITIES = "authorities: {a1: a1-ca.pem, a2: a2-ca.pem, b1: b1-ca.pem}"
POLICY_RULES = """rules:
  - name: payouts
    clients: [payouts]
    actions: [create-key, sign]
    labels: ["**"]
    kinds: [Hash, Message]
    blind: true
    derivation_paths: [m, m/**]
"""


class Story:
    """The directories `a` and `b` of the organisations, `mail` between them, and what runs."""

    def __init__(self, root: Path, on: Hosts) -> None:
        self.root, self.public, self.inside, self.together = root, on.public, on.inside, on.together
        self.a, self.b, self.mail = root / "a", root / "b", root / "mail"
        self.confs: dict[str, Path] = {}
        self.pins: dict[str, str] = {}
        self.processes: dict[str, ManagedProcess] = {}
        self.lies = root / "lies"
        for place in (self.a, self.b, self.mail, root / "logs"):
            place.mkdir()

    def host(self, name: str) -> Host:
        """Where a directory of that name is."""
        return self.inside if name.startswith(("b", "gb")) else self.public

    def directory(self, name: str) -> Path:
        """Configuration of `c`, `a1`, `a2`, `b1`, `gb`, `k`."""
        return (self.b if self.host(name) is self.inside else self.a) / name

    def token(self, name: str) -> None:
        """An HSM for a signer."""
        token = SoftToken(self.root / f"hsm-{name}", "keymoot")
        self.confs[name], self.pins[name] = token.create(), token.user_pin

    def keymoot(self, name: str, *arguments: str | Path, stdin: str = "", code: int = 0) -> str:
        """Run a command on the host of `name`, with its HSM where it has one; standard output, or the error."""
        environment = {**os.environ}
        if name in self.confs:
            environment["SOFTHSM2_CONF"] = str(self.confs[name])
        done = subprocess.run(
            [*self.host(name).prefix, sys.executable, "-m", "appliance.cli", *map(str, arguments)],
            input=stdin, capture_output=True, text=True, check=False, env=environment, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def json(self, name: str, *arguments: str | Path, stdin: str = "") -> dict[str, Any]:
        return dict(json.loads(self.keymoot(name, *arguments, "--json", stdin=stdin)))

    def start(self, name: str, process: str, *command: str) -> None:
        environment = {**os.environ, **({"SOFTHSM2_CONF": str(self.confs[name])} if name in self.confs else {})}
        self.processes[process] = ManagedProcess(
            name=process, arguments=[*self.host(name).prefix, sys.executable, *command], directory=ROOT,
            log=self.log(process), environment=environment,
        )  # fmt: skip
        self.processes[process].start()

    def run(self, name: str, kind: str, action: str = "run") -> None:
        """Start one of Keymoot's processes."""
        config = self.directory(name) / f"{kind}.yaml"
        self.start(name, f"{kind}-{name}", "-I", "-m", "appliance.cli", kind, action, "-c", str(config))

    def log(self, process: str) -> Path:
        return self.root / "logs" / process

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            for process in self.processes.values():
                process.check()
            assert time.monotonic() < deadline_s, f"waited for {what}"
            time.sleep(0.1)

    def shares_given(self) -> dict[str, int]:
        return {name: self.log(f"enclave-{name}").read_text().count('"share given"') for name in self.confs}

    def close(self) -> None:
        for process in self.processes.values():
            process.stop()


def write_own_pki(place: Path, network_name: str) -> None:
    """B's own authority, made by its own tool (openssl), and a certificate by it in place of the one of `setup`."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=place)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
    for name in ("ca.pem", "ca.key", "signer.pem", "signer.key"):
        (place / name).unlink()
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "3650", "-subj", "/CN=Bank B CA")
    openssl("req", *curve, "-keyout", "signer.key", "-out", "signer.csr", "-subj", f"/CN={network_name}")
    (place / "usage").write_text("extendedKeyUsage=clientAuth\nkeyUsage=digitalSignature\n")
    openssl(
        *("x509", "-req", "-in", "signer.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-days", "365", "-extfile", "usage", "-out", "signer.pem"),
    )
    for name in ("signer.csr", "usage", "ca.srl"):
        (place / name).unlink(missing_ok=True)
    (place / "signer.key").chmod(0o600)


def enrol(story: Story) -> None:
    """HYBRID.md, step by step."""
    public, inside = story.public, story.inside
    signers, api = (f"{public.address}:{port}" for port in public.ports)
    coordinator = ("--coordinator", f"c=https://{signers}", "--coordinator-ca", story.mail / "c-ca.pem")
    # A: the coordinator, whose ca.pem goes to everybody.
    story.json(
        *("c", "setup", "--role", "coordinator", "--directory", story.directory("c"), "--network", "joint"),
        *("--name", "c", "--address", public.address, "--signers-listen", signers, "--api-listen", api),
    )
    shutil.copy(story.directory("c") / "ca.pem", story.mail / "c-ca.pem")
    # B: its gate.
    story.keymoot("gb", "init", "gate", story.directory("gb"), "--listen", f"{inside.address}:{inside.ports[0]}")
    gate = ("--gate-mode", "signed", "--gate", f"https://{inside.address}:{inside.ports[0]}/validate")
    gate += ("--gate-ca", str(story.directory("gb") / "ca.pem"))
    # Everybody's signers.
    told = {}
    for name, operator in (("a1", "A"), ("a2", "A"), ("b1", "B")):
        story.token(name)
        done = story.json(
            *(name, "setup", "--role", "signer", "--directory", story.directory(name), "--network", "joint"),
            *("--name", name, "--operator", operator, *coordinator, "--lib", library(), "--token-label", "keymoot"),
            *(gate if name == "b1" else ("--gate-mode", "none")), "--pin-stdin",
            stdin=story.pins[name],
        )  # fmt: skip
        told[name] = done["fingerprint"]
    write_own_pki(story.directory("b1"), "b1")
    for name in told:
        for file in ("identity.json", "ca.pem"):
            shutil.copy(story.directory(name) / file, story.mail / f"{name}-{file}")
    # A makes the roster; both compare what it says with what the other told by telephone.
    identities = [story.mail / f"{name}-identity.json" for name in told]
    roster = story.mail / "roster.yaml"
    made = story.json("c", "roster", "assemble", *identities, "--tolerate", "1", "--out", roster)
    assert {one["name"]: one["fingerprint"] for one in made["signers"]} == told
    own = story.directory("b1") / "identity.json"
    assert story.json("b1", "roster", "check", roster, "--identity", own)["digest"] == made["digest"]
    # The client, and the policy that each of them agrees to.
    client = story.json(
        *("c", "init", "client", story.directory("k"), "--network", "joint", "--name", "payouts"),
        *("--api", f"https://{api}", "--api-ca", story.mail / "c-ca.pem"),
    )
    shutil.copy(roster, story.directory("k") / "roster.yaml")
    known = f"version: 1\nclients: [{json.dumps(client['client'])}]\n"
    policy = story.mail / "policy.yaml"
    policy.write_text(known + POLICY_RULES)
    for name in told:
        secrets = ("--gate-secrets-out", story.directory("gb") / "gate-secrets.json") if name == "b1" else ()
        done = story.json(
            *(name, "setup", "--role", "signer", "--directory", story.directory(name)),
            *("--roster", roster, "--policy", policy, *secrets),
        )
        assert done["missing"] == []
    gate_yaml = story.directory("gb") / "gate.yaml"
    gate_yaml.write_text(gate_yaml.read_text() + "  # A bare hash says nothing.\n  refuse_blind: true\n")
    # A's coordinator trusts an authority of each signer's operator.
    cas = [option for name in told for option in ("--signers-ca", story.mail / f"{name}-ca.pem")]
    done = story.json(
        "c", "setup", "--role", "coordinator", "--directory", story.directory("c"), "--roster", roster, *cas
    )
    assert done["missing"] == []
    config = story.directory("c") / "coordinator.yaml"
    reader = f"    - name: payouts\n      token_sha256: {client['reader']['token_sha256']}\n"
    text = config.read_text().replace("  readers:\n", f"  readers:\n{reader}")
    # None of the two organisations speaks for the other's signers.
    for name in told:
        shutil.copy(story.mail / f"{name}-ca.pem", story.directory("c"))
    text = text.replace("# authorities: {NAME: NAME-ca.pem, OTHER: OTHER-ca.pem}", AUTHORITIES)
    config.write_text(
        text.replace("low: 2048", "low: 10")
        .replace("high: 8192", "high: 20")
        .replace("4096", "20")
        .replace("signers_s: 5", "signers_s: 1")
    )
    (story.directory("c") / "clients.yaml").write_text(known + "rules: []\n")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with hosts() as found:
        root = Path("/tmp") / f"km-hybrid-{os.getpid()}"  # short, since socket paths end at 107 bytes
        root.mkdir(mode=0o700)
        made = Story(root, found)
        try:
            enrol(made)
            made.run("gb", "gate", "serve")
            for name in made.confs:
                made.run(name, "enclave")
                made.run(name, "signer")
            made.lies.write_text("no")
            config = str(made.directory("c") / "coordinator.yaml")
            made.start("c", "coordinator-c", "-m", "tests.fakes.lying_coordinator", config, "3", str(made.lies))
            made.wait_for(lambda: ready(made), "a pool of presignatures")
            yield made
        finally:
            made.close()
            shutil.rmtree(root)


def ready(story: Story) -> bool:
    log = story.log("coordinator-c")
    return log.exists() and '"presigned"' in log.read_text()


def profile(story: Story) -> tuple[str, Path]:
    return "--profile", story.directory("k") / "client.yaml"


@pytest.fixture(scope="module")
def key(story: Story) -> str:
    made = story.json("k", "keys", "create", *profile(story), "--label", "joint/one")
    return str(made["id"])


@pytest.fixture(scope="module")
def other_key(story: Story) -> str:
    made = story.json("k", "keys", "create", *profile(story), "--label", "joint/two")
    return str(made["id"])


@contextmanager
def lying(story: Story, kind: str) -> Iterator[None]:
    """A's coordinator lies for as long as the block."""
    story.lies.write_text(kind)
    try:
        yield
    finally:
        story.lies.write_text("no")


def sign(story: Story, key: str, message: str, code: int = 0) -> str:
    story.wait_for(lambda: ready(story), "presignatures")
    return story.keymoot("k", "sign", "message", key, message, *profile(story), "--json", code=code)


def test_all_three_sign(story: Story, key: str) -> None:
    assert '"rsv":"0x' in sign(story, key, "pay 1 to the lawyer")
    assert story.shares_given() == {"a1": 1, "a2": 1, "b1": 1}


def test_b_reaches_a_and_nobody_reaches_b(story: Story) -> None:
    if story.together:
        pytest.skip(f"{story.together}; all of this story ran on one loopback")
    assert reaches(story.inside, story.public.address, story.public.ports[0])
    assert reaches(story.inside, story.inside.address, story.inside.ports[0]), "its gate, from its own host"
    for address in (INSIDE, ROUTER_OUTSIDE):
        assert not reaches(story.public, address, story.inside.ports[0])


def test_b_sees_that_its_host_is_well(story: Story, key: str) -> None:
    done = subprocess.run(
        [*story.inside.prefix, sys.executable, "-m", "appliance.cli", "doctor", story.directory("b1"), "--json"],
        capture_output=True, text=True, check=False, env={**os.environ, "SOFTHSM2_CONF": str(story.confs["b1"])},
    )  # fmt: skip
    checks = json.loads(done.stdout)["checks"]
    told = {one["check"]: one for one in checks if one["subject"] == "b1"}
    for name in ("configuration", "hsm", "processes", "connections", "clocks", "agreement", "gate", "certificates"):
        assert told[name]["result"] == "ok", told[name]


def test_what_bs_gate_refuses_is_not_signed_by_anybody(story: Story, key: str) -> None:
    before = story.shares_given()
    refused = story.keymoot("k", "sign", "hash", key, "0x" + "11" * 32, *profile(story), code=4)
    assert "b1" in refused
    assert "it is blind" in refused
    assert story.shares_given() == before


@pytest.mark.parametrize("kind", ["altered", "first", "last", "key"])
def test_what_as_coordinator_lies_about_is_not_signed_by_anybody(
    story: Story, key: str, other_key: str, kind: str
) -> None:
    sign(story, key, f"pay 2 to the landlord, before {kind}")
    before = story.shares_given()
    command = ("-m", "appliance.cli", "sign", "message", key, f"pay 3 to the broker, {kind}", *profile(story))
    with lying(story, kind):
        done = subprocess.run(
            [*story.public.prefix, sys.executable, *map(str, command)], capture_output=True, text=True, check=False
        )
    assert done.returncode in (1, 4), done.stdout + done.stderr
    assert done.stdout == ""
    assert story.shares_given() == before


KEYS_PUT_IN_PLACE = {"point": "the answer's publicKey is 0x0279be", "other": "asked for key_"}


@pytest.mark.parametrize("kind", KEYS_PUT_IN_PLACE)
def test_a_key_that_as_coordinator_puts_in_place_is_not_shown(
    story: Story, key: str, other_key: str, kind: str
) -> None:
    why = KEYS_PUT_IN_PLACE[kind]
    honest = story.json("k", "keys", "show", key, *profile(story))
    assert honest["public_key"] != story.json("k", "keys", "show", other_key, *profile(story))["public_key"]
    before = story.shares_given()
    with lying(story, kind):
        assert why in story.keymoot("k", "keys", "show", key, *profile(story), code=1)
        assert why in story.keymoot("k", "sign", "message", key, f"pay 5, {kind}", *profile(story), code=1)
    assert story.shares_given() == before


def test_b_stays_away_and_nothing_is_signed(story: Story, key: str) -> None:
    before = story.shares_given()
    story.processes.pop("signer-b1").stop()
    failed = story.keymoot("k", "sign", "message", key, "pay 4", *profile(story), code=1)
    assert "away: b1" in failed
    assert story.shares_given() == before


def test_an_authority_of_a_speaks_for_no_signer_of_b(story: Story, key: str) -> None:
    """Three authorities, one of them made with openssl, at one coordinator: each for its own signer."""
    own = {file: story.directory("b1") / file for file in ("signer.pem", "signer.key")}
    kept = {path: path.read_bytes() for path in own.values()}
    forger = pki.load_ca(story.directory("a1") / "ca.pem", story.directory("a1") / "ca.key")
    forged = pki.issue(forger, "b1", pki.Purpose.CLIENT)
    own["signer.pem"].write_bytes(forged.certificate_pem)
    own["signer.key"].write_bytes(forged.key_pem)
    story.run("b1", "signer")
    why = "the certificate was not issued by an authority of b1"
    story.wait_for(lambda: why in story.log("signer-b1").read_text(), "the certificate to be refused")
    story.processes.pop("signer-b1").stop()
    for path, data in kept.items():
        path.write_bytes(data)
    story.run("b1", "signer")
    story.wait_for(lambda: all_online(story), "b1 with its own certificate")
    assert '"rsv":"0x' in sign(story, key, "pay 6")


def all_online(story: Story) -> bool:
    status = story.directory("c") / "operator.token"
    done = subprocess.run(
        [*story.public.prefix, sys.executable, "-m", "appliance.cli", "status", *map(str, profile(story)),
         "--token", str(status), "--json"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    return all(one["online"] for one in json.loads(done.stdout or '{"signers": [{"online": false}]}')["signers"])


def test_the_page_says_what_scheme_says(story: Story) -> None:
    said = story.keymoot("k", "scheme", "--signers", "3", "--tolerate", "1", "--operators", "A=2,B=1")
    assert "A (2 signers):\n  cannot sign alone" in said
    assert "  can reconstruct the key alone" in said
    assert "B (1 signer):\n  cannot sign alone" in said
    page = " ".join(PAGE.read_text().replace("\n>", "\n").split())
    for line in said.splitlines():
        assert " ".join(line.split()) in page

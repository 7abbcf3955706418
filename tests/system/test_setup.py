"""`keymoot setup`: by answers, by options and on a terminal, with SoftHSM; run again, broken off, and with mistakes."""

from __future__ import annotations

import asyncio
import base64
import grp
import json
import os
import pty
import re
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result
from typer.testing import CliRunner

from appliance import layout, unit_settings
from appliance.cli.app import app
from appliance.pki import make_ca
from appliance.setup import answers, staging
from appliance.setup.enclave_tool import enclave_tool
from appliance.setup.hosts import Place, coordinator_place, signer_place
from appliance.setup.modules import installed, tokens
from appliance.setup.new_pin import replace_pin
from appliance.setup.pins import EncryptedPin, FilePin, Pin, from_bytes
from appliance.setup.signer import Done, is_configured, set_up
from appliance.store.signer import SignerStore
from enclave import wire
from enclave.hsm import open_hsm
from enclave.hsm.records import SealedRecord
from enclave.shares import record_context
from enclave.wire import decode
from policies.errors import CallerError, Unavailable
from tests.fakes.command_line import an_identity, write_identity
from tests.fakes.leaks import KnownSecret, files, leaks
from tests.fakes.softhsm import CHANGE_PIN, SoftToken, library

DEADLINE_S = 20.0
POLICY = Path(__file__).parents[2] / "policies" / "treasury-four-eyes.yaml"


def keymoot(
    *arguments: str | Path, conf: Path | None = None, stdin: str | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if conf is None else {"SOFTHSM2_CONF": str(conf)})}
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment, input=stdin or "",
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done


def setup_json(*arguments: str | Path, **options: Any) -> dict[str, Any]:
    return dict(json.loads(keymoot("setup", "--json", *arguments, **options).stdout))


@pytest.fixture(scope="module")
def coordinator_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    path.write_bytes(make_ca("a coordinator").certificate_pem)
    return path


def a_token(root: Path, name: str) -> tuple[SoftToken, Path]:
    token = SoftToken(root / f"hsm-{name}", f"token-{name}")
    return token, token.create()


def answers_file(root: Path, name: str, ca: Path, gate: str = "none") -> Path:
    said = {
        "role": "signer",
        "network": "net",
        "name": name,
        "operator": f"{name} ltd",
        "coordinators": [{"name": "c", "url": "https://127.0.0.1:9", "ca": str(ca)}],
        "hsm": {"lib": str(library()), "token_label": f"token-{name}"},
        "gate": {"mode": gate},
    }
    if gate != "none":
        said["gate"] = {"mode": gate, "url": "https://127.0.0.1:9/validate", "ca": str(ca)}
    path = root / f"{name}-answers.yaml"
    path.write_text(json.dumps(said))
    return path


def roster_of(root: Path, *names: str) -> Path:
    out = root / "roster.yaml"
    keymoot("roster", "assemble", *(root / name / "identity.json" for name in names), "--tolerate", "1", "-o", out)
    return out


def holding(pin: str, place: Path) -> list[str]:
    """The files under `place` that hold the PIN, in any encoding."""
    return sorted({Path(leak.place).name for leak in leaks([KnownSecret("PIN", pin.encode())], files(place))})


def test_by_answers_until_all_can_start(tmp_path: Path) -> None:
    made = setup_json(
        *("--role", "coordinator", "--directory", tmp_path / "c", "--network", "net", "--name", "c"),
        *("--host", "localhost", "--address", "127.0.0.1"),
    )
    assert made["missing"] == ["signers-ca.pem", "roster.yaml"]
    ca, place = tmp_path / "c" / "ca.pem", tmp_path / "north"
    token, conf = a_token(tmp_path, "north")
    file = answers_file(tmp_path, "north", ca, "signed")
    done = setup_json("--answers", file, "--directory", place, "--pin-stdin", conf=conf, stdin=token.user_pin)
    assert done["did"] == ["configuration written", "keys made in the HSM"]
    assert done["fingerprint"] == json.loads((place / "identity.json").read_text())["fingerprint"]
    assert done["sealing"] == "gcm"
    assert stat.S_IMODE((place / "pin").stat().st_mode) == 0o600
    assert {path.name for path in place.iterdir()} == {
        *("enclave.yaml", "signer.yaml", "identity.json", "ca.pem", "ca.key", "signer.pem", "signer.key"),
        *("c-ca.pem", "pin", "run", "state", "gate-ca.pem"),
    }
    for name in ("south", "west"):
        (tmp_path / name).mkdir()
        write_identity(tmp_path / name / "identity.json", an_identity(name))
        shutil.copy(ca, tmp_path / name / "ca.pem")
    roster = roster_of(tmp_path, "north", "south", "west")
    north = ("--role", "signer", "--directory", place)
    done = setup_json(*north, "--roster", roster, "--policy", POLICY, conf=conf)
    assert (done["did"], done["missing"]) == (["roster.yaml taken in", "policy.yaml taken in"], ["gate-secrets.sealed"])
    assert len(done["roster_digest"]) == len(done["policy_digest"]) == 64
    out = tmp_path / "for-the-gate.json"
    done = setup_json(*north, "--gate-secrets-out", out, conf=conf)
    assert (done["did"], done["missing"]) == (["the gate's secrets sealed"], [])
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    again = setup_json("--answers", file, "--directory", place, conf=conf)
    assert (again["did"], again["missing"]) == ([], [])
    assert again["fingerprint"] == json.loads((place / "identity.json").read_text())["fingerprint"]
    # A coordinator takes in what the operators have sent.
    cas = [option for name in ("north", "south") for option in ("--signers-ca", tmp_path / name / "ca.pem")]
    coordinator = ("--role", "coordinator", "--directory", tmp_path / "c", "--roster", roster, *cas)
    done = setup_json(*coordinator)
    assert (done["did"], done["missing"]) == (["roster.yaml taken in", "the signers' CAs taken in"], [])
    assert (tmp_path / "c" / "signers-ca.pem").read_text().count("BEGIN CERTIFICATE") == 2
    assert setup_json(*coordinator)["did"] == []
    assert holding(token.user_pin, place) == ["pin"]


def test_text_for_people_says_the_fingerprint_and_the_next_step(tmp_path: Path, coordinator_ca: Path) -> None:
    token, conf = a_token(tmp_path, "s")
    done = keymoot(
        *("setup", "--role", "signer", "--directory", tmp_path / "s", "--network", "net", "--name", "s"),
        *("--operator", "S", "--coordinator", "c=https://127.0.0.1:9", "--coordinator-ca", coordinator_ca),
        *("--lib", library(), "--token-label", "token-s", "--gate-mode", "none"),
        *("--pin-file", token.directory / "pin"),
        conf=conf,
    )
    identity = json.loads((tmp_path / "s" / "identity.json").read_text())
    assert f"fingerprint  {identity['fingerprint']}" in done.stdout
    assert "tell them the fingerprint by telephone" in done.stdout
    assert "--gate-secrets-out" not in done.stdout
    assert not (tmp_path / "s" / "pin").exists()
    assert f"file:{token.directory / 'pin'}" in (tmp_path / "s" / "enclave.yaml").read_text()
    assert token.user_pin not in done.stdout + done.stderr


class Terminal:
    """`keymoot` on a terminal of its own."""

    def __init__(self, *arguments: str | Path, environment: Mapping[str, str]) -> None:
        self.seen = ""
        self._pid, self._screen = pty.fork()
        if self._pid == 0:
            command = [sys.executable, "-m", "appliance.cli", *map(str, arguments)]
            os.execve(sys.executable, command, {**environment, "TERM": "dumb", "COLUMNS": "200"})

    def answer(self, question: str, text: str) -> None:
        """Wait until `question` is asked, after all that was asked before, and type."""
        start = len(self.seen)
        self._read_until(lambda: question in self.seen[start:] and self.seen.endswith(": "))
        os.write(self._screen, f"{text}\n".encode())

    def end(self) -> int:
        """The exit code."""
        self._read_until(lambda: False)
        _, status = os.waitpid(self._pid, 0)
        os.close(self._screen)
        return os.waitstatus_to_exitcode(status)

    def _read_until(self, reached: Any) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not reached():
            ready, _, _ = select.select([self._screen], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"waited for another word after:\n{self.seen}"
            try:
                data = os.read(self._screen, 65_536)
            except OSError:
                return
            if not data:
                return
            self.seen += data.decode(errors="replace")


def test_on_a_terminal_with_mistakes_on_the_way(tmp_path: Path, coordinator_ca: Path) -> None:
    token, conf = a_token(tmp_path, "s")
    environment = {**os.environ, "SOFTHSM2_CONF": str(conf)}
    shell = Terminal("setup", "--directory", tmp_path / "s", environment=environment)
    shell.answer("What is this host?", "1")
    shell.answer("Name of the network", "Not A Name")
    shell.answer("a name is a-z", "net")
    shell.answer("Name of this signer", "s")
    shell.answer("Organisation", "S ltd")
    shell.answer("Name of a coordinator", "c")
    shell.answer("https://HOST:PORT", "http://c")
    shell.answer("write it as https://", "https://127.0.0.1:9")
    shell.answer("File with its CA", str(coordinator_ca))
    shell.answer("Another coordinator?", "n")
    vendors = [vendor for vendor, _ in installed()]
    shell.answer("Which PKCS#11 module?", str(vendors.index("SoftHSM") + 1))
    shell.answer("token-s (slot", "1")
    shell.answer("How is your consent asked for?", "3")
    shell.answer("The HSM's PIN", token.user_pin)
    assert shell.end() == 0, shell.seen
    assert json.loads((tmp_path / "s" / "identity.json").read_text())["fingerprint"] in shell.seen
    assert token.user_pin not in shell.seen
    assert holding(token.user_pin, tmp_path / "s") == ["pin"]
    assert (tmp_path / "s" / "pin").read_text() == token.user_pin + "\n"
    # Again: only what may have come since is asked for.
    shell = Terminal("setup", "--role", "signer", "--directory", tmp_path / "s", environment=environment)
    shell.answer("Path of roster.yaml", "")
    shell.answer("Path of policy.yaml", str(POLICY))
    assert shell.end() == 0, shell.seen
    assert "policy.yaml taken in" in shell.seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "not known yet: --role signer"),
        (("--role", "signer"), "not known yet: --network, --name, --operator, --coordinator with --coordinator-ca"),
        (("--role", "coordinator"), "not known yet: --network, --name, --host or --address"),
        (("--role", "gate"), "these answers do not fit"),
        (("--role", "signer", "--slot", "3"), "--token-label and --slot go with --lib"),
        (("--role", "signer", "--coordinator", "c=https://x"), "--coordinator-ca once for each"),
        (("--role", "signer", "--gate-mode", "signed"), "a gate has url and ca"),
        (("--role", "signer", "--pin-stdin", "--pin-credential", "x"), "the PIN comes from one of"),
    ],
)
def test_what_is_missing_or_wrong_is_said_and_nothing_is_written(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = keymoot("setup", "--no-input", "--directory", tmp_path / "s", *options, code=2)
    assert message in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_wrong_pin_leaves_nothing_and_the_right_one_then_works(tmp_path: Path, coordinator_ca: Path) -> None:
    token, conf = a_token(tmp_path, "s")
    file = ("--answers", answers_file(tmp_path, "s", coordinator_ca), "--directory", tmp_path / "s", "--pin-stdin")
    refused = keymoot("setup", *file, conf=conf, stdin="wrong-91827", code=2)
    assert "refused the PIN" in refused.stderr
    assert "91827" not in refused.stdout + refused.stderr
    assert not (tmp_path / "s").exists()
    nothing = keymoot("setup", *file, conf=conf, stdin="", code=2)
    assert "the PIN must be one line" in nothing.stderr
    assert setup_json(*file, conf=conf, stdin=token.user_pin + "\n")["sealing"] == "gcm"


def test_another_signer_is_not_put_over_one_that_is_there(tmp_path: Path, coordinator_ca: Path) -> None:
    token, conf = a_token(tmp_path, "s")
    file = ("--answers", answers_file(tmp_path, "s", coordinator_ca), "--directory", tmp_path / "s")
    setup_json(*file, "--pin-stdin", conf=conf, stdin=token.user_pin)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.is_file()}
    refused = keymoot("setup", *file, "--name", "t", conf=conf, code=2)
    assert "is set up already, as signer s of network net" in refused.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.is_file()} == before


def test_a_roster_with_another_key_for_this_signer_is_not_taken_in(tmp_path: Path, coordinator_ca: Path) -> None:
    token, conf = a_token(tmp_path, "s")
    file = ("--answers", answers_file(tmp_path, "s", coordinator_ca), "--directory", tmp_path / "s")
    setup_json(*file, "--pin-stdin", conf=conf, stdin=token.user_pin)
    for name in ("s", "t", "u"):
        (tmp_path / "others" / name).mkdir(parents=True)
        write_identity(tmp_path / "others" / name / "identity.json", an_identity(name))
    roster = roster_of(tmp_path / "others", "s", "t", "u")
    refused = keymoot("setup", *file, "--roster", roster, conf=conf, code=2)
    assert "lists another key for s" in refused.stderr
    assert not (tmp_path / "s" / "roster.yaml").exists()


# --- broken off anywhere ---


def said_and_place(root: Path, ca: Path) -> tuple[answers.Answers, Place]:
    return answers.read_answers(answers_file(root, "s", ca)), Place(root / "s")


def test_broken_off_while_files_are_put_in_place_it_goes_on(
    tmp_path: Path, coordinator_ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, conf = a_token(tmp_path, "s")
    monkeypatch.setenv("SOFTHSM2_CONF", str(conf))
    said, place = said_and_place(tmp_path, coordinator_ca)
    monkeypatch.setattr("appliance.setup.signer._remove", lambda *_: None)  # as if the machine had gone off
    real, calls = os.link, []

    def link(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(KeyboardInterrupt):
        set_up(place, said, FilePin(place.directory), lambda: Pin(token.user_pin))
    assert not is_configured(place.directory)
    first = {path.name: path.read_bytes() for path in place.directory.iterdir() if path.suffix == ".key"}
    monkeypatch.setattr(os, "link", real)
    FilePin(place.directory).keep(Pin(token.user_pin))
    done = set_up(place, said, FilePin(place.directory), lambda: Pin("nobody is asked"))
    assert done.did == ["configuration written", "keys made in the HSM"]
    assert is_configured(place.directory)
    for name, data in first.items():
        assert (place.directory / name).read_bytes() == data
    assert not (place.directory / staging.STAGE).exists()


def test_what_was_half_written_is_thrown_away(tmp_path: Path) -> None:
    directory = tmp_path / "d"

    def fail(stage: Path) -> None:
        (stage / "a.key").write_text("half")
        raise Unavailable("the disk", "free it")

    with pytest.raises(Unavailable):
        staging.write_all(directory, fail)
    assert list(directory.iterdir()) == []
    (directory / staging.STAGE).mkdir()
    (directory / staging.STAGE / "a.key").write_text("of a run that was killed")
    assert staging.write_all(directory, lambda stage: (stage / "a.key").write_text("whole") and None)
    assert (directory / "a.key").read_text() == "whole"
    with pytest.raises(CallerError, match=r"a\.key exists: nothing is overwritten"):
        staging.write_all(directory, lambda stage: (stage / "a.key").write_text("other") and None)
    assert [path.name for path in directory.iterdir()] == ["a.key"]


# --- the installed host, the PIN as a credential, modules ---


def test_places_of_an_installed_host_need_its_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layout, "ENCLAVE_USER", "no-such-user")
    monkeypatch.setattr(layout, "COORDINATOR_USER", "no-such-user")
    with pytest.raises(CallerError, match="install the package, or name a directory"):
        signer_place(None, None)
    with pytest.raises(CallerError, match="install the package, or name a directory"):
        coordinator_place(None, "one")
    place, keeping = signer_place(tmp_path, None)
    assert (place.units, keeping().reference) == ((), "file:pin")


@dataclass
class Installed:
    """A signer as the package lays it out, with a user that every Debian has as its enclave's."""

    root: Path
    user: str
    token: SoftToken
    said: answers.Answers
    place: Place
    keeping: Callable[[], FilePin]
    done: Done

    @property
    def config(self) -> Path:
        return self.place.directory / "enclave.yaml"

    def take_in_the_rest(self) -> Done:
        """Roster, policy and the gate's secrets."""
        for name in ("t", "u"):
            (self.root / name).mkdir()
            write_identity(self.root / name / "identity.json", an_identity(name))
        (self.root / "s").symlink_to(self.place.directory)
        roster, out = roster_of(self.root, "s", "t", "u"), self.root / "for-the-gate.json"
        later = msgspec.structs.replace(self.said, roster=roster, policy=POLICY, gate_secrets_out=out)
        return set_up(self.place, later, self.keeping(), lambda: Pin("nobody is asked"))


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """pytest's own directories are root's alone."""
    with tempfile.TemporaryDirectory(prefix="km-installed-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


# As root, too, since a directory of root's may hold the interpreter of these tests.
@pytest.fixture(params=["daemon", "root"])
def installed_signer(
    request: pytest.FixtureRequest, open_directory: Path, coordinator_ca: Path, monkeypatch: pytest.MonkeyPatch
) -> Installed:
    if os.getuid() != 0:
        pytest.skip("needs root")
    made, user = open_directory, request.param
    token, conf = a_token(made, "s")
    for name, value in (("CONFIGURATION", made / "etc"), ("CREDENTIAL_STORE", made / "credstore")):
        monkeypatch.setattr(layout, name, value)
    for name in ("ENCLAVE_USER", "GROUP"):
        monkeypatch.setattr(layout, name, user)
    monkeypatch.setenv("SOFTHSM2_CONF", str(conf))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    subprocess.run(["chown", "-R", user, str(token.directory)], check=True)
    if subprocess.run(
        ["setpriv", f"--reuid={user}", "--clear-groups", "test", "-x", sys.executable], check=False
    ).returncode:
        pytest.skip("the interpreter of these tests is root's alone")
    said = answers.read_answers(answers_file(made, "s", coordinator_ca, "signed"))
    place, keeping = signer_place(None, None)
    try:
        done = set_up(place, said, keeping(), lambda: Pin(token.user_pin))
    except Unavailable as error:
        if "systemd-creds" in str(error):
            pytest.skip(str(error))
        raise
    return Installed(made, user, token, said, place, keeping, done)


def test_an_installed_signer(installed_signer: Installed) -> None:
    tmp_path, token, place, done = (
        installed_signer.root, installed_signer.token, installed_signer.place, installed_signer.done
    )  # fmt: skip
    assert (done.sealing, place.directory) == ("gcm", tmp_path / "etc" / "signer")
    assert stat.S_IMODE(place.directory.stat().st_mode) == layout.DIRECTORY_MODE
    text = (place.directory / "enclave.yaml").read_text()
    assert 'pin: "credential:hsm-pin"' in text
    assert "socket: /run/keymoot-enclave/enclave.sock" in text
    assert (place.directory / "signer.key").stat().st_mode & 0o077 == 0
    assert (place.directory / "identity.json").stat().st_gid == place.group
    stored = (tmp_path / "credstore" / "keymoot.hsm-pin").read_bytes()
    assert token.user_pin.encode() not in stored
    # The HSM's keys are the enclave's user's, who has to open them.
    assert {path.owner() for path in (token.directory / "tokens").rglob("*.object")} == {installed_signer.user}
    # Later, nobody is asked for the PIN again; what is sealed is root's, and for the enclave's group to read.
    done = installed_signer.take_in_the_rest()
    assert (done.did[-1], done.missing) == ("the gate's secrets sealed", [])
    sealed = (place.directory / "gate-secrets.sealed").stat()
    assert (sealed.st_uid, sealed.st_gid, stat.S_IMODE(sealed.st_mode)) == (0, place.group, 0o640)


def run_here(*arguments: str | Path) -> str:
    """`keymoot` in this process, which knows where the installed host is. Standard output."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.stdout


def test_what_an_installed_signers_operator_does_with_its_hsm(installed_signer: Installed) -> None:
    """None of it has a credential from systemd: the enclave's unit does not even run."""
    before = left_of_tools()
    installed_signer.take_in_the_rest()
    config, out = installed_signer.config, installed_signer.root / "handler.json"
    sealed = config.parent / "gate-secrets.sealed"

    def of_root() -> bytes:
        about = sealed.stat()
        assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (0, installed_signer.place.group, 0o640)
        return sealed.read_bytes()

    checked = json.loads(run_here("hsm", "check", "-c", config, "--json"))
    assert checked["usable"]
    assert [key["good"] for key in checked["keys"]] == [True, True]
    first = of_root()
    run_here("gate", "secret", "-c", config, "--rotate", "--generate", out)
    assert len(rotated := of_root()) > len(first)
    run_here("gate", "secret", "-c", config, "--finish")
    assert len(finished := of_root()) < len(rotated)
    run_here("gate", "secret", "-c", config, "--generate", installed_signer.root / "other.json")
    assert of_root() != finished
    # What the module writes stays the enclave's, and nothing of the PIN or of what was opened for the tools is left.
    owners = {path.owner() for path in (installed_signer.token.directory / "tokens").rglob("*.object")}
    assert owners == {installed_signer.user}
    assert not left_of_tools() - before


def left_of_tools() -> set[Path]:
    return {*Path("/run").glob("keymoot-setup-*"), *Path(tempfile.gettempdir()).glob("keymoot-sealing-*")}


def test_an_installed_signers_records_come_under_a_new_sealing_key(
    installed_signer: Installed,
) -> None:
    installed_signer.take_in_the_rest()
    config, signer = installed_signer.config, installed_signer.config.with_name("signer.yaml")
    store = installed_signer.root / "state" / "signer.db"
    store.parent.mkdir()
    lines = signer.read_text().splitlines()
    signer.write_text("\n".join(f"state: {store}" if line.startswith("state:") else line for line in lines) + "\n")
    with closing(open_hsm(installed_signer.token.config, "net", 1)) as hsm:
        sealed = hsm.seal(record_context("net", 1, "key", "k", 2), b"a share")
    subprocess.run(["chown", "-R", installed_signer.user, store.parent, installed_signer.token.directory], check=True)

    async def put() -> None:
        opened = SignerStore.open(store)
        await opened.put_records([wire.Record("key", "k", 2, sealed)])
        await opened.close()

    asyncio.run(put())
    text = config.read_text().replace("hsm:\n", "hsm:\n  retired_key_labels: [keymoot-seal-1]\n")
    config.write_text(text.replace("sealing_key_label: keymoot-seal-1", "sealing_key_label: keymoot-seal-2"))
    assert "keymoot-seal-2" in config.read_text()
    told = json.loads(run_here("hsm", "rewrap", "-c", config, "--signer", signer, "--json"))
    assert (told["records"], told["rewrapped"], told["broken"]) == (1, 1, [])
    secrets = config.parent / "gate-secrets.sealed"
    assert decode(secrets.read_bytes(), SealedRecord).key_label == "keymoot-seal-2"
    assert (secrets.stat().st_uid, stat.S_IMODE(secrets.stat().st_mode)) == (0, 0o640)
    told = json.loads(run_here("hsm", "rewrap", "-c", config, "--signer", signer, "--json"))
    assert (told["already"], told["rewrapped"]) == (1, 0)


def test_an_installed_signers_pin_is_roots_to_use(installed_signer: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    with pytest.raises(CallerError, match="a credential that systemd encrypted: run this as root"):
        enclave_tool(installed_signer.config).__enter__()


def test_an_installed_signer_gets_another_pin(installed_signer: Installed) -> None:
    config, token = installed_signer.config, installed_signer.token
    credential = installed_signer.root / "credstore" / "keymoot.hsm-pin"
    before, left = credential.read_bytes(), left_of_tools()
    command = [sys.executable, "-c", CHANGE_PIN, str(library()), token.label, token.user_pin, "new-pin-1"]
    subprocess.run(command, check=True)
    subprocess.run(["chown", "-R", installed_signer.user, str(token.directory)], check=True)

    def replace(pin: str) -> Result:
        return CliRunner().invoke(app, ["setup", "--replace-pin", "--pin-stdin", "--json"], input=pin)

    refused = replace("wrong-91827")
    assert isinstance(refused.exception, CallerError)
    assert re.match("nothing was replaced: .*refused the PIN", str(refused.exception))
    assert credential.read_bytes() == before
    told = json.loads(replace("new-pin-1\n").stdout)
    assert told["token"] == token.label
    assert told["next"][0].endswith("systemctl restart keymoot-enclave.service")
    assert credential.read_bytes() != before
    assert json.loads(run_here("hsm", "check", "-c", config, "--json"))["usable"]
    assert not left_of_tools() - left


def test_a_pin_that_setup_does_not_keep_is_not_replaced(installed_signer: Installed, tmp_path: Path) -> None:
    credential = installed_signer.root / "credstore" / "keymoot.hsm-pin"
    # Encrypted with another kind of key, as with a TPM's.
    other = bytearray(base64.b64decode(credential.read_bytes()))
    other[0] ^= 1
    credential.write_bytes(before := base64.b64encode(other))
    kept = installed_signer.keeping()
    with pytest.raises(CallerError, match=r"write it anew as it was, by systemd-creds encrypt --with-key=host\+tpm2"):
        replace_pin(installed_signer.place, kept, Pin(installed_signer.token.user_pin))
    assert [path.name for path in credential.parent.iterdir()] == [credential.name]
    assert credential.read_bytes() == before
    with pytest.raises(CallerError, match="has its PIN from credential:hsm-pin: write the new one there"):
        replace_pin(installed_signer.place, FilePin(tmp_path), Pin("1234"))


def test_what_the_enclaves_user_left_in_place_of_sealed_secrets(
    installed_signer: Installed,
) -> None:
    installed_signer.take_in_the_rest()
    sealed = installed_signer.config.parent / "gate-secrets.sealed"
    before = sealed.read_bytes()
    with enclave_tool(installed_signer.config) as tool:
        for leave in (
            lambda path: path.symlink_to("/etc/shadow"),
            os.mkfifo,
            Path.mkdir,
            lambda path: (path.write_bytes(b"x"), os.chown(path, 4711, 4711)),
        ):
            made = tool.sealing()
            name = Path(made.__enter__()[1])
            name.unlink()
            leave(name)
            with pytest.raises(CallerError, match="what the enclave's tool left"):
                made.__exit__(None, None, None)
            assert not name.parent.exists()
    assert sealed.read_bytes() == before


def test_a_pin_encrypted_for_this_machine(tmp_path: Path) -> None:
    kept = EncryptedPin("hsm-pin", tmp_path / "store" / "keymoot.hsm-pin")
    try:
        kept.keep(Pin("pin-4711"))
    except Unavailable as error:
        pytest.skip(str(error))
    assert kept.reference == "credential:hsm-pin"
    with kept.environment() as environment:
        place = Path(environment["CREDENTIALS_DIRECTORY"])
        assert (place / "hsm-pin").read_text() == "pin-4711"
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert not place.exists()
    with pytest.raises(CallerError, match="nothing is overwritten"):
        kept.keep(Pin("another"))
    kept.forget()
    assert not kept.exists()


def test_what_a_unit_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "systemctl"
    tool.write_text("""#!/bin/sh
case "$2 $4" in
--property=Environment*u.service) echo 'SOFTHSM2_CONF=/etc/a "B=x y"' ;;
--property=SupplementaryGroups*u.service) echo 'daemon no-such-group' ;;
esac
""")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(unit_settings, "CREDENTIALS", tmp_path)
    assert unit_settings.environment("u.service") == {"SOFTHSM2_CONF": "/etc/a", "B": "x y"}
    assert unit_settings.groups("u.service") == (grp.getgrnam("daemon").gr_gid,)
    (tmp_path / "u.service").mkdir()
    assert unit_settings.environment("u.service")["CREDENTIALS_DIRECTORY"] == str(tmp_path / "u.service")
    assert unit_settings.environment("") == {}


@pytest.mark.parametrize("text", [b"", b"\n", b"two\nlines", b"x" * 257, b"\xff\xfe"])
def test_what_is_no_pin(text: bytes) -> None:
    with pytest.raises(CallerError):
        from_bytes(text)


def test_modules_and_tokens_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "SoftHSM" in [vendor for vendor, _ in installed()]
    assert installed(tmp_path) == []
    _, conf = a_token(tmp_path, "s")
    monkeypatch.setenv("SOFTHSM2_CONF", str(conf))
    (found,) = tokens(str(library()))
    assert (found.label, found.manufacturer) == ("token-s", "SoftHSM project")
    with pytest.raises(CallerError, match="cannot load the PKCS#11 library"):
        tokens("/nowhere.so")

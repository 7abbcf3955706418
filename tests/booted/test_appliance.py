"""The package on booted systems: three signers, a coordinator, a gate each, one host for each, joined as the topology
allows. Installed, set up, started by systemd; killed, hung, unplugged, upgraded, removed.

The steps follow each other: a later one needs what an earlier one has left. `make test-appliance` runs them.
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256

from appliance import layout
from policies.errors import Unavailable
from tests.booted import enrol, image
from tests.booted.machines import Host, Site, until, why_not

SIGNERS = range(1, 4)
KEYMOOT = Path(sys.executable).with_name("keymoot")
ENCLAVE, SIGNER, COORDINATOR = "keymoot-enclave.service", "keymoot-signer.service", "keymoot-coordinator.service"
READY_TIMEOUT_S = 90.0
RETRY_S = 1.0
# Exit codes of a client's command that may be given again.
FAILED, AWAY = 1, 3

pytestmark = [
    pytest.mark.appliance,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=f"no host can be booted here: {why_not()}"),
]


class Appliance:
    """All hosts of the test, and its client."""

    def __init__(self, site: Site, following: Future[Path], lintian: Future[str]) -> None:
        """`following`: the next version; `lintian`: what it says of the package. Made while others are waited for."""
        self.site, self._following, self.lintian = site, following, lintian
        self.client = site.directory / "client-files"
        self.key: dict[str, str] = {}

    def signer(self, index: int) -> Host:
        return self.site.hosts[f"s{index}"]

    @property
    def following(self) -> Path:
        return self._following.result()

    @property
    def coordinator(self) -> Host:
        return self.site.hosts["c"]

    def keymoot(self, *arguments: str) -> dict:  # type: ignore[type-arg]
        """A command of the client, which reaches the coordinator's API and nothing else."""
        done = subprocess.run(self._command(*arguments), capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _command(self, *arguments: str) -> list[str]:
        profile = str(self.client / "client.yaml")
        return self.site.inside("client", str(KEYMOOT), *arguments, "--profile", profile, "--json")

    def sign(self) -> None:
        """A signature over something new, verified by other software than Keymoot's."""
        digest = secrets.token_bytes(32)
        self._verify(digest, self.keymoot("sign", "hash", self.key["id"], digest.hex()))

    def sign_until(self, over: Event) -> int:
        """Signs one after the other, each asked for again until it is signed; how many."""
        signed = 0
        while not over.is_set():
            digest = secrets.token_bytes(32)
            command = self._command("sign", "hash", self.key["id"], digest.hex(), "--external-id", f"on-{signed}")
            deadline_s = time.monotonic() + READY_TIMEOUT_S
            while (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode != 0:
                assert time.monotonic() < deadline_s, done.stderr
                assert done.returncode in (FAILED, AWAY), done.stderr
                # Hosts that start are given the processors.
                over.wait(RETRY_S)
            self._verify(digest, json.loads(done.stdout))
            signed += 1
        return signed

    def _verify(self, digest: bytes, answer: dict) -> None:  # type: ignore[type-arg]
        value = answer["signature"]
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), bytes.fromhex(self.key["public_key"][2:]))
        der = utils.encode_dss_signature(int(value["r"], 16), int(value["s"], 16))
        public.verify(der, digest, ec.ECDSA(utils.Prehashed(SHA256())))

    def await_ready(self) -> None:
        """Until all units say that they are ready."""
        for index in SIGNERS:
            for unit in (ENCLAVE, SIGNER):
                _await_sentence(self.signer(index), unit, "Ready; ")
        _await_sentence(self.coordinator, COORDINATOR, "Ready; 3 signers online")


def _await_sentence(host: Host, unit: str, beginning: str) -> None:
    told = [""]

    def says_so() -> bool:
        told[0] = host.unit(unit, "StatusText")[0]
        return told[0].startswith(beginning)

    try:
        until(f"{unit} says {beginning!r}", says_so, READY_TIMEOUT_S)
    except AssertionError as error:
        log = host.run(f"journalctl -u {unit} -n 30 --no-pager; systemctl status {unit}", check=False).stdout
        raise AssertionError(f"{host.name}: {error}; it says {told[0]!r}\n{log}") from None


@contextmanager
def _skipped_where_it_fails() -> Iterator[None]:
    try:
        yield
    except (AssertionError, Unavailable, OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no host can be booted here: {error}")


@pytest.fixture(scope="module")
def appliance(building: Future[Path], tmp_path_factory) -> Iterator[Appliance]:
    directory = tmp_path_factory.mktemp("booted")
    with _skipped_where_it_fails():
        base = image.base()
    package = building.result()
    with Site(directory) as site, ThreadPoolExecutor(1) as aside:
        # Nothing of Keymoot is on it yet.
        with _skipped_where_it_fails():
            first = site.host("first", [base])
            first.boot()
        following, lintian = aside.submit(image.next_version, package, directory), aside.submit(image.lintian, package)
        _install(first, package)
        # What the package does by itself: users and directories; nothing is enabled, nothing runs.
        assert first.run("systemctl list-units --all --no-legend 'keymoot*'").stdout == ""
        assert first.run(
            "systemctl is-enabled keymoot-enclave keymoot-signer keymoot-coordinator", check=False
        ).stdout == ("disabled\n" * 3)
        first.run("systemctl poweroff", check=False)
        until("the first host is off", lambda: not first.running, 60)
        for name in ("c", *(f"s{index}" for index in SIGNERS)):
            site.host(name, [first.upper, base])
        for name in ("client", *(f"g{index}" for index in SIGNERS)):
            site.namespace(name)
        site.wire("c", f"{enrol.API.partition(':')[0]}/30", "client", "10.79.0.2/30")
        for index in SIGNERS:
            site.wire("c", f"10.77.{index}.1/30", f"s{index}", f"10.77.{index}.2/30")
            site.wire(f"g{index}", f"10.78.{index}.1/30", f"s{index}", f"10.78.{index}.2/30")
        made = Appliance(site, following, lintian)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Host.boot, [made.coordinator, *map(made.signer, SIGNERS)]))
        _enrol(made)
        yield made


def _install(host: Host, package: Path) -> None:
    host.put("/root/keymoot.deb", b"")
    with package.open("rb") as file:
        host.copy_in(file, "/root/keymoot.deb")
    host.run("DEBIAN_FRONTEND=noninteractive dpkg --force-unsafe-io -i /root/keymoot.deb && rm /root/keymoot.deb")


def _enrol(made: Appliance) -> None:
    site, coordinator = made.site, made.coordinator
    enrol.set_up_coordinator(coordinator, SIGNERS)
    ca = coordinator.get("/etc/keymoot/coordinator/ca.pem")

    def first_run(index: int) -> None:
        enrol.set_up_signer(made.signer(index), index, ca, enrol.write_gate(site.directory / f"gate-{index}", index))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(first_run, SIGNERS))
    identities = []
    for index in SIGNERS:
        path = site.directory / f"identity-{index}.json"
        path.write_bytes(made.signer(index).get("/etc/keymoot/signer/identity.json"))
        identities.append(path)
        coordinator.put(f"/root/ca-{index}.pem", made.signer(index).get("/etc/keymoot/signer/ca.pem"))
    roster_file = site.directory / "roster.yaml"
    command = [KEYMOOT, "roster", "assemble", *identities, "--tolerate", "1", "--out", roster_file]
    subprocess.run(command, check=True, capture_output=True)
    roster = roster_file.read_bytes()
    coordinator.put("/root/roster.yaml", roster)
    cas = " ".join(f"--signers-ca /root/ca-{index}.pem" for index in SIGNERS)
    coordinator.run(f"keymoot setup --no-input --role coordinator --roster /root/roster.yaml {cas} --json")
    policy = enrol.write_client(made.client, coordinator, roster)
    coordinator.put("/etc/keymoot/coordinator/clients.yaml", policy)
    for index in SIGNERS:
        kept = enrol.take_in(made.signer(index), roster, policy)
        directory = site.directory / f"gate-{index}"
        (directory / "gate-secrets.json").touch(mode=0o600)
        (directory / "gate-secrets.json").write_bytes(kept)
        site.start(f"g{index}", [KEYMOOT, "gate", "serve", "--config", directory / "gate.yaml"], directory)
    coordinator.run(f"systemctl enable --now {COORDINATOR}")
    for index in SIGNERS:
        made.signer(index).run(f"systemctl enable --now {ENCLAVE} {SIGNER}")


def test_a_key_is_made_and_signs_through_every_gate(appliance: Appliance) -> None:
    appliance.await_ready()
    appliance.key = appliance.keymoot("keys", "create", "--label", "treasury/one")
    appliance.sign()
    for index in SIGNERS:
        log = (appliance.site.directory / f"gate-{index}" / f"g{index}.log").read_text().splitlines()
        assert [json.loads(line)["allowed"] for line in log if "gate-answer" in line] == [True]


def test_the_enclave_is_confined(appliance: Appliance) -> None:
    host = appliance.signer(1)
    (pid,) = host.unit(ENCLAVE, "MainPID")
    status = dict(line.split(":", 1) for line in host.run(f"cat /proc/{pid}/status").stdout.splitlines())
    # The unit asks for it; a machine whose root may not raise limits gives less, and the enclave says so.
    may_lock = "unlimited" in host.run(f"grep 'Max locked memory' /proc/{pid}/limits").stdout
    assert (int(status["VmLck"].split()[0]) > 0) == may_lock
    assert ("memory is not locked" in host.run(f"journalctl -u {ENCLAVE} --no-pager").stdout) != may_lock
    assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip(), status["CapEff"].strip()) == ("2", "1", "0" * 16)
    interfaces = host.run(f"nsenter -t {pid} -n ip -o link").stdout.splitlines()
    assert ["lo:" in line for line in interfaces] == [True]
    # What it could write, tried as its own user in its own mounts.
    command = f"nsenter -t {pid} -m -S $(id -u keymoot-enclave) -G $(id -g keymoot-enclave) -- touch"
    for path in ("/etc/keymoot/signer/x", "/var/lib/keymoot-signer/x", "/var/tmp/../lib/x", "/usr/x"):
        assert host.run(f"{command} {path}", check=False).returncode != 0
    host.run(f"{command} /run/keymoot-enclave/x && rm /run/keymoot-enclave/x")
    # The PIN is readable by the enclave's unit alone, and nowhere in plain.
    mode = host.run("stat -c '%a %U' /run/credentials/keymoot-enclave.service/hsm-pin").stdout.split()
    assert mode in (["400", "keymoot-enclave"], ["440", "root"], ["400", "root"])


def test_a_signer_reaches_coordinator_and_gate_and_nobody_else(appliance: Appliance) -> None:
    def reached(address: str, port: int) -> bool:
        program = f"import socket; socket.create_connection(('{address}', {port}), 2)"
        return appliance.signer(1).run(f'python3 -c "{program}"', check=False).returncode == 0

    assert reached("10.77.1.1", 8443)
    assert reached("10.78.1.1", 8090)
    assert not reached("10.77.2.2", 22)
    assert not reached("10.78.2.1", 8090)
    assert not reached("10.79.0.1", 8080)


def test_a_killed_enclave_is_started_again(appliance: Appliance) -> None:
    host = appliance.signer(2)
    (before,) = host.unit(ENCLAVE, "MainPID")
    host.run(f"kill -9 {before}")
    # Right after the signal systemd may not know of it yet.
    until("it is started again", lambda: host.unit(ENCLAVE, "ActiveState", "NRestarts") == ["active", "1"], 60)
    assert host.unit(ENCLAVE, "MainPID") != [before]
    appliance.await_ready()
    appliance.sign()


def test_a_hung_enclave_is_killed_by_the_watchdog_and_started_again(appliance: Appliance) -> None:
    host = appliance.signer(3)
    (before,) = host.unit(ENCLAVE, "MainPID")
    host.run(f"kill -{signal.SIGSTOP.value} {before}")
    until("the watchdog acts", lambda: host.unit(ENCLAVE, "NRestarts") == ["1"], 60)
    assert "Watchdog timeout" in host.run(f"journalctl -u {ENCLAVE} --no-pager").stdout
    appliance.await_ready()
    appliance.sign()


def test_a_signer_whose_power_was_cut_comes_back_by_itself(appliance: Appliance) -> None:
    host = appliance.signer(1)
    host.cut_power()
    host.boot()
    appliance.await_ready()
    appliance.sign()


def test_a_mistake_in_the_configuration_or_the_pin_is_told_and_not_retried(appliance: Appliance) -> None:
    host = appliance.signer(1)
    right = host.get("/etc/keymoot/signer/enclave.yaml")
    host.put("/etc/keymoot/signer/enclave.yaml", right + b"nonsense: true\n")
    _fails_once(host, "nonsense")
    _await_sentence(host, SIGNER, "No enclave: ")
    host.put("/etc/keymoot/signer/enclave.yaml", right)
    pin = enrol.change_pin(host)
    _fails_once(host, "refused the PIN from credential:hsm-pin")
    # What doctor and the operator's page say, with the PIN from elsewhere than a terminal.
    host.run(layout.SignerHost().new_pin.replace("-pin ", "-pin --pin-stdin "), pin.encode())
    appliance.await_ready()


def _fails_once(host: Host, reason: str) -> None:
    host.run(f"systemctl restart {ENCLAVE}", check=False)
    assert host.unit(ENCLAVE, "ActiveState", "ExecMainStatus", "NRestarts") == ["failed", "2", "0"]
    assert reason in host.run(f"journalctl -u {ENCLAVE} -n 5 --no-pager").stdout


def test_the_hsm_is_checked_and_the_gates_secrets_are_rotated_while_all_runs(appliance: Appliance) -> None:
    host, config = appliance.signer(3), "-c /etc/keymoot/signer/enclave.yaml"
    told = json.loads(host.run(f"keymoot hsm check {config} --json").stdout)
    assert (told["usable"], told["token"], told["profile"]) == (True, "keymoot", "gcm")
    assert {key["use"]: key["good"] for key in told["keys"]} == {"identity": True, "sealing": True}
    host.run(f"keymoot gate secret {config} --rotate --generate /root/rotated.json")
    gate = appliance.site.directory / "gate-3"
    (gate / "new.json").touch(mode=0o600)
    (gate / "new.json").write_bytes(host.get("/root/rotated.json"))
    (gate / "new.json").rename(gate / "gate-secrets.json")
    host.run(f"keymoot gate secret {config} --finish")

    def counting() -> list[int]:
        log = host.run(f"journalctl -u {ENCLAVE} -o cat --no-pager").stdout.splitlines()
        told = [json.loads(line) for line in log if '"gate secrets reloaded"' in line]
        return [told[-1]["requests"], told[-1]["answers"]] if told else []

    until("the enclave has the new ones alone", lambda: counting() == [1, 1], READY_TIMEOUT_S)
    assert host.run("stat -c '%U %G %a' /etc/keymoot/signer/gate-secrets.sealed").stdout == "root keymoot 640\n"
    appliance.sign()
    assert "gate-secrets-reloaded" in (gate / "g3.log").read_text()


def test_a_module_that_needs_a_socket_has_it_by_a_drop_in(appliance: Appliance) -> None:
    host = appliance.signer(2)
    enrol.put_behind_a_socket(host, "two")
    host.run("systemctl start keymoot-enclave@two")
    log = host.run("journalctl -u keymoot-enclave@two -o cat --no-pager").stdout.splitlines()
    (told,) = [json.loads(line) for line in log if line.startswith('{"lib":')]
    assert (told["token"], told["profile"]) == ("behind", "hmac-kdf")


def test_a_module_in_opt_is_loaded_and_a_directory_of_dev_can_be_shown(appliance: Appliance) -> None:
    host = appliance.signer(3)
    (pid,) = host.unit(ENCLAVE, "MainPID")
    assert enrol.IN_OPT in host.run(f"cat /proc/{pid}/maps").stdout
    host.run("mkdir /dev/vendor && touch /dev/vendor/server")
    command = "systemd-run --quiet --wait --pipe -p PrivateDevices=yes -p DevicePolicy=closed {} ls /dev/vendor"
    assert host.run(command.format(""), check=False).returncode != 0
    assert host.run(command.format("-p BindPaths=/dev/vendor")).stdout == "server\n"


def test_an_upgrade_of_one_host_after_the_other_keeps_keys_and_signing(appliance: Appliance) -> None:
    over = Event()
    with ThreadPoolExecutor(1) as client:
        signing = client.submit(appliance.sign_until, over)
        try:
            for host in (*map(appliance.signer, SIGNERS), appliance.coordinator):
                _install(host, appliance.following)
                assert host.run("keymoot --version").stdout == f"keymoot {image.NEXT_VERSION}\n"
                appliance.await_ready()
        finally:
            over.set()
        assert signing.result() >= len(SIGNERS)
    appliance.sign()
    listed = appliance.keymoot("keys", "list")
    assert appliance.key["id"] in json.dumps(listed)


def test_removal_keeps_everything_and_a_purge_deletes_only_after_a_yes(appliance: Appliance) -> None:
    host = appliance.signer(3)
    state = (
        "/var/lib/keymoot-signer/signer.db /etc/keymoot/signer/enclave.yaml /etc/credstore.encrypted/keymoot.hsm-pin"
    )
    host.run("DEBIAN_FRONTEND=noninteractive dpkg --remove keymoot")
    assert host.run("pgrep -u keymoot-enclave,keymoot-signer", check=False).stdout == ""
    host.run(f"ls {state}")
    purged = host.run("DEBIAN_FRONTEND=noninteractive dpkg --purge keymoot")
    assert "were left in" in purged.stderr
    host.run(f"ls {state}")
    # Installed again, it goes on where it was: the removal has kept the units enabled or not, the shares in any case.
    _install(host, appliance.following)
    host.run(f"systemctl enable --now {ENCLAVE} {SIGNER}")
    appliance.await_ready()
    appliance.sign()
    host.run("echo 'keymoot keymoot/delete-state boolean true' | debconf-set-selections")
    purged = host.run("DEBIAN_FRONTEND=noninteractive dpkg --purge keymoot")
    assert "were left in" not in purged.stderr
    assert host.run(f"ls -d {state} /etc/keymoot /var/lib/keymoot-signer", check=False).stdout == ""


def test_lintian_finds_nothing_in_the_package(appliance: Appliance) -> None:
    assert appliance.lintian.result() == ""

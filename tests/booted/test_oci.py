"""The image for containers: set up, signing, confined, stopped, with the compose file's settings and no engine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256

from appliance import configure, templates
from appliance.api.credentials import token_sha256
from tests.booted import enrol
from tests.booted.containers import COMPOSE, FIRST_ID, Container, Image, give
from tests.booted.machines import Site, until, why_not

ROOT = Path(__file__).parents[2]
KEYMOOT = Path(sys.executable).with_name("keymoot")
SIGNERS = range(1, 4)
MODULE = "/usr/lib/pkcs11/libsofthsm2.so"
TOKENS = {"SOFTHSM2_CONF": "/usr/lib/pkcs11/softhsm2.conf"}
READY_TIMEOUT_S = 90.0
WHY_NOT = why_not() or ("" if shutil.which("crun") else "needs crun")

pytestmark = [
    pytest.mark.appliance,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(WHY_NOT), reason=f"no container can be run here: {WHY_NOT}"),
]


class Containers:
    """A coordinator, and three signers with their enclaves."""

    def __init__(self, site: Site, image: Image, directory: Path) -> None:
        self.site, self.image, self.directory = site, image, directory
        self.network = f"/run/netns/{site.namespace('oci')}"
        self.client = directory / "client"
        self._directories = {
            name: directory / name for name in ("coordinator", *(f"signer-{index}" for index in SIGNERS))
        }
        for path in self._directories.values():
            for name in ("", "run", "state", "enclave-state"):
                (path / name).mkdir()
            give(path)
        self.coordinator = Container(image, "coordinator", "coordinator", directory / "c", self._places("coordinator"))
        self.enclaves, self.signers = (
            [
                Container(image, f"{service}-{index}", service, directory / f"{service}-{index}-c", self._signer(index))
                for index in SIGNERS
            ]
            for service in ("enclave", "signer")
        )

    def _places(self, name: str) -> dict[str, Path]:
        return {"coordinator": self._directories["coordinator"], "signer": self._directories.get(name, Path())}

    def _signer(self, index: int) -> dict[str, Path]:
        own = self.directory / f"host-{index}"
        places = {
            **self._places(f"signer-{index}"),
            **{name: own / name for name in ("hsm-pin", "module", "tokens")},
        }
        if not own.exists():
            for name in ("module", "tokens"):
                (own / name).mkdir(parents=True)
            shutil.copy("/usr/lib/softhsm/libsofthsm2.so", own / "module")
            (own / "module/softhsm2.conf").write_text(
                "directories.tokendir = /tmp/tokens\nobjectstore.backend = file\n"
            )
            (own / "outside.conf").write_text(f"directories.tokendir = {own}/tokens\nobjectstore.backend = file\n")
            (own / "hsm-pin").touch(0o400)
            (own / "hsm-pin").write_text(secrets.token_hex(8))
            pin = (own / "hsm-pin").read_text()
            subprocess.run(
                ["softhsm2-util", "--init-token", "--free", "--label", "keymoot", "--so-pin", pin, "--pin", pin],
                env={**os.environ, "SOFTHSM2_CONF": str(own / "outside.conf")},
                check=True,
                capture_output=True,
            )
            for name in ("hsm-pin", "module", "tokens"):
                give(own / name)
        return places

    @property
    def all(self) -> list[Container]:
        return [*self.enclaves, self.coordinator, *self.signers]

    def setup(self, container: Container, *arguments: str) -> None:
        """`keymoot setup` in a container."""
        command = ("setup", "--no-input", "--directory", "/etc/keymoot", *arguments)
        container.run(*command, network=self.network, environment=TOKENS, writes=True)

    def file(self, name: str, file: str) -> Path:
        return self._directories[name] / file

    def await_ready(self) -> None:
        """Until `keymoot status` finds nothing wrong."""
        command = self.site.inside("oci", KEYMOOT, "status", "--profile", self.client / "client.yaml")
        told = [""]

        def ready() -> bool:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            told[0] = done.stdout + done.stderr
            return done.returncode == 0

        try:
            until("all is well", ready, READY_TIMEOUT_S)
        except AssertionError as error:
            logs = "".join(f"{one.name}: {one.log.read_text()[-1500:]}\n" for one in self.all)
            raise AssertionError(f"{error}\n{told[0]}\n{logs}") from None

    def keymoot(self, *arguments: str) -> dict:  # type: ignore[type-arg]
        """A command of the client."""
        profile = self.client / "client.yaml"
        command = self.site.inside("oci", KEYMOOT, *arguments, "--profile", profile, "--json")
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr + "".join(one.log.read_text()[-2000:] for one in self.all)
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def containers(package: Path) -> Iterator[Containers]:
    # Not pytest's own, which is closed to the users of a container.
    with tempfile.TemporaryDirectory(prefix="keymoot-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)
        (directory / "image").mkdir()
        image = Image(_build(package), directory / "image")
        with Site(directory) as site:
            made = Containers(site, image, directory)
            try:
                _enrol(made)
                for container in made.all:
                    container.start(made.network, TOKENS)
                yield made
            finally:
                for container in made.all:
                    container.close()


def _build(package: Path) -> Path:
    told = subprocess.run(
        [ROOT / "packaging/oci/build.py"],
        env={**os.environ, "KEYMOOT_DEB": str(package)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Path(told.stdout.splitlines()[-1])


def _enrol(made: Containers) -> None:
    made.setup(
        made.coordinator, "--role", "coordinator", "--network", "net", "--name", "c", "--host", "localhost",
        "--address", "127.0.0.1", "--signers-listen", "0.0.0.0:8443", "--api-listen", "0.0.0.0:8080",
    )  # fmt: skip

    def first_run(index: int) -> None:
        ca = made.file(f"signer-{index}", "received.pem")
        shutil.copy(made.file("coordinator", "ca.pem"), ca)
        give(ca)
        made.setup(
            made.enclaves[index - 1], "--role", "signer", "--network", "net", "--name", f"signer-{index}", "--operator",
            f"op{index}", "--coordinator", "c=https://127.0.0.1:8443", "--coordinator-ca", "/etc/keymoot/received.pem",
            "--lib", MODULE, "--token-label", "keymoot", "--pin-file", "/run/secrets/hsm-pin", "--gate-mode", "none",
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(first_run, SIGNERS))
    roster = made.directory / "roster.yaml"
    identities = [made.file(f"signer-{index}", "identity.json") for index in SIGNERS]
    command = [KEYMOOT, "roster", "assemble", *identities, "--tolerate", "1", "--out", roster]
    subprocess.run(command, check=True, capture_output=True)
    setup = templates.ClientSetup(
        "net", enrol.CLIENT, "https://127.0.0.1:8080", made.file("coordinator", "ca.pem").read_bytes()
    )
    policy = enrol.policy(configure.write_client(made.client, setup))
    shutil.copy(roster, made.client)
    config = made.file("coordinator", "coordinator.yaml")
    reader = templates.reader_yaml(enrol.CLIENT, token_sha256(setup.token))
    config.write_text(config.read_text().replace("  readers:\n", f"  readers:\n{reader}"))
    made.file("coordinator", "clients.yaml").write_bytes(policy)
    authorities = []
    for index in SIGNERS:
        shutil.copy(made.file(f"signer-{index}", "ca.pem"), made.file("coordinator", f"received-{index}.pem"))
        authorities += ["--signers-ca", f"/etc/keymoot/received-{index}.pem"]
    for name in ("coordinator", *(f"signer-{index}" for index in SIGNERS)):
        shutil.copy(roster, made.file(name, "received.yaml"))
        made.file(name, "received-policy.yaml").write_bytes(policy)
        give(made.file(name, ""))
    made.setup(made.coordinator, "--role", "coordinator", "--roster", "/etc/keymoot/received.yaml", *authorities)
    for enclave in made.enclaves:
        took = ("--roster", "/etc/keymoot/received.yaml", "--policy", "/etc/keymoot/received-policy.yaml")
        made.setup(enclave, "--role", "signer", *took)


def test_the_compose_file_is_of_this_image(containers: Containers) -> None:
    assert {service["image"] for service in COMPOSE["services"].values()} == {containers.image.name}
    assert set(COMPOSE["services"]) == {"enclave", "signer", "coordinator"}
    assert all(service["read_only"] for service in COMPOSE["services"].values())


def test_a_key_is_made_and_signs(containers: Containers) -> None:
    containers.await_ready()
    key = containers.keymoot("keys", "create", "--label", "treasury/one")
    digest = secrets.token_bytes(32)
    value = containers.keymoot("sign", "hash", key["id"], digest.hex())["signature"]
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), bytes.fromhex(key["public_key"][2:]))
    der = utils.encode_dss_signature(int(value["r"], 16), int(value["s"], 16))
    public.verify(der, digest, ec.ECDSA(utils.Prehashed(SHA256())))


def test_no_process_is_root_or_may_become_it(containers: Containers) -> None:
    for container in containers.all:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{container.pid()}/status").read_text().splitlines())
        assert status["Uid"].split() == [str(FIRST_ID + 10001)] * 4
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {0}
        assert status["NoNewPrivs"].strip() == "1"


def test_nothing_is_writable_but_what_is_mounted_for_it(containers: Containers) -> None:
    written = {
        "enclave": {"/etc/keymoot/run", "/etc/keymoot/enclave-state", "/tmp"},
        "signer": {"/etc/keymoot/run", "/etc/keymoot/state", "/tmp"},
        "coordinator": {"/etc/keymoot/state", "/tmp"},
    }
    tried = {"/", "/etc/keymoot", "/usr/lib/keymoot", "/var/lib", "/home"}.union(*written.values())
    for container in (containers.enclaves[0], containers.signers[0], containers.coordinator):
        service = container.name.partition("-")[0]
        for directory in tried:
            done = container.attempt("/usr/bin/touch", f"{directory}/x")
            assert (done.returncode == 0) == (directory in written[service]), (service, directory, done.stderr)


def test_an_enclave_has_no_network(containers: Containers) -> None:
    for enclave in containers.enclaves:
        listed = enclave.attempt("/usr/bin/cat", "/proc/net/dev").stdout.splitlines()[2:]
        assert [line.split(":")[0].strip() for line in listed] in ([], ["lo"])


def test_each_ends_well_when_it_is_asked_to(containers: Containers) -> None:
    assert [container.stop() for container in containers.all] == [0] * 7

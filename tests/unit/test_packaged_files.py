"""What the Debian package brings beside the program: examples that load, a manual, version and metadata that agree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from appliance import layout
from appliance.coordinator.config import CoordinatorConfig
from appliance.gate.config import GateConfig
from appliance.profile import ProfileFile
from appliance.signer.config import SignerConfig
from enclave.config import EnclaveFile
from policies.load import load_policy, load_yaml
from policies.roster import Roster

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "packaging/debian"
FORMATS = {
    "enclave.yaml": EnclaveFile,
    "signer.yaml": SignerConfig,
    "coordinator.yaml": CoordinatorConfig,
    "gate.yaml": GateConfig,
    "client.yaml": ProfileFile,
    "roster.yaml": Roster,
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("examples")
    subprocess.run([sys.executable, ROOT / "packaging/examples.py", directory], check=True)
    return directory


@pytest.mark.parametrize("name", FORMATS)
def test_an_example_loads_and_says_what_is_what(examples, name):
    load_yaml(examples / name, FORMATS[name])
    assert (examples / name).read_text().count("#") >= 3


def test_policies_among_the_examples_load(examples):
    worked = [path for path in examples.glob("policy-*.yaml") if not path.name.endswith(".table.yaml")]
    policies = [*worked, examples / "clients.yaml"]
    assert len(policies) >= 3
    for path in policies:
        load_policy(path)


def test_there_are_no_other_examples(examples):
    assert {path.name for path in examples.iterdir() if not path.name.startswith("policy-")} == {
        *FORMATS,
        "clients.yaml",
    }


def test_the_manual_describes_every_command_and_has_no_fault():
    page = subprocess.run([sys.executable, ROOT / "packaging/man.py"], check=True, capture_output=True).stdout
    told = subprocess.run([sys.executable, "-m", "appliance.cli", "--help"], check=True, capture_output=True, text=True)
    for command in re.findall(r"^│ ([a-z][a-z-]*) ", told.stdout, re.MULTILINE):
        assert f"keymoot {command}".replace("-", "\\-").encode() in page
    if shutil.which("groff"):
        for text in (page, (DEBIAN / "keymoot-appliance.7").read_bytes()):
            done = subprocess.run(
                ["groff", "-Kutf8", "-man", "-Tutf8", "-wall"], input=text, capture_output=True, check=True
            )
            assert done.stderr == b""


def test_the_package_has_the_version_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (DEBIAN / "changelog").read_text().startswith(f"keymoot ({version}) ")


def locked(name: str) -> dict[str, tuple[str, str]]:
    """Of what a lock names: version and marker. Each has digests."""
    text = (ROOT / "packaging" / name).read_text().replace("\\\n", " ")
    found = re.findall(r"^([a-z0-9-]+)==(\S+)(?: ; (.*?))?((?: +--hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    assert len(found) == sum(not line.lstrip().startswith("#") for line in text.splitlines())
    # Nobody's directories.
    assert not re.search(r"#.*\s\(?/", text)
    return {name: (version, marker) for name, version, marker, _ in found}


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock"])
def test_what_the_package_is_made_of_is_locked_as_the_project_wants_it(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = "build" in name
    wanted = project["build-system"]["requires"] if build else project["project"]["dependencies"]
    there = locked(name)
    for requirement in map(Requirement, wanted):
        version, marker = there[requirement.name]
        assert (requirement.specifier.contains(version), marker) == (True, ""), requirement
    # The build itself lets pip check what the libraries want of each other.
    rules = (DEBIAN / "rules").read_text()
    assert f"$(PIP) $(LOCKED) {'' if build else '--no-compile --target $(SITE) '}-r packaging/{name}\n" in rules
    assert "LOCKED := --require-hashes --only-binary=:all: --no-deps\n" in rules
    assert "-m pip check\n" in rules


def test_what_the_enclave_narrows_itself_with_comes_with_package_and_image():
    needed = "libseccomp2"
    assert needed in (ROOT / "enclave/confine.py").read_text()
    (depends,) = re.findall(r"^Depends: (.*)$", (DEBIAN / "control").read_text(), re.MULTILINE)
    assert needed in depends.split(", ")
    assert re.search(rf"--include=\S*\b{needed}\b", (ROOT / "packaging/oci/build.py").read_text())


def test_the_compose_file_confines_every_process_and_gives_the_enclave_no_network():
    services = yaml.safe_load((ROOT / "packaging/oci/compose.yaml").read_text())["services"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert set(services) == {"enclave", "signer", "coordinator"}
    for service in services.values():
        assert (service["image"], service["user"]) == (f"keymoot:{version}", "10001:10001")
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["ulimits"]["core"] == 0
    assert services["enclave"]["network_mode"] == "none"
    assert [name for name, service in services.items() if "ports" in service] == ["coordinator"]


def test_each_signer_of_a_host_has_a_port_for_its_metrics():
    unit = (ROOT / "packaging/systemd/keymoot-signer.service.in").read_text()
    (first, last) = re.findall(r"^SocketBindAllow=tcp:(\d+)-(\d+)$", unit, re.MULTILINE)[0]
    assert int(last) - int(first) == 15
    page = (ROOT / "packaging/METRICS.md").read_text()
    assert f"metrics: 127.0.0.1:{first}" in page
    assert f"lets a signer listen on {first} to {last}:" in page


def test_the_manual_encrypts_the_pin_as_setup_does():
    page = (DEBIAN / "keymoot-appliance.7").read_text().replace("\\-", "-")
    (key,) = set(re.findall(r'"(--with-key=\S+)"', (ROOT / "appliance/setup/pins.py").read_text()))
    assert f"systemd-creds encrypt {key} --name={layout.PIN_CREDENTIAL} PIN-FILE {layout.SignerHost().pin_file}" in page


def test_a_file_that_git_does_not_know_is_in_no_package(tmp_path):
    tracked = {
        "packaging/debian/changelog": "other (9)\n",
        "pyproject.toml": 'version = "1"\n',
        "examples/README.md": "a",
    }
    tools = {"packaging/build-deb": (ROOT / "packaging/build-deb").read_text(), "packaging/bootstrap": "#!/bin/sh\n"}
    for name, text in (tracked | tools).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for command in (("init", "-q"), ("add", ".")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "examples/README.md").write_text("changed")
    (tmp_path / "examples/gate-secrets.json").touch()
    # It ends at the changelog's version, when the files are copied.
    done = subprocess.run([tmp_path / "packaging/build-deb"], capture_output=True, text=True, check=False)
    assert "does not begin with version 1" in done.stderr
    assert "git does not know it (git add): examples/gate-secrets.json" in done.stderr
    copied = tmp_path / "build/deb/keymoot/examples"
    assert [(path.name, path.read_text()) for path in copied.iterdir()] == [("README.md", "changed")]


def test_drop_ins_are_listed_in_the_manual():
    page = (DEBIAN / "keymoot-appliance.7").read_text().replace("\\-", "-")
    drop_ins = sorted(path.name for path in (ROOT / "packaging/systemd/drop-ins").iterdir())
    assert drop_ins == sorted(set(re.findall(r"[a-z-]+\.conf", page)))

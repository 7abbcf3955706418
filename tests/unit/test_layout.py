"""The places of an installed host, in configurations and in `layout`."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

import msgspec
import pytest

from appliance import layout, templates
from appliance.checkup import doctor
from appliance.checkup import host as signers_host
from appliance.coordinator import config as coordinator_config
from appliance.credential_files import resolved
from appliance.setup import modules
from appliance.setup.answers import Answers
from appliance.setup.hosts import Place
from appliance.setup.signer import Done
from appliance.setup.steps import next_steps
from appliance.signer import config as signer_config
from enclave.config import EnclaveFile
from policies.errors import CallerError
from policies.load import load_yaml

ROOT = Path(__file__).parents[2]
HSM = templates.Hsm("/usr/lib/softhsm/libsofthsm2.so", "keymoot", f"credential:{layout.PIN_CREDENTIAL}")


def signer_setup(host: layout.SignerHost) -> templates.SignerSetup:
    coordinator = templates.CoordinatorAddress("c", "https://c:8443", b"")
    gate = templates.GateAddress("https://gate:8090/validate", b"")
    return templates.SignerSetup("net", "s1", (coordinator,), HSM, gate, host.places)


@pytest.mark.parametrize("instance", [None, "two"])
def test_an_installed_signers_configuration_names_the_places_of_its_units(instance, tmp_path, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/unit")
    host, at = layout.SignerHost(instance), "" if instance is None else "-two"
    (tmp_path / "enclave.yaml").write_text(templates.enclave_yaml(signer_setup(host)))
    (tmp_path / "signer.yaml").write_text(templates.signer_yaml(signer_setup(host)))
    enclave = load_yaml(tmp_path / "enclave.yaml", EnclaveFile)
    assert (enclave.socket, enclave.signer_user) == (f"/run/keymoot-enclave{at}/enclave.sock", "keymoot-signer")
    signer = signer_config.load_config(tmp_path / "signer.yaml")
    assert signer.enclave_socket == Path(enclave.socket)
    assert signer.state == Path(f"/var/lib/keymoot-signer{at}/signer.db")
    assert signer.status_socket == Path(f"/run/keymoot-signer{at}/signer.sock")
    assert signer.coordinators[0].key == Path("/run/credentials/unit/signer.key")
    assert signer.coordinators[0].certificate == tmp_path / "signer.pem"


@pytest.mark.parametrize("instance", [None, "two"])
def test_an_installed_coordinators_configuration_names_the_places_of_its_unit(instance, tmp_path, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    host, at = layout.CoordinatorHost(instance), "" if instance is None else "-two"
    setup = templates.CoordinatorSetup("net", "c", places=host.places)
    (tmp_path / "coordinator.yaml").write_text(templates.coordinator_yaml(setup))
    config = coordinator_config.load_config(tmp_path / "coordinator.yaml")
    assert config.state == Path(f"/var/lib/keymoot-coordinator{at}/coordinator.db")
    # No unit runs this: the key is looked for where root has put it.
    assert config.signers.key == config.api.key == tmp_path / "server.key"


def test_directories_and_units_of_one_and_of_several():
    assert layout.SignerHost().configuration == Path("/etc/keymoot/signer")
    assert layout.SignerHost("two").configuration == Path("/etc/keymoot/signers/two")
    assert layout.SignerHost().units == ("keymoot-enclave.service", "keymoot-signer.service")
    assert layout.SignerHost("two").units == ("keymoot-enclave@two.service", "keymoot-signer@two.service")
    assert layout.SignerHost().pin_file == Path("/etc/credstore.encrypted/keymoot.hsm-pin")
    assert layout.SignerHost("two").pin_file == Path("/etc/credstore.encrypted/keymoot.two.hsm-pin")
    assert layout.CoordinatorHost().configuration == Path("/etc/keymoot/coordinator")
    assert layout.CoordinatorHost("two").configuration == Path("/etc/keymoot/coordinators/two")
    assert layout.CoordinatorHost("two").unit == "keymoot-coordinator@two.service"


@pytest.mark.parametrize("host", [layout.SignerHost(), layout.SignerHost("two")])
def test_an_installed_signer_is_known_by_its_directory(host):
    assert layout.signer_at(host.configuration) == host
    assert layout.signer_at(Path("/etc/keymoot/elsewhere")) is None


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc/shadow", "-x"])
def test_a_credentials_name_is_no_path(name, tmp_path):
    with pytest.raises(CallerError, match="a credential's name is"):
        resolved(tmp_path, Path(f"credential:{name}"), {"CREDENTIALS_DIRECTORY": "/run/credentials/unit"})


def enclave_file(**more: object) -> EnclaveFile:
    hsm = {"lib": "/x.so", "pin": "file:pin", "token_label": "t"}
    base = {"network": "n", "signer": "s", "roster": "r", "policy": "p", "socket": "s", "hsm": hsm}
    return msgspec.convert({**base, "gate": {"mode": "none"}, **more}, EnclaveFile)


def test_who_may_connect_to_an_enclave():
    own = pwd.getpwuid(os.getuid())
    assert enclave_file().peer_uid == own.pw_uid
    assert enclave_file(signer_uid=4711).peer_uid == 4711
    assert enclave_file(signer_user="root").peer_uid == 0
    with pytest.raises(CallerError, match="this machine has no user nobody-such"):
        _ = enclave_file(signer_user="nobody-such").peer_uid
    with pytest.raises(msgspec.ValidationError, match="one of them"):
        enclave_file(signer_uid=1, signer_user="root")


def test_every_module_that_setup_finds_may_be_loaded_by_the_enclaves_unit():
    unit = (ROOT / "packaging/systemd/keymoot-enclave.service.in").read_text()
    (allowed,) = re.findall(r"^ExecPaths=(.*)$", unit, re.MULTILINE)
    assert [Path(place.removeprefix("-")) for place in allowed.split()] == list(layout.EXECUTABLE)
    for patterns in modules.KNOWN.values():
        for pattern in patterns:
            assert layout.may_load(Path("/", pattern))


def test_a_module_elsewhere_needs_a_drop_in_which_setup_names(tmp_path):
    lib = tmp_path / "vendor/lib.so"
    place = Place(layout.SignerHost().configuration, units=layout.SignerHost().units)

    def told(at: Path) -> list[str]:
        steps = next_steps(Answers(role="signer"), Done(place.directory, lib=str(at)), place)
        return [step for step in steps if "ExecPaths=" in step]

    assert told(Path("/opt/vendor/lib.so")) == []
    assert told(lib) == [
        f"Let the enclave load {lib}: systemctl edit keymoot-enclave.service, with [Service] and "
        f"ExecPaths={lib.parent}, and of the libraries that it needs."
    ]


@pytest.mark.parametrize("instance", [None, "two"])
def test_the_commands_for_another_pin_are_those_of_this_signer(instance):
    host = layout.SignerHost(instance)
    command, restart = host.new_pin.split(" && ")
    assert command.split()[1:] == ["setup", "--replace-pin", *([] if instance is None else ["--instance", instance])]
    assert restart == f"systemctl restart {host.units[0]}"
    assert f"`{layout.SignerHost().new_pin.removesuffix('.service')}`" in (ROOT / "packaging/README.md").read_text()


@pytest.mark.parametrize("instance", [None, "two"])
def test_who_does_not_run_on_an_installed_host_is_looked_for_in_its_unit(instance, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "CONFIGURATION", tmp_path)
    installed = layout.SignerHost(instance)
    assert signers_host._start_enclave(installed.configuration).startswith(f"systemctl status {installed.units[0]};")
    assert signers_host._start_enclave(tmp_path).startswith(f"keymoot enclave run -c {tmp_path / 'enclave.yaml'};")


@pytest.mark.parametrize("instance", [None, "two"])
def test_what_doctor_says_of_a_refused_pin(instance, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "CONFIGURATION", tmp_path)
    directory = layout.SignerHost(instance).configuration
    directory.mkdir(parents=True)
    config = directory / "enclave.yaml"
    config.write_text("hsm: {pin: 'credential:hsm-pin'}\n")
    assert doctor._right_pin(config) == f"As root: {layout.SignerHost(instance).new_pin}"
    (tmp_path / "enclave.yaml").write_text(config.read_text())
    assert "restart it" in doctor._right_pin(tmp_path / "enclave.yaml")
    config.write_text("hsm: {pin: 'file:pin'}\n")
    assert doctor._right_pin(config) == "Write the right PIN into that file; the enclave takes it up."


def test_the_drop_in_of_a_signers_network():
    assert layout.network_drop_in(["192.0.2.7", "2001:db8::/64"]).splitlines()[1:] == [
        "[Service]",
        "IPAddressDeny=any",
        "IPAddressAllow=localhost",
        "IPAddressAllow=192.0.2.7",
        "IPAddressAllow=2001:db8::/64",
    ]

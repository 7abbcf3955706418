"""The units of an installed host: complete, hardened, and of the places that `appliance.layout` names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from appliance import layout
from appliance.checkup import confinement

RENDER = Path(__file__).parents[2] / "packaging/systemd/render"
# Of ten, as `systemd-analyze security` counts.
MOST_EXPOSED = confinement.MOST_EXPOSED
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


@pytest.fixture(scope="module")
def units(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("units")
    subprocess.run([RENDER, directory], check=True)
    return directory


def settings(units: Path, unit: str, instance: str = "") -> dict[str, list[str]]:
    """Every setting of a unit, each with all its values; %i as systemd sets it."""
    found: dict[str, list[str]] = {}
    file = units / unit.replace(f"@{instance}", "@")
    for line in file.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value.replace("%i", instance))
    return found


def test_each_process_has_a_unit_and_a_template(units):
    assert sorted(path.name for path in units.iterdir()) == sorted(
        f"keymoot-{process}{at}.service" for process in MOST_EXPOSED for at in ("", "@")
    )
    assert not any("@AT@" in path.read_text() or "@D" in path.read_text() for path in units.iterdir())


@needs_systemd
@pytest.mark.parametrize("process", MOST_EXPOSED)
@pytest.mark.parametrize("at", ["", "@"])
def test_exposure(units, process, at):
    threshold = str(round(MOST_EXPOSED[process] * 10))
    done = subprocess.run(
        [ANALYZE, "security", "--offline=yes", f"--threshold={threshold}", units / f"keymoot-{process}{at}.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@needs_systemd
@pytest.mark.parametrize("drop_in", sorted(path.name for path in (RENDER.parent / "drop-ins").iterdir()))
def test_exposure_with_each_drop_in_is_what_doctor_takes(units, tmp_path, drop_in):
    process = drop_in.split("-")[0] if drop_in.startswith("signer") else "enclave"
    most = confinement.MOST_EXPOSED_NETWORK if "network" in drop_in else confinement.MOST_EXPOSED[process]
    unit = tmp_path / f"keymoot-{process}.service"
    unit.write_text((units / unit.name).read_text() + (RENDER.parent / "drop-ins" / drop_in).read_text())
    command = [ANALYZE, "security", "--offline=yes", f"--threshold={round(most * 10)}", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@needs_systemd
@pytest.mark.parametrize("process", MOST_EXPOSED)
def test_an_exposed_unit_would_be_noticed(units, tmp_path, process):
    text = (units / f"keymoot-{process}.service").read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("Protect", "Private", "SystemCall", "Restrict"))]
    (tmp_path / "keymoot-bare.service").write_text("\n".join(kept))
    done = subprocess.run(
        [ANALYZE, "security", "--offline=yes", "--threshold=15", tmp_path / "keymoot-bare.service"],
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0


@pytest.mark.parametrize("instance", [None, "two"])
def test_units_are_of_the_places_that_the_configuration_names(units, instance):
    signer, coordinator = layout.SignerHost(instance), layout.CoordinatorHost(instance)
    enclave_unit, signer_unit = (settings(units, unit, instance or "") for unit in signer.units)
    coordinator_unit = settings(units, coordinator.unit, instance or "")
    assert enclave_unit["ExecStart"][0].endswith(f"--config {signer.configuration}/enclave.yaml")
    assert signer_unit["ExecStart"][0].endswith(f"--config {signer.configuration}/signer.yaml")
    assert coordinator_unit["ExecStart"][0].endswith(f"--config {coordinator.configuration}/coordinator.yaml")
    assert enclave_unit["ConditionPathExists"] == [f"{signer.configuration}/enclave.yaml"]
    assert enclave_unit["LoadCredentialEncrypted"] == [f"{layout.PIN_CREDENTIAL}:{signer.pin_file.name}"]
    assert (enclave_unit["User"], enclave_unit["Group"]) == ([layout.ENCLAVE_USER], [layout.GROUP])
    assert (signer_unit["User"], signer_unit["Group"]) == ([layout.SIGNER_USER], [layout.GROUP])
    assert coordinator_unit["User"] == coordinator_unit["Group"] == [layout.COORDINATOR_USER]
    assert str(Path(signer.places.enclave_socket).parent) == f"/run/{enclave_unit['RuntimeDirectory'][0]}"
    assert signer.places.enclave_state == f"/var/lib/{enclave_unit['StateDirectory'][0]}"
    assert str(Path(signer.places.status_socket).parent) == f"/run/{signer_unit['RuntimeDirectory'][0]}"
    assert str(Path(signer.places.state or "").parent) == f"/var/lib/{signer_unit['StateDirectory'][0]}"
    assert str(Path(coordinator.places.state or "").parent) == f"/var/lib/{coordinator_unit['StateDirectory'][0]}"
    assert signer_unit["LoadCredential"] == [f"signer.key:{signer.configuration}/signer.key"]
    assert coordinator_unit["LoadCredential"] == [f"server.key:{coordinator.configuration}/server.key"]
    assert signer_unit["Wants"] == signer_unit["After"] == [f"{signer.units[0]} network-online.target"]


@pytest.mark.parametrize("process", MOST_EXPOSED)
def test_what_every_unit_says_of_its_life(units, process):
    unit = settings(units, f"keymoot-{process}.service")
    assert (unit["Type"], unit["Restart"], unit["StartLimitIntervalSec"]) == (["notify"], ["always"], ["0"])
    assert unit["RestartPreventExitStatus"] == ["2"]  # a mistake in the configuration; also a PIN that was refused
    assert (unit["WatchdogSec"], unit["WatchdogSignal"]) == (["30"], ["SIGKILL"])
    assert (unit["LimitCORE"], unit["MemoryDenyWriteExecute"]) == (["0"], ["yes"])
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == [""]


def test_the_enclave_has_no_network_and_writes_nothing_but_its_runtime_directory_and_freezes(units):
    unit = settings(units, "keymoot-enclave.service")
    assert (unit["PrivateNetwork"], unit["RestrictAddressFamilies"]) == (["yes"], ["AF_UNIX"])
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["StateDirectory"] == ["keymoot-enclave"]
    assert not {"ReadWritePaths", "CacheDirectory", "LogsDirectory", "BindPaths"} & set(unit)
    assert (unit["LimitMEMLOCK"], unit["MemorySwapMax"]) == (["infinity"], ["0"])


def test_a_store_may_be_migrated_for_as_long_as_it_takes(units):
    """Before a process says that it is ready, which starts its watchdog."""
    for process, allowed in (("enclave", "90"), ("signer", "infinity"), ("coordinator", "infinity")):
        assert settings(units, f"keymoot-{process}.service")["TimeoutStartSec"] == [allowed]


def test_the_coordinator_may_open_as_many_files_as_its_limits_need(units):
    assert int(settings(units, "keymoot-coordinator.service")["LimitNOFILE"][0]) >= 12_512

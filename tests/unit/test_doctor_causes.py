"""What `keymoot doctor` says where an HSM cannot be used and where processes are of two versions; and that each of its
checks is seen failing by some test."""

from __future__ import annotations

import ast
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from appliance.checkup import doctor, others
from appliance.checkup.checks import Check, Looked, run
from appliance.checkup.host import SignerHost
from appliance.cli.status_screen import _host_fields
from appliance.coordinator.config import PoolSettings
from appliance.hsm_check import Checked, ConfiguredKey
from appliance.signer.config import SignerConfig
from appliance.signer.status import SignerStatus
from policies.errors import Unavailable
from tests.fakes.certificates import Dealer
from tests.fakes.coordinator_side import Files

ROOT = Path(__file__).parents[2]
UNIT, SYSTEM = "tests/unit/test_doctor_checks.py", "tests/system/test_doctor.py"
NETWORK = "tests/unit/test_checkup_network.py"
AWAY = (SYSTEM, "test_a_gate_a_coordinator_and_an_enclave_that_are_away")
OFF = ("tests/unit/test_doctor_causes.py", "test_a_clock_that_is_off_its_peers")
# By check: the tests that see it fail for its causes.
SEEN_FAILING = {
    "agreement": [(SYSTEM, "test_files_that_are_not_those_that_run")],
    "authorities": [("tests/unit/test_doctor_causes.py", "test_whose_authority_is_whose")],
    "certificates": [(SYSTEM, "test_clocks_that_differ_and_certificates_that_end")],
    "clock": [(UNIT, "test_a_clock_that_nothing_keeps_right")],
    "clocks": [(SYSTEM, "test_clocks_that_differ_and_certificates_that_end")],
    "configuration": [(SYSTEM, "test_a_configuration_with_a_mistake_in_it")],
    "connections": [AWAY],
    "disk": [(UNIT, "test_little_room_is_a_warning")],
    "files": [(SYSTEM, "test_secrets_that_everybody_may_read")],
    "filter": [(UNIT, "test_the_enclaves_own_filter"), (UNIT, "test_a_host_without_libseccomp")],
    "gate": [AWAY],
    "gate-conformance": [(SYSTEM, "test_what_an_enclave_relies_on_at_its_gate")],
    "hardening": [(UNIT, "test_the_hardening_of_a_unit")],
    "hsm": [
        (SYSTEM, "test_hsm_keys_that_are_missing_or_anothers"),
        ("tests/unit/test_doctor_causes.py", "test_an_hsm_that_cannot_be_used"),
    ],
    "memory": [(UNIT, "test_a_core_dump_and_a_swap")],
    "network": [
        (SYSTEM, "test_a_coordinators_operator_sees_the_network"),
        (NETWORK, "test_each_trouble_of_a_signer_has_its_finding"),
        (NETWORK, "test_each_trouble_of_the_coordinator_has_its_finding"),
    ],
    "processes": [AWAY, ("tests/unit/test_doctor_causes.py", "test_processes_of_two_versions"), OFF],
    "reach": [(UNIT, "test_whom_a_signer_may_reach")],
    "separation": [(UNIT, "test_the_signers_user_owns_nothing_of_the_enclaves")],
    "snapshots": [(UNIT, "test_copies_of_a_virtual_machine")],
    "store": [(UNIT, "test_a_store_that_is_whole_and_one_that_is_damaged")],
}
STATUS = SignerStatus("n", "0.2.0", "ready", "", gate=False, gate_reason=None, coordinators=(), values={}, queues={})
MODULE = Checked(
    "/x.so", "Acme", "", "1.0", "vault", 0, 1.0, 1.0, (), (ConfiguredKey("identity", "k", good=True, detail="aa"),),
    "gcm", "",
)  # fmt: skip


@contextmanager
def saying(path: Path, status: SignerStatus) -> Iterator[None]:
    """A signer's status socket that answers once."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                while connection.recv(4096):
                    pass
                connection.sendall(msgspec.json.encode(status))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
        thread.join(10)


def processes(directory: Path, status: SignerStatus) -> Looked:
    path = directory / "s"
    config = SignerConfig("n", directory / "e", directory / "state", (), status_socket=path)
    path.unlink(missing_ok=True)
    with saying(path, status):
        return doctor._processes(doctor._Seen(directory, "s1"), config)


def test_processes_of_two_versions(tmp_path: Path) -> None:
    told = processes(tmp_path, msgspec.structs.replace(STATUS, enclave_version="0.1.0"))
    (one,) = told.findings
    assert (one.severity.value, one.what) == ("problem", "its signer runs version 0.2.0, its enclave 0.1.0")
    assert one.remedy.startswith("Restart the older one")
    told = processes(tmp_path, msgspec.structs.replace(STATUS, enclave_version="0.2.0"))
    assert (told.findings, told.good) == ([], "signer and enclave run version 0.2.0, ready")


def test_a_clock_that_is_off_its_peers(tmp_path: Path) -> None:
    values = {"clock_off|s2|ahead": 4, "clock_off|s3|behind": 30, "clock_off|odd": 99, "presignatures": 9}
    assert STATUS.clocks_off() == []
    near = msgspec.structs.replace(STATUS, enclave_version="0.2.0", values=values)
    assert near.clocks_off() == [(30, "behind", "s3"), (4, "ahead", "s2")]
    assert processes(tmp_path, near).findings == []
    for side, told in (("behind", "behind"), ("ahead", "ahead of")):
        off = msgspec.structs.replace(near, values={**values, f"clock_off|s4|{side}": 7200})
        (one,) = processes(tmp_path, off).findings
        assert (one.severity.value, one.what) == ("warning", f"this host's clock is 2 h {told} that of s4")
        assert one.remedy.startswith("Find out which one is wrong")
        fields = {name: value.plain for name, value in _host_fields(SignerHost(".", "s1", None, off))}
        assert fields["clock"] == f"7200 s {told} s4"


def hsm(
    directory: Path, monkeypatch: pytest.MonkeyPatch, found: Checked | Unavailable, seen: doctor._Seen
) -> list[str]:
    (directory / "enclave.yaml").write_text("hsm: {pin: 'file:pin'}\n")

    def look(*_: object) -> Checked:
        if isinstance(found, Unavailable):
            raise found
        return found

    monkeypatch.setattr(doctor, "check_module", look)
    (told,) = run([Check("hsm", "s1", lambda: doctor._hsm(seen))])
    return [told.result.value, told.what]


def test_an_hsm_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = doctor._Seen(tmp_path, "s1")
    assert hsm(tmp_path, monkeypatch, MODULE, seen)[0] == "ok"
    useless = msgspec.structs.replace(MODULE, profile=None, reason="it has no AES")
    assert hsm(tmp_path, monkeypatch, useless, seen) == ["problem", "Keymoot cannot use token vault: it has no AES"]
    missing = msgspec.structs.replace(MODULE, keys=(ConfiguredKey("sealing", "k", good=False, detail="no key 'k'"),))
    assert hsm(tmp_path, monkeypatch, missing, seen) == ["problem", "no key 'k'"]
    away = Unavailable("no token vault", "plug it in")
    assert hsm(tmp_path, monkeypatch, away, seen) == ["problem", "no token vault (plug it in)"]
    # A token that counts wrong PINs is not given one more.
    seen.status = msgspec.structs.replace(STATUS, enclave="hsm-away", reason="the token refused the PIN")
    assert hsm(tmp_path, monkeypatch, MODULE, seen) == ["problem", "the token refused the PIN"]


def test_whose_authority_is_whose(tmp_path: Path) -> None:
    dealer = Dealer.make(3, 1)
    config = Files(tmp_path).config(dealer, PoolSettings(2, 8, 8))

    def told(**files: Path) -> list[tuple[str, str]]:
        named = {name.replace("_", "-"): path for name, path in files.items()}
        changed = msgspec.structs.replace(config.signers, authorities=named)
        found = others.authorities("c", msgspec.structs.replace(config, signers=changed))
        return [(one.severity.value, one.what) for one in found]

    ca = tmp_path / "ca.pem"
    assert told(signer_1=ca, signer_2=ca, signer_3=ca) == []
    ((severity, what),) = told()
    assert (severity, what[:35]) == ("note", "any of the signers' authorities may")
    assert told(signer_1=ca, signer_3=ca) == [
        ("problem", "signers.authorities names no authority of signer-2, who is refused")
    ]
    missing = told(signer_1=ca, signer_2=ca, signer_3=tmp_path / "gone.pem")
    assert missing == [("problem", f"cannot read the authority {tmp_path / 'gone.pem'}: No such file or directory")]


def test_every_check_is_seen_failing() -> None:
    checks = set()
    for path in (ROOT / "appliance/checkup").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Check":
                assert isinstance(node.args[0], ast.Constant)
                checks.add(node.args[0].value)
    assert checks == set(SEEN_FAILING)
    for file, test in {one for tests in SEEN_FAILING.values() for one in tests}:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}: {test}"

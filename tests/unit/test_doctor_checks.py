"""Single checks of `keymoot doctor`, each shown well and failing, on made-up machines and real files."""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import os
import socket
import sqlite3
import threading
from pathlib import Path

import pytest

from appliance.checkup import confinement, disks, machine
from appliance.checkup.checks import Check, Checked, Looked, Result, need_attention, run
from appliance.checkup.confinement import Running
from appliance.checkup.findings import note, warning
from policies.errors import CallerError, Unavailable
from tests.fakes.disks import small_disk


def results(looked: Looked) -> list[tuple[str, str]]:
    return [(one.severity.value, one.what) for one in looked.findings]


# --- how checks are run ---


def failing() -> Looked:
    raise Unavailable("the thing is away", "bring it back")


def test_a_check_tells_its_result_whatever_it_is() -> None:
    checks = [
        Check("a", "s", lambda: Looked("is right")),
        Check("b", "s", lambda: Looked("", [warning("t", "may fail", "mend it"), note("s", "is so", "as meant")])),
        Check("c", "s", failing, "look there"),
    ]
    assert list(run(checks)) == [
        Checked("a", "s", Result.OK, "is right"),
        Checked("b", "t", Result.WARNING, "may fail", "mend it"),
        Checked("b", "s", Result.NOTE, "is so", "as meant"),
        Checked("c", "s", Result.PROBLEM, "the thing is away (bring it back)", "look there"),
    ]


def test_notes_are_well() -> None:
    told = list(run([Check("b", "s", lambda: Looked("", [note("s", "is so", "as meant")]))]))
    assert not need_attention(told)
    assert need_attention(run([Check("c", "s", failing)]))


def test_a_check_that_hangs_is_left() -> None:
    never = threading.Event()

    def hang() -> Looked:
        never.wait()
        return Looked("")

    (told,) = run([Check("disk", "s", hang, "see its server")], timeout_s=0.05)
    assert told == Checked("disk", "s", Result.PROBLEM, "the check did not end within 0 s", "see its server")
    never.set()


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        list(run([Check("a", "s", lambda: Looked(str(1 // 0)))]))


# --- the machine ---


def test_a_clock_that_nothing_keeps_right() -> None:
    assert results(machine.check_clock(lambda: 0)) == []
    assert results(machine.check_clock(lambda: 5)) == [("warning", "nothing keeps the clock right")]
    assert machine.clock_state() in range(6)


def a_machine(root: Path, *, virtual: bool, device: bool = False, kernel: str = "6.12.1", rule: bool = False) -> Path:
    for place in ("proc/sys/kernel", "sys/bus/platform/drivers/vmgenid", "etc/udev/rules.d"):
        (root / place).mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(f"flags\t\t: fpu {'hypervisor ' if virtual else ''}sse\n")
    (root / "proc/sys/kernel/osrelease").write_text(f"{kernel}-amd64\n")
    if device:
        (root / "sys/bus/platform/drivers/vmgenid/VMGENCTR:00").mkdir()
    if rule:
        (root / "etc/udev/rules.d/90-keymoot.rules").write_text('ENV{NEW_VMGENID}=="1", RUN+="x"\n')
    return root


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"virtual": False}, []),
        ({"virtual": True, "device": True, "rule": True}, []),
        ({"virtual": True}, [("note", "has no VM generation id")]),
        ({"virtual": True, "device": True, "kernel": "6.1.0"}, [("note", "this kernel does not tell")]),
        ({"virtual": True, "device": True}, [("warning", "nothing tells the enclave")]),
    ],
)
def test_copies_of_a_virtual_machine(tmp_path: Path, facts: dict[str, bool], expected: list[tuple[str, str]]) -> None:
    found = results(machine.check_copies(a_machine(tmp_path, **facts)))  # type: ignore[arg-type]
    assert [(severity, text in what) for (severity, what), (_, text) in zip(found, expected, strict=True)] == [
        (severity, True) for severity, _ in expected
    ]


# --- processes ---


def a_process(root: Path, pid: int, *, core: str = "0", locked: int = 0, cgroup: str = "0::/") -> Path:
    place = root / "proc" / str(pid)
    place.mkdir(parents=True)
    (place / "status").write_text(f"Name:\tpython\nUid:\t990\t990\t990\t990\nVmLck:\t{locked} kB\nVmRSS:\t80000 kB\n")
    (place / "limits").write_text(f"Limit  Soft  Hard\nMax core file size        {core}      unlimited    bytes\n")
    (place / "cgroup").write_text(cgroup + "\n")
    (root / "proc/swaps").write_text("Filename Type Size Used Priority\n")
    return root


def test_memory_that_cannot_reach_a_disk(tmp_path: Path) -> None:
    process = confinement.running(7, a_process(tmp_path, 7, locked=76_000))
    assert process == Running(7, 990, 80_000, 76_000, core_limited=True, unit="")
    assert results(confinement.check_memory("s", process, tmp_path)) == []
    untouched = confinement.running(9, a_process(tmp_path, 9, locked=160_000))
    assert untouched is not None
    assert confinement.check_memory("s", untouched, tmp_path).good == "no core dumps; 78 of 78 MiB locked"
    assert confinement.running(8, tmp_path) is None


def test_a_core_dump_and_a_swap(tmp_path: Path) -> None:
    process = confinement.running(7, a_process(tmp_path, 7, core="unlimited"))
    assert process is not None
    assert [severity for severity, _ in results(confinement.check_memory("s", process, tmp_path))] == [
        "problem",
        "note",
    ]
    (tmp_path / "proc/swaps").write_text("Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n")
    assert results(confinement.check_memory("s", process, tmp_path)) == [
        ("problem", "its enclave may leave a core dump, with every secret in it"),
        ("problem", "this host swaps to /dev/sda2, and its enclave's memory is not locked"),
    ]


def a_running(uid: int = 990, unit: str = "") -> Running:
    return Running(7, uid, 80_000, 80_000, core_limited=True, unit=unit)


def test_the_signers_user_owns_nothing_of_the_enclaves(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.touch()
    files, owner = [policy, tmp_path / "away"], policy.stat().st_uid
    separate = confinement.check_separation("s", a_running(), a_running(owner + 1), files)
    assert results(separate) == []
    owning = confinement.check_separation("s", a_running(owner + 1), a_running(owner), files)
    assert results(owning) == [("problem", "the signer's user owns policy.yaml")]
    same = confinement.check_separation("s", a_running(), a_running(), files)
    assert [severity for severity, _ in results(same)] == ["note"]
    assert results(confinement.check_separation("s", a_running(), None, files)) == []


def test_what_the_group_of_signer_and_enclave_opens(tmp_path: Path) -> None:
    files = [tmp_path, *(tmp_path / name for name in ("policy.yaml", "pin", "enclave.yaml"))]
    for path in files[1:]:
        path.touch(0o640)
    owner, group = tmp_path.stat().st_uid, tmp_path.stat().st_gid
    tmp_path.chmod(0o2750)
    (tmp_path / "policy.yaml").chmod(0o664)
    enclave = a_running(owner + 2)
    shares = dataclasses.replace(a_running(owner + 1), groups=frozenset({group}))
    assert results(confinement.check_separation("s", enclave, shares, files)) == [
        ("problem", "the signer's user may write policy.yaml (mode 0664), as one of its group"),
        ("problem", "the signer's user may read pin (mode 0640), as one of its group"),
    ]
    stranger = dataclasses.replace(shares, groups=frozenset({group + 1}))
    assert results(confinement.check_separation("s", enclave, stranger, files)) == []
    tmp_path.chmod(0o2770)
    (told, *_) = results(confinement.check_separation("s", enclave, shares, files[:1]))
    assert told == ("problem", f"the signer's user may write {tmp_path.name} (mode 2770), as one of its group")


def test_groups_and_filters_of_a_process(tmp_path: Path) -> None:
    root = a_process(tmp_path, 7)
    status = root / "proc/7/status"
    with status.open("a") as file:
        file.write("Gid:\t5\t6\t6\t6\nGroups:\t7 8 \nSeccomp:\t2\nSeccomp_filters:\t3\n")
    (root / "proc/7/task/7").mkdir(parents=True)
    (root / "proc/7/task/7/children").write_text("8 9 ")
    (root / "proc/8").mkdir()
    (root / "proc/8/status").write_text("Seccomp_filters:\t4\n")
    found = confinement.running(7, root)
    assert found is not None
    assert (found.groups, found.filters, found.child_filters) == ({6, 7, 8}, 3, 4)
    assert found.libseccomp is None
    for mapped, libseccomp in (("/usr/lib/x/libseccomp.so.2.5.4", True), ("/usr/lib/x/libc.so.6", False)):
        (root / "proc/7/maps").write_text(f"7f00-7f01 r--p 00000000 08:01 12  {mapped}\n")
        again = confinement.running(7, root)
        assert again is not None
        assert again.libseccomp is libseccomp


def test_the_enclaves_own_filter() -> None:
    def told(filters: int, child_filters: int, *, libseccomp: bool | None = True) -> list[tuple[str, str]]:
        running = dataclasses.replace(a_running(), filters=filters, child_filters=child_filters, libseccomp=libseccomp)
        return results(confinement.check_filter("s", "", running))

    assert told(0, 0) == [("warning", "nothing filters the system calls of its enclave")]
    ((severity, what),) = told(12, 13)
    assert (severity, what.split(":")[0]) == ("warning", "its enclave has not narrowed its system calls yet")
    assert told(13, 13) == told(1, 0) == told(13, 13, libseccomp=None) == []
    # The unit's filters alone look like the enclave's own.
    assert told(12, 12, libseccomp=False) == [
        ("warning", "its enclave was started without libseccomp, which is there now")
    ]


def test_a_host_without_libseccomp() -> None:
    looked = confinement.check_filter("s", "system calls are not narrowed: no libseccomp.so.2", a_running())
    assert results(looked) == [("warning", "system calls are not narrowed: no libseccomp.so.2")]
    assert confinement.check_filter("s", "", None) == Looked("libseccomp is there")


def test_the_hardening_of_a_unit(tmp_path: Path) -> None:
    unit = "keymoot-enclave.service"
    root = a_process(tmp_path, 7, cgroup=f"4:memory:/\n0::/system.slice/{unit}")
    process = confinement.running(7, root)
    assert process is not None
    assert process.unit == unit
    assert results(confinement.check_hardening("enclave", "s", process, {unit: 1.0}.get)) == []
    ((severity, what),) = results(confinement.check_hardening("enclave", "s", process, {unit: 1.1}.get))
    assert (severity, what) == ("warning", f"{unit} is exposed: 1.1 of 10, and the package's unit has at most 1.0")
    over_network = confinement.check_hardening("enclave", "s", process, {unit: 1.2}.get, network=True)
    assert results(over_network) == []
    over_network = confinement.check_hardening("enclave", "s", process, {unit: 1.6}.get, network=True)
    assert [severity for severity, _ in results(over_network)] == ["warning"]
    assert [severity for severity, _ in results(confinement.check_hardening("enclave", "s", process, {}.get))] == [
        "note"
    ]
    assert results(confinement.check_hardening("signer", "s", a_running(), {}.get))[0][0] == "note"


def test_whom_a_signer_may_reach() -> None:
    signer = a_running(unit="keymoot-signer.service")
    ((severity, what),) = results(confinement.check_reach("s", signer, lambda _: ""))
    assert (severity, what.split(":")[0]) == ("note", "keymoot-signer.service may reach any address")
    assert results(confinement.check_reach("s", signer, {signer.unit: "::/0 0.0.0.0/0"}.__getitem__)) == []
    assert results(confinement.check_reach("s", a_running(), lambda _: "")) == []


def test_who_holds_a_store_and_a_socket(tmp_path: Path) -> None:
    store, place = tmp_path / "signer.db", tmp_path / "s"
    assert confinement.who_locks(store) is None
    assert confinement.who_listens(place) is None
    with (tmp_path / "signer.db.lock").open("w") as lock, socket.socket(socket.AF_UNIX) as listener:
        assert confinement.who_locks(store) is None
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert confinement.who_locks(store) == os.getpid()
        listener.bind(str(place))
        listener.listen(1)
        assert confinement.who_listens(place) == os.getpid()


# --- disks and files ---


def test_room_on_a_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 1024) as disk:
        ((severity, what),) = results(disks.check_room("s", disk.path / "state" / "signer.db"))
        assert severity == "problem"
        assert what.endswith(f"MiB are free on the disk of {disk.path}")


def test_little_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "FULL_BYTES", 0)
    monkeypatch.setattr(disks, "LOW_BYTES", 2**62)
    assert [severity for severity, _ in results(disks.check_room("s", tmp_path / "signer.db"))] == ["warning"]


def a_store(path: Path, rows: int) -> Path:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE records (name TEXT PRIMARY KEY, sealed BLOB)")
        connection.executemany("INSERT INTO records VALUES (?, ?)", ((f"r{i}", bytes(900)) for i in range(rows)))
    connection.close()
    return path


def test_a_store_that_is_whole_and_one_that_is_damaged(tmp_path: Path) -> None:
    path = a_store(tmp_path / "signer.db", 100)
    before = path.read_bytes()
    assert results(disks.check_store("s", path)) == []
    assert disks.check_store("s", tmp_path / "none.db").good.endswith("is made at the first start")
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(4096))
    ((severity, what),) = results(disks.check_store("s", path))
    assert severity == "problem"
    assert "is damaged" in what
    path.write_bytes(before)
    assert results(disks.check_store("s", path)) == []


def test_a_store_too_large_to_check_in_time(tmp_path: Path) -> None:
    ((severity, what),) = results(disks.check_store("s", a_store(tmp_path / "signer.db", 20_000), limit_s=0.0))
    assert severity == "warning"
    assert "was not checked to its end" in what


def test_secrets_and_settings_that_others_may_use(tmp_path: Path) -> None:
    for name, mode in (("signer.key", 0o600), ("policy.yaml", 0o644), ("ca.pem", 0o644)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    assert results(disks.check_modes("s", tmp_path)) == []
    (tmp_path / "signer.key").chmod(0o644)
    (tmp_path / "policy.yaml").chmod(0o666)
    assert results(disks.check_modes("s", tmp_path)) == [
        ("problem", "everybody may write policy.yaml (mode 0666)"),
        ("problem", "everybody may use signer.key (mode 0644)"),
    ]


def test_an_error_is_a_callers(tmp_path: Path) -> None:
    from appliance.checkup.doctor import Around, directory_checks

    with pytest.raises(CallerError, match="holds none of"):
        list(directory_checks(tmp_path, Around(now=lambda: datetime.datetime.now(datetime.UTC))))

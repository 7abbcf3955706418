"""How running processes are confined: core dumps, memory that may reach a swap, the hardening of their units.

A process is found by what it holds: an enclave by its socket, a signer and a coordinator by the lock of their store.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance import unit_settings
from appliance.checkup.checks import Looked
from appliance.checkup.findings import Finding, note, problem, warning
from appliance.checkup.machine import swaps
from appliance.checkup.probe import TIMEOUT_S

# The highest exposure that `systemd-analyze security` may find, of 10, by the kind of process.
MOST_EXPOSED = {"enclave": 1.0, "signer": 1.5, "coordinator": 1.5}
# An enclave that reaches its HSM over the network (hsm.network, and the package's drop-in for it).
MOST_EXPOSED_NETWORK = 1.5
# In the directory of a signer, none of which its own process needs.
NOT_THE_SIGNERS = ("pin", "gate-secrets.json", "ca.key")
# So much of an enclave's memory must be locked where the machine swaps. The rest is code and libraries.
LEAST_LOCKED = 0.5
_FILTERS = r"^Seccomp_filters:\s+(\d+)"
_UCRED = struct.Struct("3i")


@dataclass(frozen=True)
class Running:
    """A process as /proc shows it: sizes in KiB, `unit` empty without systemd, `groups` all of its groups, `filters` of
    system calls, and the most of them that a child of it has; `libseccomp`: whether it has loaded that, None where only
    root may see."""

    pid: int
    uid: int
    resident_kib: int
    locked_kib: int
    core_limited: bool
    unit: str
    groups: frozenset[int] = frozenset()
    filters: int = 0
    child_filters: int = 0
    libseccomp: bool | None = None


def who_listens(path: Path) -> int | None:
    """The process that listens on the Unix socket `path`; None where nobody does."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            size = _UCRED.size
            return int(_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]) or None
    except OSError:
        return None


def who_locks(path: Path, root: Path = Path("/")) -> int | None:
    """The process that holds the lock of the store at `path`; None where nobody does."""
    try:
        inode = path.with_name(path.name + ".lock").stat().st_ino
        locks = (root / "proc/locks").read_text()
    except OSError:
        return None
    found = re.search(rf"FLOCK\s+ADVISORY\s+WRITE\s+(\d+)\s+\S+:{inode}\s", locks)
    return int(found[1]) or None if found else None


def running(pid: int, root: Path = Path("/")) -> Running | None:
    """The process; None where it has gone."""
    place = root / "proc" / str(pid)
    try:
        status, limits, cgroup = ((place / name).read_text() for name in ("status", "limits", "cgroup"))
    except OSError:
        return None
    core = re.search(r"^Max core file size\s+(\S+)", limits, flags=re.MULTILINE)
    unit = re.search(r"/([^/\n]+\.service)$", cgroup, flags=re.MULTILINE)
    return Running(
        pid=pid,
        uid=_number(r"^Uid:\s+(\d+)", status),
        resident_kib=_number(r"^VmRSS:\s+(\d+)", status),
        locked_kib=_number(r"^VmLck:\s+(\d+)", status),
        core_limited=core is not None and core[1] == "0",
        unit=unit[1] if unit else "",
        groups=_groups(status),
        filters=_number(_FILTERS, status),
        child_filters=max((_number(_FILTERS, child) for child in _children(place)), default=0),
        libseccomp=_has_loaded(place, "/libseccomp.so."),
    )


def _groups(status: str) -> frozenset[int]:
    """The effective group and the supplementary ones."""
    told = re.findall(r"^Gid:\s+\d+\s+(\d+)|^Groups:\s*([\d ]*)$", status, flags=re.MULTILINE)
    return frozenset(int(group) for effective, more in told for group in (effective, *more.split()) if group)


def _has_loaded(place: Path, library: str) -> bool | None:
    try:
        return library in (place / "maps").read_text()
    except OSError:
        return None


def _children(place: Path) -> Iterator[str]:
    """What /proc says of the processes that a process has started."""
    with contextlib.suppress(OSError):
        for child in (place / "task" / place.name / "children").read_text().split():
            with contextlib.suppress(OSError):
                yield (place.parent / child / "status").read_text()


def check_memory(name: str, process: Running, root: Path = Path("/")) -> Looked:
    """Whether secrets in an enclave's memory could reach a disk: as a core dump, or by a swap."""
    # What is locked counts pages that nothing has touched yet.
    locked_kib = min(process.locked_kib, process.resident_kib)
    return Looked(
        f"no core dumps; {locked_kib // 1024} of {process.resident_kib // 1024} MiB locked",
        list(_memory(name, process, swaps(root))),
    )


def _memory(name: str, process: Running, swapped_to: list[str]) -> Iterator[Finding]:
    if not process.core_limited:
        yield problem(
            name,
            "its enclave may leave a core dump, with every secret in it",
            "Set LimitCORE=0 in its unit (or ulimit -c 0) and restart it.",
        )
    if process.locked_kib >= LEAST_LOCKED * process.resident_kib:
        return
    if swapped_to:
        yield problem(
            name,
            f"this host swaps to {', '.join(swapped_to)}, and its enclave's memory is not locked",
            "swapoff -a, and take the swap out of /etc/fstab; or set LimitMEMLOCK=infinity in its unit.",
        )
    else:
        yield note(
            name,
            "its enclave's memory is not locked; this host has no swap",
            "Keep it so, or set LimitMEMLOCK=infinity in its unit.",
        )


def check_separation(name: str, enclave: Running, signer: Running | None, files: list[Path]) -> Looked:
    """Whether who takes over the signer's process may write what the enclave believes."""
    if signer is None:
        return Looked("no signer runs")
    if signer.uid == enclave.uid:
        found: list[Finding] = [
            note(
                name,
                "signer and enclave run as one user: who takes over the signer's process may write its policy",
                "Run them as two users, as the Debian package does (signer_uid in enclave.yaml).",
            )
        ]
        return Looked("", found)
    return Looked("the signer's user owns and writes none of the enclave's files", list(_opened(name, signer, files)))


def _opened(name: str, signer: Running, files: list[Path]) -> Iterator[Finding]:
    """What its owner or a group that it shares with the enclave opens to the signer's process."""
    there = [(path, path.stat()) for path in files if path.exists()]
    owned = [path.name for path, about in there if about.st_uid == signer.uid]
    if owned:
        remedy = f"chown root {' '.join(owned)}, and let the group of the enclave's user read them."
        yield problem(name, f"the signer's user owns {', '.join(owned)}", remedy)
    shared = [(path, stat.S_IMODE(about.st_mode)) for path, about in there if about.st_gid in signer.groups]
    for path, mode in shared:
        if mode & stat.S_IWGRP:
            what = f"the signer's user may write {path.name} (mode {mode:04o}), as one of its group"
            yield problem(name, what, f"chmod g-w {path}; a umask of 022 keeps it so.")
        if mode & stat.S_IRGRP and path.name in NOT_THE_SIGNERS:
            what = f"the signer's user may read {path.name} (mode {mode:04o}), as one of its group"
            yield problem(name, what, f"chown it to the enclave's user or root and chmod 0600 {path}; renew it.")


def systemd_exposure(unit: str) -> float | None:
    """What `systemd-analyze security` says of a unit, 0 to 10; None where it cannot say."""
    tool = shutil.which("systemd-analyze")
    if tool is None or not Path("/run/systemd/system").is_dir():
        return None
    done = subprocess.run(  # noqa: S603
        [tool, "security", "--no-pager", unit], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    found = re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)
    return float(found[1]) if found else None


def check_filter(name: str, unfiltered: str, enclave: Running | None) -> Looked:
    """Whether an enclave has narrowed its own system calls, which it does once its HSM's module is loaded.

    `unfiltered`: why it could not on this host, as its own tool says.
    """
    remedy = "See `not confined` in its log; libseccomp (Debian: libseccomp2) has to be there. Restart it then."
    if unfiltered:
        return Looked("", [warning(name, unfiltered, "Restart the enclave once it is there.")])
    if enclave is None:
        return Looked("libseccomp is there")
    if enclave.libseccomp is False:
        return Looked(
            "", [warning(name, "its enclave was started without libseccomp, which is there now", "Restart it.")]
        )
    if not enclave.filters:
        return Looked("", [warning(name, "nothing filters the system calls of its enclave", remedy)])
    # Its worker has its own filter from the first moment, over those of the unit.
    if enclave.filters < enclave.child_filters:
        what = "its enclave has not narrowed its system calls yet: it does once its HSM was ready for the first time"
        return Looked("", [warning(name, what, "See `keymoot hsm check -c enclave.yaml`.")])
    return Looked(f"{enclave.filters} filters of system calls")


def check_reach(name: str, signer: Running, denied: Callable[[str], str] = unit_settings.denied_addresses) -> Looked:
    """Whether a signer's unit says whom it may reach; without one, `check_hardening` says enough."""
    if not signer.unit or denied(signer.unit):
        return Looked("its unit says whom its signer may reach" if signer.unit else "its signer runs in no unit")
    what = f"{signer.unit} may reach any address: who takes the signer over could send out what it sees"
    remedy = "Name coordinators, gate and name server in a drop-in: signer-network.conf in keymoot-appliance(7)."
    return Looked("", [note(name, what, remedy)])


def check_hardening(
    kind: str,
    name: str,
    process: Running,
    exposure: Callable[[str], float | None] = systemd_exposure,
    *,
    network: bool = False,
) -> Looked:
    """How exposed the unit of a process is. `network`: of an enclave whose HSM is reached over the network."""
    if not process.unit:
        what = f"its {kind} does not run under systemd: nothing confines it"
        return Looked("", [note(name, what, "Use the units of the Debian package.")])
    level, most = exposure(process.unit), MOST_EXPOSED_NETWORK if network else MOST_EXPOSED[kind]
    if level is None:
        return Looked("", [note(name, f"nothing can say how exposed {process.unit} is", "See systemd-analyze.")])
    if level > most:
        found = warning(
            name,
            f"{process.unit} is exposed: {level} of 10, and the package's unit has at most {most}",
            f"systemd-analyze security {process.unit} and systemctl cat {process.unit}: a drop-in loosens it.",
        )
        return Looked("", [found])
    return Looked(f"{process.unit}: exposure {level} of 10")


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text, flags=re.MULTILINE)
    return int(found[1]) if found else 0

"""The machine under a Keymoot process: clock, swap, copies of its memory. `root` is `/` outside tests."""

from __future__ import annotations

import ctypes
import datetime
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.checkup.checks import Looked
from appliance.checkup.findings import Finding, note, warning
from appliance.checkup.network import CLOCK_SKEW_S
from appliance.checkup.probe import server_time
from appliance.checkup.times import duration
from appliance.signer.config import SignerConfig
from appliance.tls import client_context
from policies.errors import CallerError

HOST = "host"
# The kernel tells udev of a new VM generation from this release on.
GENERATION_EVENTS_SINCE = (6, 10)
MACHINES = ("QEMU", "KVM", "VMware", "Xen", "VirtualBox", "Amazon EC2", "Google Compute", "Virtual Machine", "Bochs")
_GENERATION_DRIVERS = ("sys/bus/platform/drivers/vmgenid", "sys/bus/acpi/drivers/vmgenid")
_RULES = ("etc/udev/rules.d", "run/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d")
_TIME_ERROR = 5
# `struct timex` has 208 bytes on 64-bit Linux.
_TIMEX_BYTES = 512


def clock_state() -> int:
    """What adjtimex(2) says of the clock; 5 where nothing keeps it right."""
    return int(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))


def check_clock(state: Callable[[], int] = clock_state) -> Looked:
    """Whether something keeps this host's clock right, as the kernel knows."""
    if state() == _TIME_ERROR:
        found = warning(
            HOST, "nothing keeps the clock right", "Install chrony or enable systemd-timesyncd (timedatectl status)."
        )
        return Looked("", [found])
    return Looked("the clock is kept right")


def check_clocks(name: str, config: SignerConfig, now: Callable[[], datetime.datetime]) -> Looked:
    """This host's clock and the coordinators'. What they say is their word alone."""
    found, told = [], []
    for one in config.coordinators:
        try:
            theirs = server_time(one.url, client_context(one.ca, one.certificate, one.key))
        except CallerError:
            continue  # told by the check of connections
        if theirs is None:
            continue
        skew_s = abs((theirs - now()).total_seconds())
        told.append(one.name)
        if skew_s > CLOCK_SKEW_S + 1.0:  # it is told in whole seconds
            found.append(
                warning(
                    name,
                    f"the clocks of coordinator {one.name} and of this host differ by {duration(skew_s)}",
                    "Find out which one is right and synchronise it: requests are refused where clocks differ.",
                )
            )
    return Looked(f"as at {', '.join(told)}" if told else "no coordinator tells its time", found)


def swaps(root: Path = Path("/")) -> list[str]:
    """Where this machine swaps to."""
    try:
        lines = (root / "proc/swaps").read_text().splitlines()[1:]
    except OSError:
        return []
    return [line.split()[0] for line in lines if line.strip()]


def check_copies(root: Path = Path("/")) -> Looked:
    """Whether an enclave here would learn that the memory of its virtual machine was copied or put back."""
    if not _is_virtual(root):
        return Looked("not a virtual machine")
    return Looked("the machine tells when its memory was copied, and udev passes that on", list(_generation(root)))


def _generation(root: Path) -> Iterator[Finding]:
    forbid = "forbid snapshots with memory, suspend and live migration of this machine"
    if not any((root / driver).is_dir() and any((root / driver).glob("*:*")) for driver in _GENERATION_DRIVERS):
        yield note(
            HOST,
            "this virtual machine has no VM generation id: a copy of its memory shows by clocks alone",
            f"Have the hypervisor give it one (QEMU: -device vmgenid), and {forbid}.",
        )
    elif _kernel(root) < GENERATION_EVENTS_SINCE:
        yield note(
            HOST,
            "this kernel does not tell of a new VM generation: a copy of its memory shows by clocks alone",
            f"Use Linux 6.10 or newer, and {forbid}.",
        )
    elif not _has_rule(root):
        yield warning(
            HOST,
            "nothing tells the enclave that the memory of this virtual machine was copied or put back",
            "Install the udev rule for NEW_VMGENID of the operator's page (Snapshots, suspend, clocks).",
        )


def _is_virtual(root: Path) -> bool:
    if re.search(r"^flags\s*:.*\bhypervisor\b", _text(root / "proc/cpuinfo"), flags=re.MULTILINE):
        return True
    dmi = " ".join(_text(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name"))
    return any(word in dmi for word in MACHINES) or bool(_text(root / "sys/hypervisor/type"))


def _kernel(root: Path) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", _text(root / "proc/sys/kernel/osrelease"))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _has_rule(root: Path) -> bool:
    return any("NEW_VMGENID" in _text(rule) for folder in _RULES for rule in (root / folder).glob("*.rules"))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

"""Hosts of a test: booted Debian systems (systemd-nspawn), each in a network namespace of its own.

A host has one lower layer that it shares, and an upper one of its own that stays when its power is cut. Nothing is left
behind: whatever ends the test ends the hosts, and `Site.close` removes namespaces, layers and control groups.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from appliance.localnet.process import ManagedProcess

BOOT_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 180.0
POLL_S = 0.1
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A system of its own in control groups and mounts that end with the shell: nothing outside runs systemd. Nothing is
# synced (`volatile`): an upgrade would wait for each file that it replaces in a shared layer. A host's power can be cut
# all the same, since this machine's stays; its kernel leaves a mark then, which is removed.
BOOT = """
umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
mkdir -p /sys/fs/cgroup/$NAME; echo $$ >/sys/fs/cgroup/$NAME/cgroup.procs
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1; mkdir -p /run/systemd; mount -t tmpfs tmpfs /run/systemd
rm -rf $WORK/work/incompat
mount -t overlay overlay -o volatile,lowerdir=$LOWER,upperdir=$UPPER,workdir=$WORK $ROOT || exit 1
ulimit -l unlimited 2>/dev/null
exec systemd-nspawn --quiet -b -D $ROOT -M $NAME --register=no --keep-unit \
  --network-namespace-path=/run/netns/$NAME --rlimit=RLIMIT_MEMLOCK=infinity \
  --link-journal=no --console=pipe --capability=all --resolv-conf=off --timezone=off \
  --system-call-filter="bpf memfd_secret landlock_create_ruleset landlock_add_rule landlock_restrict_self"
"""
REMOVE_GROUP = """
umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
find /sys/fs/cgroup/$NAME -depth -type d -exec rmdir {} +
"""


def why_not() -> str:
    """Why no host can be booted here; empty where it can."""
    if os.environ.get("KEYMOOT_APPLIANCE") != "1":
        return "boots systems: run by `make test-appliance`"
    if os.geteuid() != 0:
        return "needs root"
    missing = [
        tool
        for tool in ("systemd-nspawn", "mmdebstrap", "dpkg-buildpackage", "dh", "lintian", "ip", "nsenter")
        if not shutil.which(tool)
    ]
    if missing:
        return f"needs {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", "mkdir -p /run/netns && mount -t cgroup2 none /mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"this machine mounts nothing: {tried.stderr.strip()}"


def until(what: str, condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for a condition. Fails the test when it takes longer."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not in {timeout_s:.0f} s: {what}"
        time.sleep(POLL_S)


class Host:
    """One host. `run` is root's shell on it."""

    def __init__(self, name: str, lower: Sequence[Path], directory: Path) -> None:
        """`lower`: its layers, the uppermost first; `directory`: for its own."""
        self.name, self._lower, self._directory = name, lower, directory
        for part in ("upper", "work", "root"):
            (directory / part).mkdir(parents=True)
        self._process: ManagedProcess | None = None
        self._leader = 0

    @property
    def upper(self) -> Path:
        """What this host has written."""
        return self._directory / "upper"

    def boot(self) -> None:
        """Switch it on and wait until its system is up."""
        environment = {
            "NAME": self.name,
            "PATH": PATH,
            "LOWER": ":".join(map(str, self._lower)),
            **{part.upper(): str(self._directory / part) for part in ("upper", "work", "root")},
        }
        command = ["unshare", "-m", "--propagation", "private", "bash", "-c", BOOT]
        self._process = ManagedProcess(self.name, command, self._directory, self._directory / "console", environment)
        self._process.start()
        self.await_boot()

    def await_boot(self) -> None:
        """Until the system that boots is up."""
        until(f"{self.name} boots", self._is_up, BOOT_TIMEOUT_S)

    def _is_up(self) -> bool:
        assert self._process is not None
        self._process.check()
        leaders = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not leaders:
            return False
        self._leader = int(leaders[0])
        state = self.run("systemctl is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def cut_power(self) -> None:
        """As if the plug was pulled: nothing on it is told."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._leader, signal.SIGKILL)
        self._process.kill()

    def run(self, command: str, stdin: bytes = b"", *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A shell command as root. Fails the test where it fails, with all that it said."""
        done = subprocess.run(
            [
                "nsenter",
                "-t",
                str(self._leader),
                "-a",
                "--",
                "env",
                "-i",
                f"PATH={PATH}",
                "HOME=/root",
                "sh",
                "-c",
                command,
            ],
            input=stdin.decode(),
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_TIMEOUT_S,
        )
        assert not check or done.returncode == 0, f"{self.name}: {command}\n{done.stdout}\n{done.stderr}"
        return done

    def put(self, path: str, data: bytes, owner: str = "root:root", mode: str = "0644") -> None:
        """Write a file."""
        self.run(
            f"cat >{path}.put && chown {owner} {path}.put && chmod {mode} {path}.put && mv {path}.put {path}", data
        )

    def copy_in(self, source: IO[bytes], path: str) -> None:
        """Write a large file."""
        command = ["nsenter", "-t", str(self._leader), "-a", "--", "/bin/sh", "-c", f"cat >{path}"]
        subprocess.run(command, stdin=source, check=True, timeout=RUN_TIMEOUT_S)

    @property
    def running(self) -> bool:
        """Whether it is switched on."""
        return self._process is not None and self._process.running

    def get(self, path: str) -> bytes:
        """Read a file."""
        return self.run(f"cat {path}").stdout.encode()

    def unit(self, unit: str, *properties: str) -> list[str]:
        """Properties of a unit, as systemd knows them now."""
        told = self.run(f"systemctl show {unit} " + " ".join(f"-p {one}" for one in properties)).stdout
        found = dict(line.partition("=")[::2] for line in told.splitlines())
        return [found[one] for one in properties]

    def close(self) -> None:
        """Switch it off, whatever state it is in, and forget its control group."""
        if self._process is not None:
            self.cut_power()
            self._process.stop()
        subprocess.run(
            ["unshare", "-m", "--propagation", "private", "bash", "-c", REMOVE_GROUP],
            env={"NAME": self.name, "PATH": PATH},
            capture_output=True,
            check=False,
        )


class Site:
    """All hosts of a test and the wires between them; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory, self._prefix = directory, f"km{os.getpid()}"
        self.hosts: dict[str, Host] = {}
        self._namespaces: list[str] = []
        self._wires = 0
        self._processes: list[ManagedProcess] = []

    def namespace(self, name: str) -> str:
        """A network namespace with nothing but loopback; its name."""
        full = f"{self._prefix}-{name}"
        _ip("netns", "add", full)
        self._namespaces.append(full)
        _ip("-n", full, "link", "set", "lo", "up")
        return full

    def host(self, name: str, lower: Sequence[Path]) -> Host:
        """A host, not booted yet, with a network namespace of its name."""
        made = self.hosts[name] = Host(self.namespace(name), lower, self.directory / name)
        return made

    def wire(self, one: str, one_address: str, other: str, other_address: str) -> None:
        """Join two namespaces, addresses with their prefix lengths. Nobody routes."""
        self._wires += 1
        ends = [f"w{self._wires}{side}{os.getpid()}"[:15] for side in "ab"]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for end, name, address in zip(ends, (one, other), (one_address, other_address), strict=True):
            namespace = f"{self._prefix}-{name}"
            _ip("link", "set", end, "netns", namespace)
            _ip("-n", namespace, "addr", "add", address, "dev", end)
            _ip("-n", namespace, "link", "set", end, "up")

    def inside(self, name: str, *command: str | Path) -> list[str]:
        """The command line that runs `command` of this machine in a namespace."""
        return ["ip", "netns", "exec", f"{self._prefix}-{name}", *map(str, command)]

    def start(self, name: str, command: Sequence[str | Path], directory: Path) -> None:
        """A process of this machine in a namespace, until the end."""
        log = directory / f"{name}.log"
        process = ManagedProcess(name, self.inside(name, *command), directory, log, dict(os.environ))
        self._processes.append(process)
        process.start()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.stop()
        for host in self.hosts.values():
            host.close()
        for namespace in self._namespaces:
            _ip("netns", "delete", namespace, check=False)


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)

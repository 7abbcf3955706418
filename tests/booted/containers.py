"""Containers of a test: an image, unpacked, run by crun as the compose file says.

Each has a user namespace of its own, as engines without root make it: root inside is nobody outside.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import subprocess
from pathlib import Path
from typing import Any

import yaml

from appliance.localnet.process import ManagedProcess

ROOT = Path(__file__).parents[2]
# Variables as they are where nobody sets them.
COMPOSE = yaml.safe_load(re.sub(r"\$\{\w+:-(.*?)\}", r"\1", (ROOT / "packaging/oci/compose.yaml").read_text()))
# Ids in a container are these outside.
FIRST_ID, IDS = 1_000_000, 65_536
RUN_TIMEOUT_S = 120.0
# crun takes no other control groups than the newer ones, whatever this machine has mounted.
UNIFIED = 'umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$0" "$@"'


class Image:
    """An image, unpacked, every blob against its digest."""

    def __init__(self, archive: Path, directory: Path) -> None:
        self.rootfs = directory / "rootfs"
        self.rootfs.mkdir()
        subprocess.run(["tar", "-xf", archive, "-C", directory], check=True)
        self._blobs = directory / "blobs/sha256"
        (described,) = json.loads((directory / "index.json").read_text())["manifests"]
        self.name: str = described["annotations"]["org.opencontainers.image.ref.name"]
        manifest = json.loads(self._blob(described).read_text())
        whole = json.loads(self._blob(manifest["config"]).read_text())
        self.config: dict[str, Any] = whole["config"]
        for layer in manifest["layers"]:
            unpack = ["tar", "-xzpf", self._blob(layer), "--numeric-owner", "-C", self.rootfs]
            subprocess.run(unpack, check=True)
        # What the kernel does for engines by a mapped mount.
        for path in [self.rootfs, *self.rootfs.rglob("*")]:
            found = path.lstat()
            os.chown(path, FIRST_ID + found.st_uid, FIRST_ID + found.st_gid, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(found.st_mode & 0o7777)

    def _blob(self, described: dict[str, Any]) -> Path:
        path = self._blobs / described["digest"].removeprefix("sha256:")
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == path.name
        assert path.stat().st_size == described["size"]
        return path


def give(path: Path, user: int = 10001) -> None:
    """A file or a tree to a user of the containers."""
    for one in (path, *path.rglob("*")):
        os.chown(one, FIRST_ID + user, FIRST_ID + user)


class Container:
    """One service of the compose file. `places`: what stands for the directories that it mounts."""

    def __init__(self, image: Image, name: str, service: str, directory: Path, places: dict[str, Path]) -> None:
        self.name, self._image, self._directory = name, image, directory
        self.service: dict[str, Any] = COMPOSE["services"][service]
        self._places, self._process = places, None
        self.log = directory / "log"
        directory.mkdir(parents=True)

    def start(self, network: str, environment: dict[str, str]) -> None:
        """Start it. `network`: the namespace for a service that has a network."""
        self._write(self.service["command"], network, environment)
        crun = self._crun("run", "--bundle", str(self._directory), self.name)
        self._process = ManagedProcess(self.name, crun, self._directory, self.log, dict(os.environ))
        self._process.start()

    def run(self, *command: str, network: str, environment: dict[str, str], writes: bool = False) -> str:
        """Another command of the image than the service's own, until its end. `writes`: also into the configuration."""
        self._write(command, network, environment, writes=writes)
        crun = self._crun("run", "--bundle", str(self._directory), self.name)
        done = subprocess.run(crun, capture_output=True, text=True, check=False, timeout=RUN_TIMEOUT_S)
        assert done.returncode == 0, f"{self.name}: {command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def pid(self) -> int:
        """Its first process's, outside."""
        told = subprocess.run(self._crun("state", self.name), check=True, capture_output=True, text=True)
        return int(json.loads(told.stdout)["pid"])

    def attempt(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command beside the running service."""
        return subprocess.run(
            self._crun("exec", "--user", self.service["user"], self.name, *command),
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_TIMEOUT_S,
        )

    def stop(self) -> int:
        """SIGTERM to it, as an engine sends it; its exit code."""
        assert self._process is not None
        assert self._process._child is not None
        subprocess.run(self._crun("kill", self.name, self._image.config["StopSignal"]), check=True)
        return self._process._child.wait(30)

    def close(self) -> None:
        """Whatever state it is in."""
        subprocess.run(self._crun("delete", "--force", self.name), check=False, capture_output=True)
        if self._process is not None:
            self._process.stop()

    def _crun(self, *arguments: str) -> list[str]:
        crun = ["crun", "--root", str(self._directory / "state"), "--cgroup-manager=disabled", *arguments]
        return ["unshare", "-m", "--propagation", "private", "sh", "-c", UNIFIED, *crun]

    def _write(self, command: Any, network: str, environment: dict[str, str], *, writes: bool = False) -> None:
        config, service = self._image.config, self.service
        user, group = (int(one) for one in service["user"].split(":"))
        own_network = {"type": "network"} | ({} if service.get("network_mode") == "none" else {"path": network})
        assert service["cap_drop"] == ["ALL"]
        assert config["User"] == service["user"]
        mapped = [{"containerID": 0, "hostID": FIRST_ID, "size": IDS}]
        specification = {
            "ociVersion": "1.0.0",
            "root": {"path": str(self._image.rootfs), "readonly": service["read_only"]},
            "hostname": self.name,
            "process": {
                "user": {"uid": user, "gid": group},
                "args": [*config["Entrypoint"], *command],
                "env": [*config["Env"], *(f"{key}={value}" for key, value in environment.items())],
                "cwd": config["WorkingDir"],
                "capabilities": {},
                "noNewPrivileges": "no-new-privileges:true" in service["security_opt"],
                "rlimits": [_limit(f"RLIMIT_{kind.upper()}", int(limit)) for kind, limit in service["ulimits"].items()],
            },
            "mounts": [*_SYSTEM, *map(_tmpfs, service["tmpfs"]), *self._mounts(writes=writes)],
            "linux": {
                "uidMappings": mapped,
                "gidMappings": mapped,
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user")] + [own_network],
            },
        }
        (self._directory / "config.json").write_text(json.dumps(specification))

    def _mounts(self, *, writes: bool) -> list[dict[str, Any]]:
        mounts = []
        for volume in self.service["volumes"]:
            source, destination, *mode = volume.removeprefix("./").split(":")
            first, _, rest = source.partition("/")
            read_only = mode == ["ro"] and not (writes and destination == "/etc/keymoot")
            options = ["rbind", "nosuid", "nodev", "ro" if read_only else "rw"]
            mounts.append(_mount(destination, "bind", str(self._places[first] / rest), options))
        extra = self._places.get("tokens")
        return mounts + ([] if extra is None else [_mount("/tmp/tokens", "bind", str(extra), ["rbind", "rw"])])


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def _limit(kind: str, limit: int) -> dict[str, Any]:
    """A limit, or as much of it as this machine lets its root give."""
    most = resource.getrlimit(getattr(resource, kind))[1] % 2**64
    return {"type": kind, "soft": min(limit % 2**64, most), "hard": min(limit % 2**64, most)}


def _tmpfs(described: str) -> dict[str, Any]:
    destination, _, options = described.partition(":")
    return _mount(destination, "tmpfs", "tmpfs", [*options.split(","), "mode=1777"])


_SYSTEM = [
    _mount("/proc", "proc", "proc", []),
    _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    _mount("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
]

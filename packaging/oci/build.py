#!/usr/bin/env python3
"""Builds build/keymoot.oci.tar, an OCI image of the Debian package: no container engine, no image registry. As root.

Two layers: a minimal Debian with Python, made by debootstrap from the mirror that apt is set up with and kept in
build/oci for the next time, and the package. An image of the same root and package is the same to the byte.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("KEYMOOT_OCI_CACHE", ROOT / "build/oci"))
USER = 10001
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Of the Debian package, what an image has no use for: there is no systemd in it. `lib` would stand in for a link.
LEFT_OUT = ("lib", "usr/lib/systemd", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d", "usr/share")
# Where a mount goes that its process writes to.
WRITTEN = ("etc/keymoot/run", "etc/keymoot/state", "etc/keymoot/enclave-state")
# Which mirror it came from, and what debootstrap leaves behind.
FORGOTTEN = ("var/cache/apt", "var/lib/apt/lists", "var/log", "etc/apt/sources.list", "etc/resolv.conf", "etc/hostname")


def main() -> None:
    """The image's path is printed."""
    if os.geteuid() != 0:
        sys.exit("make oci needs root: a root tree has files of several users")
    subprocess.run([ROOT / "packaging/bootstrap", "--packages", "debootstrap"], check=True)
    package = Path(os.environ["KEYMOOT_DEB"]) if "KEYMOOT_DEB" in os.environ else built_package()
    made = ROOT / "build/keymoot.oci.tar"
    with tempfile.TemporaryDirectory(dir=base_root().parent) as work:
        layout = Path(work) / "layout"
        (layout / "blobs/sha256").mkdir(parents=True)
        tree = Path(work) / "tree"
        unpack(package, tree)
        layers = [add_layer(layout, base_root()), add_layer(layout, tree)]
        version = field(package, "Version")
        write_index(layout, layers, version)
        made.parent.mkdir(exist_ok=True)
        pack(layout, made)
    print(made)


def built_package() -> Path:
    """The package of this checkout."""
    told = subprocess.run([ROOT / "packaging/build-deb"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(told.stdout.splitlines()[-1])


def base_root() -> Path:
    """The first layer's tree; made where it is not there."""
    done = CACHE / "root"
    if done.exists():
        return done
    CACHE.mkdir(parents=True, exist_ok=True)
    making = CACHE / "root.new"
    shutil.rmtree(making, ignore_errors=True)
    suite = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    if suite is None:
        sys.exit("this system's /etc/os-release names no VERSION_CODENAME")
    include = "--include=python3,libseccomp2"
    with (CACHE / "debootstrap.log").open("wb") as log:
        # It leaves its /proc mounted; in a mount namespace of its own that ends with it.
        command = ["unshare", "--mount", "debootstrap", "--variant=minbase", include, suite[1], making, mirror()]
        subprocess.run(command, check=True, stdout=log, stderr=log)
    for name in FORGOTTEN:
        if (making / name).is_dir():
            shutil.rmtree(making / name)
            (making / name).mkdir()
        else:
            (making / name).unlink(missing_ok=True)
    with (making / "etc/passwd").open("a") as passwd, (making / "etc/group").open("a") as group:
        passwd.write(f"keymoot:x:{USER}:{USER}:Keymoot:/:/usr/sbin/nologin\n")
        group.write(f"keymoot:x:{USER}:\n")
    making.rename(done)
    return done


def mirror() -> str:
    """Where apt gets this system's packages from."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        for line in path.read_text().splitlines() if path.is_file() else ():
            # One-line style, or the field of the newer one.
            found = re.match(r"(?:deb\s+(?:\[.*?\]\s+)?|URIs:\s*)(\S+/(?:debian|ubuntu))/?(?:\s|$)", line)
            if found:
                return found[1]
    sys.exit("apt is set up with no mirror to make a root from")


def unpack(package: Path, tree: Path) -> None:
    """The second layer's tree: the package's files, and where mounts go."""
    subprocess.run(["dpkg-deb", "--extract", package, tree], check=True)
    for name in LEFT_OUT:
        shutil.rmtree(tree / name, ignore_errors=True)
    for name in WRITTEN:
        (tree / name).mkdir(parents=True, mode=0o700)
        os.chown(tree / name, USER, USER)
    (tree / "etc/keymoot").chmod(0o755)


def field(package: Path, name: str) -> str:
    """A field of the package."""
    return subprocess.run(["dpkg-deb", "-f", package, name], check=True, capture_output=True, text=True).stdout.strip()


def add_layer(layout: Path, tree: Path) -> dict[str, str | int]:
    """A layer of a tree: its descriptor, and `diff_id`, the digest of what it unpacks to."""
    # A change of the tree, not of its times, changes a layer.
    command = ["tar", "--create", "--sort=name", "--numeric-owner", "--mtime=@0", "--format=gnu", "-C", str(tree), "."]
    plain, path = hashlib.sha256(), layout / "layer"
    with path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
            assert tar.stdout is not None
            while block := tar.stdout.read(1 << 20):
                plain.update(block)
                packed.write(block)
        if tar.returncode != 0:
            sys.exit(f"tar ended with code {tar.returncode}")
    descriptor = add_blob(layout, "application/vnd.oci.image.layer.v1.tar+gzip", path)
    return {**descriptor, "diff_id": f"sha256:{plain.hexdigest()}"}


def add_blob(layout: Path, media_type: str, path: Path) -> dict[str, str | int]:
    """Move a file among the blobs; its descriptor."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    path.rename(layout / "blobs/sha256" / digest)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def add_document(layout: Path, media_type: str, document: object) -> dict[str, str | int]:
    """A JSON blob."""
    (layout / "document").write_text(json.dumps(document, sort_keys=True))
    return add_blob(layout, media_type, layout / "document")


def write_index(layout: Path, layers: list[dict[str, str | int]], version: str) -> None:
    """Configuration, manifest and index: documents of the OCI image format, version 1."""
    labels = {"title": "keymoot", "version": version, "licenses": "Apache-2.0"}
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Entrypoint": ["/usr/bin/keymoot"],
            "Cmd": ["--help"],
            "WorkingDir": "/etc/keymoot",
            "StopSignal": "SIGTERM",
            "Labels": {f"org.opencontainers.image.{name}": value for name, value in labels.items()},
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.pop("diff_id") for layer in layers]},
    }
    kind = "application/vnd.oci.image."
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}manifest.v1+json",
        "config": add_document(layout, f"{kind}config.v1+json", config),
        "layers": layers,
    }
    described = add_document(layout, f"{kind}manifest.v1+json", manifest)
    named = {**described, "annotations": {"org.opencontainers.image.ref.name": f"keymoot:{version}"}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def pack(layout: Path, made: Path) -> None:
    """The layout as one file, put in its place when it is whole."""
    part = made.with_suffix(".part")
    with tarfile.open(part, "w") as archive:
        for path in sorted(layout.rglob("*")):
            entry = archive.gettarinfo(path, str(path.relative_to(layout)))
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
            with path.open("rb") if path.is_file() else open(os.devnull, "rb") as file:
                archive.addfile(entry, file if path.is_file() else None)
    part.rename(made)


if __name__ == "__main__":
    main()

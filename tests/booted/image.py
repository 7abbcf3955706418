"""The root that all hosts share, made once from the mirror that apt is set up with, and the packages to install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Kept between runs here.
CACHE = Path(os.environ.get("KEYMOOT_APPLIANCE_CACHE", ROOT / "build/appliance"))
SUITE = "bookworm"
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "iproute2",
    "procps",
    "softhsm2",
    "libseccomp2",
    "adduser",
    "debconf",
    "p11-kit",
    "p11-kit-modules",
)
NEXT_VERSION = "0.1.1"


def base() -> Path:
    """A minimal Debian with systemd and SoftHSM; made where it is not there."""
    done = CACHE / "base"
    if not done.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(CACHE / "base.new", ignore_errors=True)
        # In a mount namespace of its own, so that nothing stays mounted. It takes less than half of debootstrap's time.
        command = ["unshare", "--mount", "mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        with (CACHE / "mmdebstrap.log").open("wb") as log:
            subprocess.run([*command, SUITE, CACHE / "base.new", _mirror()], check=True, stdout=log, stderr=log)
        (CACHE / "base.new").rename(done)
    return done


def _mirror() -> str:
    """Where apt gets Debian itself from."""
    listed = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for path in listed:
        text = path.read_text() if path.is_file() and path.suffix in (".list", ".sources") else ""
        for line in text.splitlines():
            # One-line style, or the field of the newer one.
            found = re.match(r"(?:deb\s+(?:\[.*?\]\s+)?|URIs:\s*)(\S+/debian)/?(?:\s|$)", line)
            if found:
                return found[1]
    raise AssertionError("apt is set up with no mirror of Debian")


def build_package() -> Path:
    """The package of this checkout, or the one that KEYMOOT_DEB names."""
    if given := os.environ.get("KEYMOOT_DEB"):
        return Path(given)
    told = subprocess.run([ROOT / "packaging/build-deb", "--trial"], check=True, capture_output=True, text=True)
    return Path(told.stdout.splitlines()[-1])


def prepare() -> Path | None:
    """Root and package at once, for tests to come: nothing here needs their environment. None where that fails."""
    if os.geteuid() != 0:
        return None
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(build_package)
        try:
            base()
            return building.result()
        except (AssertionError, OSError, subprocess.SubprocessError):
            return None


def lintian(package: Path) -> str:
    """What lintian has against the package, beside the overrides that it states."""
    told = subprocess.run(["lintian", package], check=False, capture_output=True, text=True, timeout=600)
    return told.stdout + ("" if told.returncode == 0 else told.stderr)


def next_version(package: Path, directory: Path) -> Path:
    """The same package as a later version, which also says so of itself."""
    tree = directory / "next"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*$", f"Version: {NEXT_VERSION}", control.read_text(), flags=re.MULTILINE))
    (metadata,) = tree.glob("usr/lib/keymoot/lib/python3*/site-packages/keymoot-*.dist-info/METADATA")
    metadata.write_text(re.sub(r"^Version: .*$", f"Version: {NEXT_VERSION}", metadata.read_text(), flags=re.MULTILINE))
    made = directory / f"keymoot_{NEXT_VERSION}.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, made]
    subprocess.run(command, check=True, capture_output=True)
    return made


if __name__ == "__main__":
    print(prepare() or "")

"""What the package's own scripts do: a purge to shares and keys, asked by the real debconf; an upgrade that fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DEBIAN = Path(__file__).parents[2] / "packaging/debian"
DEBCONF = Path("/usr/share/debconf")
KEPT = "key shares and configuration were left in"
STATE = (
    "etc/keymoot/signer/enclave.yaml",
    "etc/credstore.encrypted/keymoot.hsm-pin",
    "etc/systemd/system/keymoot-enclave.service.d/softhsm.conf",
    "var/lib/keymoot-enclave/share",
    "var/lib/keymoot-signer/signer.db",
    "var/lib/keymoot-coordinator-two/coordinator.db",
)
CONFIGURATION = """Config: config
Templates: templates

Name: config
Driver: File
Mode: 600
Filename: {directory}/config.dat

Name: templates
Driver: File
Mode: 600
Filename: {directory}/templates.dat
"""

pytestmark = pytest.mark.skipif(not (DEBCONF / "confmodule").exists(), reason="debconf is not installed")


class Host:
    """A root with state in it, and a debconf of its own that knows the package's question."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._debconf = root / "debconf"
        self._debconf.mkdir()
        (root / "debconf.conf").write_text(CONFIGURATION.format(directory=self._debconf))
        self._environment = {"PATH": os.environ["PATH"], "DEBCONF_SYSTEMRC": str(root / "debconf.conf")}
        for name in STATE:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()

    def install(self) -> None:
        """What postinst does about the question, after a `dpkg -i` that nothing preconfigured."""
        shutil.copy(DEBIAN / "keymoot.templates", self.root / "keymoot.templates")
        assert self._run(self._script("postinst"), "configure", "").returncode == 0
        (self.root / "keymoot.templates").unlink()  # as dpkg does before it purges

    def upgrade(self, systemctl: str) -> subprocess.CompletedProcess[str]:
        """What postinst does after an upgrade; `systemctl`: the script in its place."""
        tools = self.root / "bin"
        tools.mkdir()
        (tools / "systemctl").write_text(f"#!/bin/sh\n{systemctl}\n")
        (tools / "systemctl").chmod(0o755)
        (self.root / "run/systemd/system").mkdir(parents=True)
        self._environment["PATH"] = f"{tools}:{self._environment['PATH']}"
        shutil.copy(DEBIAN / "keymoot.templates", self.root / "keymoot.templates")
        return self._run(self._script("postinst"), "configure", "0.0.9")

    def answer(self, value: str) -> None:
        """An answer given beforehand."""
        told = f"keymoot keymoot/delete-state boolean {value}\n"
        command = ["debconf-set-selections"]
        subprocess.run(command, input=told, text=True, check=True, capture_output=True, env=self._environment)

    def purge(self, confmodule: Path = DEBCONF / "confmodule") -> subprocess.CompletedProcess[str]:
        """Where nobody can be asked."""
        return self._run(self._script("postrm", confmodule), "purge")

    def purge_asked(self, typed: str) -> subprocess.CompletedProcess[str]:
        """At a terminal; what is typed answers the question."""
        command = f"{self._script('postrm')} purge"
        return self._run("script", "-qec", command, "/dev/null", frontend="teletype", typed=typed)

    def left(self) -> list[str]:
        """What is still there."""
        return [name for name in STATE if (self.root / name).exists()]

    def _script(self, name: str, confmodule: Path = DEBCONF / "confmodule") -> Path:
        """The package's script, with this root's paths."""
        text = (DEBIAN / f"keymoot.{name}").read_text().replace(str(DEBCONF / "confmodule"), str(confmodule))
        for place in ("/etc/", "/var/lib/", "/run/systemd/"):
            text = text.replace(f" {place}", f" {self.root}{place}").replace(f'"{place}', f'"{self.root}{place}')
        # As dpkg runs it: debconf knows the package by the name of the script.
        script = self.root / f"keymoot.{name}"
        script.write_text(text)
        script.chmod(0o755)
        return script

    def _run(
        self, *command: str | Path, frontend: str = "noninteractive", typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        environment = {**self._environment, "DEBIAN_FRONTEND": frontend, "TERM": "dumb"}
        return subprocess.run(
            command, input=typed, text=True, check=False, capture_output=True, env=environment, timeout=60
        )


@pytest.fixture
def host(tmp_path) -> Host:
    return Host(tmp_path)


def test_a_yes_given_beforehand_deletes_everything(host):
    host.install()
    host.answer("true")
    done = host.purge()
    assert (done.returncode, host.left()) == (0, [])
    assert KEPT not in done.stderr


def test_a_no_given_beforehand_keeps_everything_and_says_so(host):
    host.install()
    host.answer("false")
    done = host.purge()
    assert (done.returncode, host.left()) == (0, list(STATE))
    assert KEPT in done.stderr


def test_without_an_answer_everything_is_kept(host):
    host.install()
    done = host.purge()
    assert (done.returncode, host.left()) == (0, list(STATE))
    assert KEPT in done.stderr


def test_without_debconf_everything_is_kept(host):
    host.install()
    host.answer("true")
    done = host.purge(confmodule=host.root / "none")
    assert (done.returncode, host.left()) == (0, list(STATE))
    assert KEPT in done.stderr


def test_where_debconf_does_not_know_the_question_everything_is_kept(host):
    done = host.purge()
    assert (done.returncode, host.left()) == (0, list(STATE))
    assert KEPT in done.stderr


def test_an_upgrade_tells_what_does_not_run_after_it(host):
    failed = "keymoot-enclave.service loaded failed failed Keymoot enclave"
    done = host.upgrade(f'case "$1" in try-restart) exit 1;; list-units) echo "{failed}";; esac')
    assert done.returncode == 0
    assert failed in done.stderr
    assert "run keymoot doctor" in done.stderr


def test_an_upgrade_after_which_all_runs_says_nothing(host):
    done = host.upgrade('[ "$1" != list-units ] || echo none')
    assert (done.returncode, "keymoot" in done.stderr, "none" in done.stderr) == (0, False, False)


@pytest.mark.parametrize(("typed", "left"), [("yes\n", []), ("no\n", list(STATE)), ("\n", list(STATE))])
def test_at_a_terminal_the_question_is_asked(typed, left, host):
    host.install()
    done = host.purge_asked(typed)
    assert "Delete this host's key shares and configuration for good?" in " ".join(done.stdout.split())
    assert (done.returncode, host.left()) == (0, left)

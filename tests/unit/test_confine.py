"""What a confined process can still do, tried in real processes: a filter is never taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, json, mmap, os, socket, sys, threading
from enclave.confine import Confinement

def attempt(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"

def forked():
    if os.fork() == 0:
        os._exit(0)

def threaded():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()

libc = ctypes.CDLL(None, use_errno=True)
# As wide as a register: what the kernel takes for an int may have more bits set.
libc.syscall.argtypes, libc.syscall.restype = (ctypes.c_long,) * 6, ctypes.c_long
PRCTL, SHMGET, SHMAT = {"x86_64": (157, 29, 30), "aarch64": (167, 194, 196)}[os.uname().machine]
SHM_EXEC = 0o100000

def call(number, *arguments):
    result = libc.syscall(number, *arguments, *[0] * (5 - len(arguments)))
    if result == -1:
        raise OSError(ctypes.get_errno(), str(number))
    return result

def attach(flags):
    # The segment is gone with this process.
    segment = call(SHMGET, 0, 4096, 0o700)
    try:
        call(SHMAT, segment, 0, flags)
    finally:
        libc.shmctl(segment, 0, None)

confinement = Confinement(network=sys.argv[2] == "network")
if sys.argv[1] == "enclave":
    confinement.module_loaded()
else:
    confinement.confine_worker()
print(json.dumps({
    "compute": attempt(lambda: sum(bytearray(1 << 20))),
    "random": attempt(lambda: os.urandom(32)),
    "thread": attempt(threaded) if sys.argv[1] == "enclave" else "",
    "read": attempt(lambda: open("/etc/passwd").close()),
    "write": attempt(lambda: open(sys.argv[3], "w").close()),
    "exec": attempt(lambda: os.execv("/bin/true", ["true"])),
    "fork": attempt(forked),
    "internet": attempt(lambda: socket.socket(socket.AF_INET).close()),
    "unix": attempt(lambda: socket.socket(socket.AF_UNIX).close()),
    "kill": attempt(lambda: os.kill(os.getppid(), 0)),
    "writable code": attempt(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC).close()),
    "shared memory": attempt(lambda: attach(0)),
    "shared code": attempt(lambda: attach(SHM_EXEC)),
    "dumpable": attempt(lambda: call(PRCTL, 4, 1)),
    "dumpable, wide": attempt(lambda: call(PRCTL, 1 << 32 | 4, 1)),
}))
"""
REFUSED = "PermissionError"


def tried(what: str, network: str, file: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what, network, file], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("network", ["network", "none"])
def test_an_enclave_computes_and_keeps_files_and_starts_no_program(network, tmp_path):
    assert tried("enclave", network, tmp_path / "new") == {
        "compute": "done",
        "random": "done",
        "thread": "done",
        "read": "done",
        "write": "done",
        "exec": REFUSED,
        "fork": REFUSED,
        "internet": "done" if network == "network" else REFUSED,
        "unix": "done",
        "kill": REFUSED,
        "writable code": REFUSED,
        "shared memory": "done",
        "shared code": REFUSED,
        "dumpable": REFUSED,
        "dumpable, wide": REFUSED,
    }


def test_a_presign_worker_opens_no_file_and_no_socket(tmp_path):
    assert tried("worker", "none", tmp_path / "new") == {
        "compute": "done",
        "random": "done",
        "thread": "",
        "read": REFUSED,
        "write": REFUSED,
        "exec": REFUSED,
        "fork": REFUSED,
        "internet": REFUSED,
        "unix": REFUSED,
        "kill": REFUSED,
        "writable code": REFUSED,
        "shared memory": REFUSED,
        "shared code": REFUSED,
        "dumpable": REFUSED,
        "dumpable, wide": REFUSED,
    }


@pytest.mark.parametrize("there", [True, False])
def test_a_host_without_libseccomp_says_so(there, tmp_path):
    if not there:
        (tmp_path / "libseccomp.so.2").touch()
    done = subprocess.run(
        [sys.executable, "-c", "from enclave.confine import why_unfiltered; print(why_unfiltered())"],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("install Debian's libseccomp2" in done.stdout) == (not there)
    assert (done.stdout == "\n") == there


def test_memory_is_not_locked_up_to_a_limit_that_would_end_the_enclave_later():
    program = (
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))\n"
        "from enclave.confine import Confinement\n"
        "os.getuid() or os.setresuid(65534, 65534, 65534)\n"
        "print([str(one) for one in Confinement(network=False).troubles])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert "the limit for locked memory is too low" in done.stdout, done.stderr

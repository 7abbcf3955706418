"""What the enclave takes from itself once it has started: swap and core dumps, new programs and processes, the network.

The unit of an installed host says much of this already. It holds here wherever the enclave is started, and is tighter:
what a start needs is needed no more. Filters are made by libseccomp, and never taken back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from enclave.errors import Unavailable

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAP_IPC_LOCK = 14

_ALLOW = 0x7FFF0000
_NOT_PERMITTED = 0x00050000 | errno.EPERM
_NOT_THERE = 0x00050000 | errno.ENOSYS
_ATTRIBUTE_ALL_THREADS, _ATTRIBUTE_OPTIMIZE, _BINARY_TREE = 4, 8, 2
_UNKNOWN_CALL = -1
_NOT_EQUAL, _EQUAL, _MASKED_EQUAL = 1, 4, 7
_CLONE_THREAD = 0x00010000
_PROT_EXEC, _WRITE_AND_EXEC = 4, 2 | 4
_INT = 0xFFFF_FFFF
_SHM_EXEC = 0o100000
_FIONBIO = 0x5421

# Nobody needs these after the start. A PKCS#11 module reads and writes files, and may start threads.
_FORBIDDEN = """
    execve execveat fork vfork ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_open pidfd_getfd
    pidfd_send_signal kill bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register add_key
    keyctl request_key mount umount2 pivot_root chroot setns unshare fsopen fsmount fspick move_mount open_tree
    mount_setattr swapon swapoff reboot kexec_load kexec_file_load init_module finit_module delete_module setuid setgid
    setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset personality memfd_create munlockall
    quotactl acct settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname mknod mknodat chown fchown
    lchown fchownat name_to_handle_at open_by_handle_at iopl ioperm vhangup syslog vmsplice lookup_dcookie
"""
# All that the presign worker needs to compute, and to talk to the enclave over its socket. It opens no file.
_WORKER_NEEDS = """
    read readv write writev recvfrom recvmsg sendto sendmsg poll ppoll select pselect6 epoll_wait epoll_pwait epoll_ctl
    munmap mremap brk madvise futex clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getrandom
    getrusage times rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack exit exit_group close fstat lseek getpid
    gettid getppid sched_yield set_robust_list rseq restart_syscall
"""


class _Comparison(ctypes.Structure):
    """scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


# Action, system call, and what its arguments are compared with.
_Rule = tuple[int, str, Sequence[_Comparison]]


class Confinement:
    """One enclave's. `troubles`: what this host does not allow; it goes on without, and must say so."""

    def __init__(self, *, network: bool) -> None:
        """Locks this process's memory. `network`: the PKCS#11 module opens sockets to its HSM."""
        self._network, self._locked = network, False
        self._seccomp: Seccomp | None = None
        self.troubles: list[Unavailable] = []
        try:
            lock_memory()
            self._locked = True
        except Unavailable as error:
            self.troubles.append(error)
        try:
            self._seccomp = Seccomp()
        except Unavailable as error:
            self.troubles.append(error)

    def confine_worker(self) -> None:
        """Call it in the presign worker, after the fork. Raises `Unavailable` where it gets less than its parent."""
        if self._locked:
            lock_memory()
        if self._seccomp is not None:
            self._seccomp.narrow_worker()

    def module_loaded(self) -> None:
        """Call it in the enclave once its PKCS#11 module is loaded. Raises `Unavailable` where the kernel refuses."""
        if self._seccomp is not None:
            self._seccomp.narrow_enclave(network=self._network)


def why_unfiltered() -> str:
    """Why an enclave of this host cannot narrow its system calls; empty where it can."""
    try:
        Seccomp()
    except Unavailable as error:
        return str(error)
    return ""


def keep_memory_private() -> None:
    """No core dumps, no ptrace by the same user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def lock_memory() -> None:
    """Nothing of this process, now or later, is written to swap. A fork must ask for itself.

    Raises `Unavailable` where a limit does not allow for all: where that is reached later, the enclave would end.
    """
    remedy = "set LimitMEMLOCK=infinity in its unit, or `ulimit -l unlimited` before it starts"
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY and not _may_lock():
        raise Unavailable("memory is not locked: the limit for locked memory is too low", remedy)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        raise Unavailable(f"memory is not locked: {os.strerror(ctypes.get_errno())}", remedy)


def _may_lock() -> bool:
    """Whether this process has CAP_IPC_LOCK, to which no limit applies."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return False


class Seccomp:
    """libseccomp. Filters hold for the process and all its threads, for good."""

    def __init__(self) -> None:
        """Raises `Unavailable` where the library is missing."""
        try:
            self._lib = lib = ctypes.CDLL("libseccomp.so.2")
        except OSError as error:
            raise Unavailable(f"system calls are not narrowed: {error}", "install Debian's libseccomp2") from None
        lib.seccomp_init.restype = ctypes.c_void_p
        lib.seccomp_init.argtypes = (ctypes.c_uint32,)
        lib.seccomp_release.argtypes = lib.seccomp_load.argtypes = (ctypes.c_void_p,)
        lib.seccomp_release.restype = None
        lib.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
        lib.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
        lib.seccomp_rule_add_array.argtypes = (
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.POINTER(_Comparison),
        )

    def narrow_enclave(self, *, network: bool) -> None:
        """Call it when the HSM's module is loaded. `network`: the module opens sockets to its HSM.

        Raises `Unavailable` where the kernel refuses.
        """
        rules: list[_Rule] = [(_NOT_PERMITTED, name, ()) for name in _FORBIDDEN.split()]
        rules += [
            # A thread yes, a process no. clone3 hides its flags: without it the C library uses clone.
            (_NOT_PERMITTED, "clone", (_Comparison(0, _MASKED_EQUAL, _CLONE_THREAD, 0),)),
            (_NOT_THERE, "clone3", ()),
            (_NOT_PERMITTED, "mmap", (_Comparison(2, _MASKED_EQUAL, _WRITE_AND_EXEC, _WRITE_AND_EXEC),)),
            (_NOT_PERMITTED, "mprotect", (_Comparison(2, _MASKED_EQUAL, _PROT_EXEC, _PROT_EXEC),)),
            (_NOT_PERMITTED, "pkey_mprotect", (_Comparison(2, _MASKED_EQUAL, _PROT_EXEC, _PROT_EXEC),)),
            (_NOT_PERMITTED, "shmat", (_Comparison(2, _MASKED_EQUAL, _SHM_EXEC, _SHM_EXEC),)),
            # The kernel takes an int: what stands in the upper half of the register must not matter.
            (_NOT_PERMITTED, "prctl", (_Comparison(0, _MASKED_EQUAL, _INT, _PR_SET_DUMPABLE),)),
        ]
        if not network:
            rules.append((_NOT_PERMITTED, "socket", (_Comparison(0, _NOT_EQUAL, socket.AF_UNIX, 0),)))
        self._load(_ALLOW, rules)

    def narrow_worker(self) -> None:
        """Call it in the presign worker, after the fork. Raises `Unavailable` where the kernel refuses."""
        rules: list[_Rule] = [(_ALLOW, name, ()) for name in _WORKER_NEEDS.split()]
        rules += [
            (_ALLOW, "mmap", (_Comparison(2, _MASKED_EQUAL, _PROT_EXEC, 0),)),
            (_ALLOW, "mprotect", (_Comparison(2, _MASKED_EQUAL, _PROT_EXEC, 0),)),
            (_ALLOW, "ioctl", (_Comparison(1, _EQUAL, _FIONBIO, 0),)),
        ]
        self._load(_NOT_PERMITTED, rules)

    def _load(self, otherwise: int, rules: Iterable[_Rule]) -> None:
        lib = self._lib
        context = lib.seccomp_init(otherwise)
        try:
            lib.seccomp_attr_set(context, _ATTRIBUTE_ALL_THREADS, 1)
            lib.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, _BINARY_TREE)
            for action, name, comparisons in rules:
                call = lib.seccomp_syscall_resolve_name(name.encode())
                if call == _UNKNOWN_CALL:
                    continue  # newer than this library: its default action holds
                array = (_Comparison * len(comparisons))(*comparisons)
                _check(lib.seccomp_rule_add_array(context, action, call, len(comparisons), array))
            _check(lib.seccomp_load(context))
        finally:
            lib.seccomp_release(context)


def _check(result: int) -> None:
    if result != 0:
        raise Unavailable(
            f"system calls are not narrowed: {os.strerror(-result)}", "run the enclave on a kernel with seccomp filters"
        )

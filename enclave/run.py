"""The enclave as a process: worker forked, HSM opened, loop run."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from enclave.assembly import EnclaveCore, Outside
from enclave.clock_watch import MAX_WALL_STEP_S, Clocks, ClockWatch, MemoryInDoubt
from enclave.config import EnclaveConfig
from enclave.confine import Confinement
from enclave.counting_clock import CountingClock
from enclave.crypto.curve import SECP256K1
from enclave.errors import CallerError, KeymootError, Unavailable
from enclave.framing import Stream
from enclave.freeze_file import FreezeFile
from enclave.gate_keys import GateKeys
from enclave.gate_secrets import configured_keys
from enclave.gate_watch import GateSecretsWatch
from enclave.hsm import Hsm, HsmThread, open_hsm
from enclave.hsm.config import pin_mark
from enclave.log import Log
from enclave.meters import Timings
from enclave.notify import sentence, systemd
from enclave.serve import MAX_QUEUED_TO_WORKER_BYTES, Server
from enclave.tasks import Promise
from enclave.worker import MAX_WORKER_MESSAGE_BYTES, fork_worker
from policies import garbage
from policies.acceptance import AcceptedState, AcceptedStates
from policies.load import load_yaml
from policies.notify import Notifier

T = TypeVar("T")

# So long the start waits for the HSM, so that most mistakes in a configuration end it before it serves.
HSM_START_WAIT_S = 5.0
LOOK_S = 1.0


def run_enclave(config: EnclaveConfig, load: Callable[[], EnclaveConfig]) -> None:
    """Run until SIGTERM; `load()` reads the configuration again, at SIGHUP.

    The presign worker is forked before the PKCS#11 module is loaded (and any thread starts).
    An HSM that is away at the start is waited for in service, as state `hsm-away`. What no waiting cures raises
    `CallerError` as long as the HSM was never open; later it is told in the state, and what is in memory stays.
    """
    log = Log("enclave", network=config.file.network, signer=config.file.signer)
    confinement = Confinement(network=config.hsm.network)
    for trouble in confinement.troubles:
        log.warning("not confined", reason=str(trouble))
    worker = Stream(fork_worker(confinement), MAX_QUEUED_TO_WORKER_BYTES, MAX_WORKER_MESSAGE_BYTES)
    if config.file.gate.mode == "none":
        log.warning("no gate", reason="gate.mode is none: this signer agrees to whatever its policy allows")
    if config.file.gate.mode == "status":
        log.warning("weak gate", reason="gate.mode is status: whoever takes the signer process over can approve")
    if config.hsm.accept_key_export:
        log.warning("keys can be exported", reason="hsm.accept_key_export is set: the token's PIN alone guards them")
    opener = Opener(config)
    thread = HsmThread(opener.open, pin_mark=opener.pin_mark)
    secrets = GateSecretsWatch(config.gate_secrets, lambda: _submit(thread, opener.reload_gate_keys), log)
    try:
        watch = HsmWatch(thread, log, confinement.module_loaded)
        watch.start()
        _serve(config, load, opener, thread, watch, secrets, worker, log)
    finally:
        thread.close()
        worker.close()


class Opener:
    """Opens the HSM, checks that it is this signer's, and unseals the gate's keys: all on the HSM thread."""

    def __init__(self, config: EnclaveConfig) -> None:
        self._config = config
        self._gate_keys: GateKeys | None = None
        self._salt = os.urandom(16)
        self.timings = Timings("seal", "unseal", "sign", "check")

    def gate_keys(self) -> GateKeys | None:
        """The keys of the latest opening, None before the first one and in gate mode `none`."""
        return self._gate_keys

    def reload_gate_keys(self, hsm: Hsm) -> GateKeys | None:
        """As the sealed file has them now. Raises `CallerError`: nothing has changed then."""
        self._gate_keys = configured_keys(hsm, self._config)
        return self._gate_keys

    def pin_mark(self) -> bytes | None:
        """See `HsmThread`."""
        return pin_mark(self._config.hsm.pin, self._salt)

    def open(self) -> Hsm:
        """Called each time the module is set up. Raises `HsmAway`, or `CallerError` for what does not fit together."""
        config = self._config
        hsm = open_hsm(config.hsm, config.file.network, config.index, observe=self.timings.observe_ns)
        try:
            if hsm.identity_point != config.roster.signer(config.index).identity_point:
                raise CallerError(
                    f"the HSM's identity key is not the one the roster lists for {config.file.signer}: "
                    "check hsm.token_label, hsm.identity_key_label and the roster"
                )
            self._gate_keys = configured_keys(hsm, config)
        except BaseException:
            hsm.close()
            raise
        return hsm


class HsmWatch:
    """Takes in what the HSM thread has, and logs when the HSM goes away and comes back."""

    def __init__(self, thread: HsmThread, log: Log, module_loaded: Callable[[], None]) -> None:
        """`module_loaded` is called once, when the HSM is ready for the first time."""
        self._thread, self._log, self._module_loaded = thread, log, module_loaded
        self._told: tuple[str, str] | None = None
        self._was_ready = False

    def counters(self) -> dict[str, int]:
        """How often the module was opened or not, and jobs that failed, as `Status.counters` has it."""
        thread = self._thread
        counted = {"hsm_openings|opened": thread.opened, "hsm_openings|failed": thread.not_opened}
        return counted | {"hsm_failed_jobs": thread.failed_jobs}

    def start(self) -> None:
        """Wait a little for the HSM. Raises `CallerError` for what needs an operator, nothing for one that is away."""
        with contextlib.suppress(Unavailable):
            self._thread.wait_ready(HSM_START_WAIT_S)
        self.drain()

    def drain(self) -> None:
        """Called when `fileno()` of the thread is readable. Raises `CallerError` if the HSM was never ready."""
        self._thread.drain()
        state = self._thread.state
        if state == self._told:
            return
        self._told = state
        if state[0] == "ready":
            if not self._was_ready:
                self._module_loaded()
            self._log.info("hsm ready")
            self._was_ready = True
            return
        if not self._was_ready:
            with contextlib.suppress(Unavailable):
                self._thread.wait_ready(0.0)
        self._log.warning("hsm away", reason=state[1])


def _serve(
    config: EnclaveConfig,
    load: Callable[[], EnclaveConfig],
    opener: Opener,
    thread: HsmThread,
    watch: HsmWatch,
    secrets: GateSecretsWatch,
    worker: Stream,
    log: Log,
) -> None:
    outside = Outside(
        wall_clock=time.time,
        clock=time.monotonic,
        random=os.urandom,
        on_hsm=lambda job: _submit(thread, job),
        hsm_state=lambda: thread.state,
        to_worker=lambda message: server.to_worker(message),
        accepted=lambda: _accepted(config.accepted_states, log),
        log=log,
        freezes=FreezeFile(config.freezes),
        reload=load,
        counting_clock=CountingClock(time.time, Clocks().boottime),
        slewed=Clocks().slewed,
        told_of_hsm=lambda: (watch.counters(), opener.timings.told("hsm")),
        queues=lambda: {"to-signer": server.waiting, "to-worker": worker.waiting, "hsm": thread.waiting},
    )
    SECP256K1.randomize(os.urandom(32))
    garbage.settle()
    uid, clocks, told, present = config.file.peer_uid, ClockWatch(Clocks()), systemd(), config
    while True:
        core = EnclaveCore(present, opener.gate_keys, outside)
        server = Server(
            config.socket,
            uid,
            core,
            worker,
            (thread.fileno(), watch.drain),
            clocks,
            log,
        )
        _each_second(core, server, thread, told, secrets)
        try:
            server.run(lambda: _tell_ready(config, told, log))
            return told.stopping()
        except MemoryInDoubt as doubt:
            # As after a restart: nothing that this boot made, was told or remembers is used again.
            lost, present = core.drop(doubt), core.reload.config
            _tell_dropped(doubt, lost, log)
            outside = replace(
                outside, requests_after_s=int(doubt.forgotten_until_s), unkept_freezes=core.unkept_freezes
            )


def _each_second(
    core: EnclaveCore, server: Server, thread: HsmThread, told: Notifier, secrets: GateSecretsWatch
) -> None:
    """In the loop itself, so that systemd hears nothing more of a loop that hangs. Does the HSM answer?"""
    told.alive()
    thread.check_stalled()
    secrets.look()
    if told.active:
        told.tell(sentence(core.status(), server.attached))
    core.timers.after(LOOK_S, lambda: _each_second(core, server, thread, told, secrets))


def _tell_ready(config: EnclaveConfig, told: Notifier, log: Log) -> None:
    told.ready()
    log.info("ready", socket=str(config.socket), pid=os.getpid())


def _tell_dropped(doubt: MemoryInDoubt, lost: int, log: Log) -> None:
    behind_s = doubt.forgotten_until_s - time.time()
    remedy = "nothing to do: pools are filled again"
    if behind_s > MAX_WALL_STEP_S:
        remedy = (
            f"requests are refused for {behind_s:.0f} s, until the clock is where it was; if it is right now and was "
            "wrong before, restart this enclave"
        )
    log.error("memory dropped", reason=str(doubt), presignatures=lost, remedy=remedy)


def _accepted(path: Path, log: Log) -> Sequence[AcceptedState]:
    """What the operator has accepted so far; nothing while the file cannot be used."""
    if not path.exists():
        return ()
    try:
        return load_yaml(path, AcceptedStates).accepted
    except CallerError as error:
        log.warning("accepted states are not readable", reason=str(error))
        return ()


def _submit(thread: HsmThread, job: Callable[[Hsm], T]) -> Promise[T]:
    promise: Promise[T] = Promise()
    try:
        thread.submit(job, promise.settle)
    except KeymootError as error:
        promise.reject(error)
    return promise

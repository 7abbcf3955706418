"""The enclave as a process: worker forked, HSM opened, loop run."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from enclave.assembly import EnclaveCore, Outside
from enclave.config import EnclaveConfig
from enclave.crypto.curve import SECP256K1
from enclave.errors import CallerError, KeymootError
from enclave.framing import Stream
from enclave.gate import GateKeys
from enclave.gate_secrets import open_gate_secrets
from enclave.hsm import Hsm, HsmThread, open_hsm
from enclave.log import Log
from enclave.serve import MAX_QUEUED_TO_WORKER_BYTES, Server
from enclave.tasks import Promise
from enclave.worker import MAX_WORKER_MESSAGE_BYTES, fork_worker

HSM_START_TIMEOUT_S = 30.0


def run_enclave(config: EnclaveConfig) -> None:
    """Run until SIGTERM. The presign worker is forked before the PKCS#11 module is loaded (and any thread starts)."""
    worker = Stream(fork_worker(), MAX_QUEUED_TO_WORKER_BYTES, MAX_WORKER_MESSAGE_BYTES)
    log = Log("enclave", network=config.file.network, signer=config.file.signer)
    thread = HsmThread(lambda: open_hsm(config.hsm, config.file.network, config.index))
    try:
        thread.wait_ready(HSM_START_TIMEOUT_S)
        gate_keys = _check_hsm(config, thread, log)
        _serve(config, gate_keys, thread, worker, log)
    finally:
        thread.close()
        worker.close()


def _serve(config: EnclaveConfig, gate_keys: GateKeys | None, thread: HsmThread, worker: Stream, log: Log) -> None:
    outside = Outside(
        wall_clock=time.time,
        clock=time.monotonic,
        random=os.urandom,
        on_hsm=lambda job: _submit(thread, job),
        hsm_state=lambda: thread.state,
        to_worker=lambda message: server.to_worker(message),
        log=log,
    )
    SECP256K1.randomize(os.urandom(32))
    core = EnclaveCore(config, gate_keys, outside)
    uid = config.file.signer_uid
    server = Server(
        config.socket,
        os.getuid() if uid is None else uid,
        core,
        worker,
        (thread.fileno(), thread.drain),
        log,
    )
    server.run(lambda: log.info("ready", socket=str(config.socket), pid=os.getpid()))


def _check_hsm(config: EnclaveConfig, thread: HsmThread, log: Log) -> GateKeys | None:
    """HSM and roster agree on who we are; the gate's keys unseal."""

    def job(hsm: Hsm) -> GateKeys | None:
        if hsm.identity_point != config.roster.signer(config.index).identity_point:
            raise CallerError(
                f"the HSM's identity key is not the one the roster lists for {config.file.signer}: "
                "check hsm.token_label, hsm.identity_key_label and the roster"
            )
        if config.file.gate.mode == "none":
            return None
        return open_gate_secrets(hsm, config.roster.network, config.index, config.gate_secrets)

    if config.file.gate.mode == "none":
        log.warning("no gate", reason="gate.mode is none: this signer agrees to whatever its policy allows")
    promise = _submit(thread, job)
    deadline_s = time.monotonic() + HSM_START_TIMEOUT_S
    while not promise.done:
        if time.monotonic() > deadline_s:
            raise KeymootError(f"the HSM did not answer within {HSM_START_TIMEOUT_S:.0f} s")
        select.select([thread.fileno()], [], [], 1.0)
        thread.drain()
    keys = promise.result()
    assert keys is None or isinstance(keys, GateKeys)
    return keys


def _submit(thread: HsmThread, job: Callable[[Hsm], object]) -> Promise[object]:
    promise: Promise[object] = Promise()
    try:
        thread.submit(job, promise.settle)
    except KeymootError as error:
        promise.reject(error)
    return promise

"""What a signer says of itself on this host: one JSON document on a Unix socket, for `keymoot status`.

Who may open the socket sees it (mode 0600); it holds no secret. A caller says nothing and closes its half, or says an
order to freeze or unfreeze the signer, which goes to the enclave as it is. The same facts, without the
operator's addresses, go to the coordinators as `relay.Condition`.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import socket
from typing import Annotated, Any, NamedTuple

import msgspec

from appliance import relay
from appliance.signer.config import SignerConfig
from appliance.signer.metrics import SignerMetrics
from enclave import wire
from policies.errors import Unavailable

SOCKET_MODE = 0o600
MAX_ASKING = 8
MAX_SAID_BYTES = 300 * 1024
ANSWER_TIMEOUT_S = 5.0


class CoordinatorStatus(msgspec.Struct, frozen=True):
    """The link to one coordinator. `reason`: why it is down, or was the last time."""

    name: str
    url: str
    up: bool
    reason: str


class FrozenLabels(msgspec.Struct, frozen=True):
    """A freeze in force: of labels that match `pattern` (`**`: everything), by whose order, made when (Unix ms)."""

    pattern: str
    operator: str
    serial: int
    reason: str


class ClockOff(NamedTuple):
    """This machine's clock is so many seconds `ahead` of a peer's or `behind` it."""

    seconds: int
    side: str
    peer: str


class SignerStatus(msgspec.Struct, frozen=True):
    """A signer as it finds itself. `enclave`: `ready`, `waiting`, `hsm-away`, `silent`, or `away` where none is
    connected; `reason` says why it is not ready. `gate_reason`: why the last gate call had no answer, empty where it
    had one, None before the first call. `queues`: what waits, by queue. `enclave_version`, `roster_digest` and
    `policy_digest` (hex): of the enclave that is attached, empty where none is. `policy_loaded_at_s`: when that policy
    was read, Unix seconds; `policy_trouble`: why a later one is not in force. `name`: the signer's, as its enclave
    says; `frozen`: what it is frozen for."""

    network: str
    version: str
    enclave: str
    reason: str
    gate: bool
    gate_reason: str | None
    coordinators: tuple[CoordinatorStatus, ...]
    values: dict[str, int]
    queues: dict[str, int]
    enclave_version: str = ""
    roster_digest: str = ""
    policy_digest: str = ""
    policy_loaded_at_s: int = 0
    policy_trouble: str = ""
    name: str = ""
    frozen: tuple[FrozenLabels, ...] = ()

    def clocks_off(self) -> list[ClockOff]:
        """How far this machine's clock is from those of the linked peers, the worst first."""
        found = [(name.split("|"), off_s) for name, off_s in self.values.items() if name.startswith("clock_off|")]
        told = (ClockOff(off_s, where[2], where[1]) for where, off_s in found if len(where) == 3)
        return sorted(told, key=lambda one: (-one.seconds, one.peer))


class StopAnswer(msgspec.Struct, frozen=True):
    """What came of an order to freeze or unfreeze. `refused`: why it was not carried out, empty where it was; `frozen`:
    what is frozen now."""

    refused: str
    frozen: tuple[FrozenLabels, ...]


class StopRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be said to the status socket: an order as operators signed it."""

    stop: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=16 * 1024)], ...],
        msgspec.Meta(min_length=1, max_length=wire.MAX_STOP_SIGNATURES),
    ]


def condition_of(status: wire.Status | None, gate_reason: str | None, now_s: int) -> relay.Condition:
    """What coordinators are told. `gate_reason` as in `SignerStatus`; `now_s`: Unix time."""
    gate = "unknown" if gate_reason is None else "unreachable" if gate_reason else "answers"
    if status is None:
        return relay.Condition("silent", "the enclave does not answer its signer in time", gate, clock_s=now_s)
    return relay.Condition(status.state, status.reason, gate, status.policy, status.freezes, now_s)


def sentence(status: SignerStatus) -> str:
    """How the signer is, for `systemctl status`."""
    match status.enclave:
        case "ready":
            told = f"Ready; {status.values.get('presignatures', 0)} presignatures"
        case "away":
            told = f"No enclave: {status.reason}"
        case "hsm-away":
            told = f"HSM away: {status.reason}"
        case other:
            told = f"Enclave {other}: {status.reason}"
    troubles = [f"not connected to {one.name}: {one.reason or 'trying'}" for one in status.coordinators if not one.up]
    if status.gate_reason:
        troubles.append(f"the gate does not answer: {status.gate_reason}")
    return "; ".join([told, *troubles])


class StatusServer:
    """Answers whoever connects to the configuration's `status_socket`, one document each."""

    def __init__(self, config: SignerConfig, metrics: SignerMetrics, version: str) -> None:
        self._config, self._metrics, self._version = config, metrics, version
        self._asking = asyncio.Semaphore(MAX_ASKING)
        self._refreshing = asyncio.Lock()
        self._server: asyncio.Server | None = None

    async def start(self, path: pathlib.Path) -> None:
        """Listen on `path`. Raises `Unavailable` where that cannot be."""
        try:
            self._server = await asyncio.start_unix_server(self._answer, sock=_bound(path))
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {path} for `keymoot status`: {error}", "correct status_socket in signer.yaml"
            ) from error

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            if not self._asking.locked():
                async with self._asking, asyncio.timeout(ANSWER_TIMEOUT_S):
                    said = await _said(reader)
                    answer = await self._stopped(said) if said else await self.status()
                    writer.write(msgspec.json.encode(answer))
                    await writer.drain()
        writer.close()

    async def _stopped(self, said: bytes) -> StopAnswer:
        """Carry an order to the enclave, which alone judges it."""
        serving = self._metrics.serving
        try:
            request = msgspec.json.decode(said, type=StopRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return StopAnswer(f"not an order: {str(error)[:200]}", ())
        if serving is None:
            return StopAnswer(f"no enclave is attached: {self._metrics.enclave_reason}"[:500], ())
        stopped = await serving.stop(request.stop)
        if stopped is None:
            return StopAnswer("the enclave does not answer: what became of the order is not known", ())
        return StopAnswer(stopped.refused, _frozen(stopped.freezes))

    async def status(self) -> SignerStatus:
        """Asked anew of the enclave."""
        config, metrics = self._config, self._metrics
        async with self._refreshing:
            await metrics.refresh()
        if metrics.serving is None:
            enclave, reason = "away", metrics.enclave_reason
        elif metrics.enclave is None:
            enclave, reason = "silent", "the enclave does not answer its signer in time"
        else:
            enclave, reason = metrics.enclave.state, metrics.enclave.reason
        return SignerStatus(
            network=config.network,
            version=self._version,
            enclave=enclave,
            reason=reason,
            gate=config.gate is not None,
            gate_reason=metrics.gate_reason,
            coordinators=tuple(
                CoordinatorStatus(
                    one.name,
                    one.url,
                    metrics.coordinators_up.get(one.name, False),
                    metrics.coordinator_reasons.get(one.name, ""),
                )
                for one in config.coordinators
            ),
            values=dict(metrics.enclave.gauges) if metrics.enclave is not None else {},
            queues=dict(metrics.queues),
            **_of_enclave(None if metrics.serving is None else metrics.attached, metrics.enclave),
        )


def _of_enclave(attached: wire.Attached | None, status: wire.Status | None) -> dict[str, Any]:
    """What the attached enclave runs with."""
    if attached is None:
        return {}
    digests = {"roster_digest": attached.roster_digest.hex(), "policy_digest": attached.policy_digest.hex()}
    told: dict[str, Any] = {"enclave_version": attached.enclave_version, "name": attached.name, **digests}
    if status is not None and status.policy.loaded_at_s:
        policy = status.policy
        told |= {"policy_digest": policy.digest.hex(), "policy_loaded_at_s": policy.loaded_at_s}
        told |= {"policy_trouble": policy.trouble, "frozen": _frozen(status.freezes)}
    return told


def _frozen(freezes: tuple[wire.Freeze, ...]) -> tuple[FrozenLabels, ...]:
    return tuple(FrozenLabels(one.pattern, one.operator, one.serial, one.reason) for one in freezes)


async def _said(reader: asyncio.StreamReader) -> bytes:
    """What the caller says before it waits for an answer: mostly nothing."""
    said = b""
    while len(said) <= MAX_SAID_BYTES and (piece := await reader.read(MAX_SAID_BYTES)):
        said += piece
    return said


def _bound(path: pathlib.Path) -> socket.socket:
    """A socket bound to `path`, which may have been left by an earlier run. Raises `OSError`."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            path.unlink()
        listener.bind(str(path))
        # Before anybody can connect.
        path.chmod(SOCKET_MODE)
    except OSError:
        listener.close()
        raise
    return listener

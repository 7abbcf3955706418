"""What a signer says of itself on this host: one JSON document on a Unix socket, for `keymoot status`.

Who may open the socket sees it (mode 0600); it holds no secret. The same facts, without the operator's addresses, go
to the coordinators as `relay.Condition`.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import socket

import msgspec

from appliance import relay
from appliance.signer.config import SignerConfig
from appliance.signer.metrics import SignerMetrics
from enclave import wire
from policies.errors import Unavailable

SOCKET_MODE = 0o600
MAX_ASKING = 8
ANSWER_TIMEOUT_S = 5.0


class CoordinatorStatus(msgspec.Struct, frozen=True):
    """The link to one coordinator. `reason`: why it is down, or was the last time."""

    name: str
    url: str
    up: bool
    reason: str


class SignerStatus(msgspec.Struct, frozen=True):
    """A signer as it finds itself. `enclave`: `ready`, `waiting`, `hsm-away`, `silent`, or `away` where none is
    connected; `reason` says why it is not ready. `gate_reason`: why the last gate call had no answer, empty where it
    had one, None before the first call. `queues`: what waits, by queue. `enclave_version`, `roster_digest` and
    `policy_digest` (hex): of the enclave that is attached, empty where none is."""

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


def condition_of(status: wire.Status | None, gate_reason: str | None) -> relay.Condition:
    """What coordinators are told. `gate_reason` as in `SignerStatus`."""
    gate = "unknown" if gate_reason is None else "unreachable" if gate_reason else "answers"
    if status is None:
        return relay.Condition("silent", "the enclave does not answer its signer in time", gate)
    return relay.Condition(status.state, status.reason, gate)


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
        del reader
        with contextlib.suppress(OSError, TimeoutError):
            if not self._asking.locked():
                async with self._asking, asyncio.timeout(ANSWER_TIMEOUT_S):
                    writer.write(msgspec.json.encode(await self.status()))
                    await writer.drain()
        writer.close()

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
            **_of_enclave(None if metrics.serving is None else metrics.attached),
        )


def _of_enclave(attached: wire.Attached | None) -> dict[str, str]:
    """What the attached enclave runs with."""
    if attached is None:
        return {}
    digests = {"roster_digest": attached.roster_digest.hex(), "policy_digest": attached.policy_digest.hex()}
    return {"enclave_version": attached.enclave_version, **digests}


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

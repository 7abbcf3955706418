"""The enclave's word to systemd, and the sentence that `systemctl status` shows of it."""

from __future__ import annotations

import socket
import time

from enclave.wire import Status
from policies.notify import Notifier, Send, notifier


def systemd() -> Notifier:
    """As the environment says; a notifier that does nothing where no systemd has started this process."""
    return notifier(_connect, time.monotonic)


def _connect(address: str) -> Send:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.connect(address)
    return sock.send


def sentence(status: Status, attached: bool) -> str:
    """How the enclave is. `attached`: a signer process is connected."""
    held = f"{status.gauges.get('presignatures', 0)} presignatures"
    if status.state == "hsm-away":
        return f"HSM away: {status.reason}"
    if not attached:
        return f"Waiting for the signer process to connect; {held}"
    if status.state == "ready":
        return f"Ready; {held}"
    return f"{status.state.capitalize()}: {status.reason}; {held}"

"""What a process tells systemd of itself (sd_notify): that it is ready, that it is alive, and how it is, in a sentence.

Whoever opens the socket hands in `connect`, since nothing here may. Without systemd everything does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping

MAX_SENTENCE_CHARACTERS = 400
# So often within the time after which systemd takes a process for hung.
SIGNS_OF_LIFE = 4

Send = Callable[[bytes], object]


class Notifier:
    """Call `alive` from the loop that does the work, at least every second: a loop that hangs must fall silent."""

    def __init__(self, send: Send | None, watchdog_s: float | None, clock: Callable[[], float]) -> None:
        """`send` takes one datagram, None without systemd; `watchdog_s`: after which silence systemd acts, None for
        never; `clock`: monotonic seconds."""
        self._send, self._clock = send, clock
        self._every_s = None if watchdog_s is None else watchdog_s / SIGNS_OF_LIFE
        self._last_s: float | None = None
        self._told = ""

    @property
    def active(self) -> bool:
        """Whether anybody listens."""
        return self._send is not None

    def ready(self) -> None:
        """The process serves; also said again when nothing has changed."""
        self._say("READY=1")

    def stopping(self) -> None:
        """The process is about to end, as it was told to."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """The loop has been around. Cheap: most calls send nothing."""
        if self._every_s is None:
            return
        now_s = self._clock()
        if self._last_s is None or now_s - self._last_s >= self._every_s:
            self._last_s = now_s
            self._say("WATCHDOG=1")

    def tell(self, sentence: str) -> None:
        """What `systemctl status` shows an operator; sent when it changes."""
        line = "".join(one if one.isprintable() else " " for one in sentence[:MAX_SENTENCE_CHARACTERS])
        if line != self._told:
            self._told = line
            self._say(f"STATUS={line}")

    def _say(self, text: str) -> None:
        # systemd may be busy or being updated. What is lost is said again, or was one of several signs of life.
        if self._send is not None:
            with contextlib.suppress(OSError):
                self._send(text.encode("utf-8", "replace"))


def notifier(
    connect: Callable[[str], Send], clock: Callable[[], float], environment: Mapping[str, str] = os.environ
) -> Notifier:
    """By the environment that systemd gives to a process of Type=notify. `connect` opens a datagram socket that never
    blocks to a Unix address, and returns its `send`. Raises what it raises."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return Notifier(None, None, clock)
    microseconds = environment.get("WATCHDOG_USEC", "")
    ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    watchdog_s = int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) > 0 and ours else None
    return Notifier(connect("\0" + address[1:] if address[0] == "@" else address), watchdog_s, clock)

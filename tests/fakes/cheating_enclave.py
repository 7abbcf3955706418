"""A real enclave process that cheats in presigning as long as a file called `cheat` is in its directory.

Run as `python -m tests.fakes.cheating_enclave run --config …`: the enclave's own program with one class replaced.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from enclave import __main__ as program
from enclave import worker
from enclave.confine import Confinement
from enclave.protocol import presign
from enclave.protocol.session import RoundMessage
from tests.fakes.rounds import CheatingSession


class Cheating(CheatingSession):
    """One wrong value in the second round."""

    def alter(self, message: RoundMessage, receiver: int | None) -> RoundMessage:  # type: ignore[override]
        if isinstance(message, presign.CheckProducts) and Path("cheat").exists():
            return msgspec.structs.replace(message, e_tau=bytes(31) + b"\1" + message.e_tau[32:])
        return message


if __name__ == "__main__":
    # A worker that looks for a file, as an honest one must not.
    Confinement.confine_worker = lambda self: None  # type: ignore[method-assign]
    worker.Session = Cheating  # type: ignore[misc]
    sys.exit(program.main(sys.argv[1:]))

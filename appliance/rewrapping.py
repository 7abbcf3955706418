"""Bringing a signer's stored records under its HSM's present sealing key: read here, sealed anew by the enclave's tool.

Each page is committed before the next is read, and each record is whole before and after: stopped at any moment, what
is left is done by the next run. A record that changes meanwhile is never overwritten, and ends the run.
"""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import msgspec

from appliance.setup.enclave_tool import enclave_tool
from appliance.store.signer import SignerStore
from enclave import wire
from policies.errors import CallerError, Unavailable

PAGE = 200
EXIT_CALLER = 2
END_TIMEOUT_S = 30.0


class Rewrapping(msgspec.Struct, frozen=True):
    """What came of it. `broken`: records that do not open, each with its reason."""

    records: int
    rewrapped: int
    already: int
    broken: tuple[str, ...]


async def rewrap(config: pathlib.Path, store: SignerStore, progress: Callable[[int, int], None]) -> Rewrapping:
    """Rewrap everything in `store`. `progress(done, of_all)` is called after each page.

    Raises `CallerError` or `Unavailable` where the HSM does not do it; what was committed before stays.
    """
    total, done, rewrapped, broken = store.record_count(), 0, 0, list[str]()
    with _tool(config) as (tool_in, tool_out):
        place = ("", "")
        while page := store.records_after(place, PAGE):
            answers = [(record, _ask(tool_in, tool_out, record)) for record in page]
            changed = [(record, answer.sealed) for record, answer in answers if answer.sealed != record.sealed]
            written = await store.replace_seals(changed)
            if written != len(changed):
                raise Unavailable("records changed meanwhile", "stop this signer and its enclave, then run it again")
            rewrapped += written
            broken += [answer.reason for _, answer in answers if answer.reason]
            done += len(page)
            place = (page[-1].kind, page[-1].name)
            progress(done, total)
    return Rewrapping(done, rewrapped, done - rewrapped - len(broken), tuple(broken))


def _ask(tool_in: IO[bytes], tool_out: IO[bytes], record: wire.Record) -> wire.Rewrapped:
    """One record to the tool, one answer back. Raises `BrokenPipeError` where it has ended."""
    tool_in.write(wire.frame(record))
    tool_in.flush()
    length = int.from_bytes(tool_out.read(wire.LENGTH_BYTES), "big")
    data = tool_out.read(length) if 0 < length <= wire.MAX_MESSAGE_BYTES else b""
    if not data:
        raise BrokenPipeError
    return wire.decode(data, wire.Rewrapped)


@contextmanager
def _tool(config: pathlib.Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The enclave's tool, for the block. Raises what it says where it fails."""
    pipe = subprocess.PIPE
    with (
        enclave_tool(config) as made,
        made.sealing() as more,
        subprocess.Popen(  # noqa: S603
            made.command("rewrap", *more),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=made.environment,
            user=None if made.user is None else made.user.uid,
            group=None if made.user is None else made.user.gid,
            extra_groups=None if made.user is None else made.user.groups,
        ) as tool,
    ):
        assert tool.stdin is not None
        assert tool.stdout is not None
        assert tool.stderr is not None
        try:
            yield tool.stdin, tool.stdout
        except BrokenPipeError:
            said = tool.stderr.read(4096).decode(errors="replace").strip() or "the enclave's tool ended"
            error = CallerError(said) if tool.wait(END_TIMEOUT_S) == EXIT_CALLER else None
            raise error or Unavailable(said, "run it again: it goes on where it was") from None
        except BaseException:
            tool.kill()
            raise
        tool.stdin.close()
        if tool.wait(END_TIMEOUT_S) != 0:
            raise Unavailable(tool.stderr.read(4096).decode(errors="replace").strip(), "run it again")

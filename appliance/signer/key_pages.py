"""Certificates for coordinators that did not make the keys: page after page, to whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NoReturn

import structlog

from appliance import relay
from appliance.signer.coordinator_link import CoordinatorLink
from appliance.store.certificates import Certificate
from policies.errors import Unavailable

PAUSE_S = 0.005

log = structlog.get_logger()

# Number and id of the last key that is known, and how many: the number they come after, and the numbered certificates.
ReadPage = Callable[[int, str, int], tuple[int, list[tuple[int, Certificate]]]]


class KeyPages:
    """One question of each coordinator waits at most: honest ones have one at a time, more are dropped.

    `failed` is told of a store that can't be read.
    """

    def __init__(self, links: Sequence[CoordinatorLink], read: ReadPage, failed: Callable[[Unavailable], None]) -> None:
        self._read, self._failed = read, failed
        self._questions: dict[str, asyncio.Queue[relay.KeysAfter]] = {link.name: asyncio.Queue(1) for link in links}

    def ask(self, coordinator: str, question: relay.KeysAfter) -> None:
        """A coordinator's question."""
        waiting = self._questions[coordinator]
        if not waiting.full():
            waiting.put_nowait(question)

    async def answer(self, link: CoordinatorLink) -> NoReturn:
        """Answer the questions of one coordinator, with pauses in which other work has its turn."""
        while True:
            question = await self._questions[link.name].get()
            try:
                seq, found = self._read(question.after, question.key_id, relay.KEYS_A_PAGE + 1)
            except Unavailable as error:
                self._failed(error)
                continue
            keys = tuple(relay.NumberedKey(*each) for each in found[: relay.KEYS_A_PAGE])
            link.send(relay.KeyPage(seq, keys, len(found) > len(keys)), bulk=False)
            await asyncio.sleep(PAUSE_S)

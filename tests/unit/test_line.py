"""The line of those who wait: first come, first served; who gives up does not hold up the others."""

from __future__ import annotations

import asyncio

import pytest

from appliance.coordinator.line import Line


async def stand(line: Line, name: int, served: list[int], go: asyncio.Event | None = None) -> None:
    async with line.turn():
        if go is not None:
            await go.wait()
        served.append(name)


async def test_first_come_first_served() -> None:
    line, served, go = Line(), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(stand(line, name, served, go if name == 0 else None)) for name in range(50)]
    await asyncio.sleep(0)
    assert (len(line), served) == (50, [])
    go.set()
    await asyncio.gather(*tasks)
    assert served == list(range(50))
    assert len(line) == 0


@pytest.mark.parametrize("quitter", [0, 1, 3])
async def test_who_gives_up_lets_the_next_one_pass(quitter: int) -> None:
    line, served, go = Line(), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(stand(line, name, served, go if name == 0 else None)) for name in range(4)]
    await asyncio.sleep(0)
    tasks[quitter].cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert served == [name for name in range(4) if name != quitter]
    assert len(line) == 0


async def test_who_is_called_and_gives_up_in_the_same_moment_calls_the_next() -> None:
    line, served, go = Line(), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(stand(line, name, served, go if name == 0 else None)) for name in range(3)]
    await asyncio.sleep(0)
    go.set()
    await tasks[0]
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert served in ([0, 2], [0, 1, 2])
    assert len(line) == 0

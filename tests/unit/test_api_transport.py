"""The client's HTTP over real TLS: how many exchanges are under way, and who waits for whom."""

from __future__ import annotations

import asyncio
import pathlib

import pytest
from aiohttp import web

from appliance.api import models, transport
from appliance.api.credentials import Credential
from appliance.api.transport import Transport
from tests.fakes.servers import serving
from tests.fakes.tls import TlsFiles

AT_ONCE, TASKS, ROUNDS = 2, 5, 4


async def test_no_exchange_overtakes_those_that_wait(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_AT_ONCE", AT_ONCE)
    served: list[int] = []
    present = most = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal present, most
        present += 1
        most = max(most, present)
        served.append(int(request.query["task"]))
        await asyncio.sleep(0)
        present -= 1
        return web.json_response({"items": []})

    async def one_after_another(task: int) -> None:
        for _ in range(ROUNDS):
            await client.exchange("GET", f"/v1/keys?task={task}", models.KeyList)

    app = web.Application()
    app.router.add_get("/v1/keys", answer)
    tls = TlsFiles.make(tmp_path)
    async with serving(app, tls) as port:
        client = Transport(f"https://127.0.0.1:{port}", tls.ca, Credential())
        client.open()
        await asyncio.gather(*(one_after_another(task) for task in range(TASKS)))
        await client.close()
    assert most == AT_ONCE
    # Whoever has had a turn waits behind all others: two that are under way may change places, no more.
    for turn in range(ROUNDS):
        for task in range(TASKS):
            place = [number for number, who in enumerate(served) if who == task][turn]
            assert abs(place - (turn * TASKS + task)) <= AT_ONCE, served

"""How the handler bears size, slowness and many at once; and its TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import statistics
import time
from collections.abc import AsyncIterator

import aiohttp

from appliance.gate.check.findings import Finding, failed, passed, skipped, warning
from appliance.gate.check.judge import Decision
from appliance.gate.check.player import Player
from appliance.gate.check.questions import Question
from appliance.signer.gate_caller import MAX_CONNECTIONS
from enclave.wire import MAX_GATE_REQUEST_BYTES

HUGE_BYTES, PIECE_BYTES = 8 * 2**20, 64 * 1024
SLOW_CLIENTS = 8
QUESTIONS = 10
SLOW_S = 1.0
DAY_S = 24 * 3600
SOON_S = 14 * DAY_S


async def check_tls(player: Player) -> AsyncIterator[Finding]:
    """Its certificate's end, and whether it wants one of its signer."""
    async with player.raw() as connection:
        shown: ssl.SSLObject = connection.writer.get_extra_info("ssl_object")
        version = shown.version()
        certificate = shown.getpeercert() or {}
    left_s = int(ssl.cert_time_to_seconds(str(certificate["notAfter"])) - player.now_s)
    if left_s < SOON_S:
        yield warning(
            "tls",
            f"{version}; its certificate ends in {left_s // DAY_S} days",
            "From then on every request is refused.",
            "Renew it now.",
        )
    else:
        yield passed("tls", f"{version}, a certificate of the CA given, for {left_s // DAY_S} more days")
    if player.settings.gate.certificate is None:
        if not player.signed:
            means = "In mode status the client certificate is all that tells your signer from a stranger."
            yield failed("client-certificate", "mode status without one", means, "Give --certificate and --key.")
        return
    asked = player.question()
    try:
        async with player.raw(certificate=False) as connection:
            await connection.send(connection.head(len(asked.body)) + asked.body)
            status = await connection.status()
    except (OSError, TimeoutError):
        status = 0
    if status and (player.signed or 200 <= status < 300):
        report, means = (warning, "Strangers reach the handler, and only signatures keep them out.")
        if not player.signed:
            report, means = failed, "Strangers are answered, and mode status has no signature that would keep them out."
        remedy = "Require client certificates of your signer's CA, in the handler or in the proxy before it."
        yield report("client-certificate", f"without a client certificate it answers HTTP {status}", means, remedy)
    else:
        yield passed("client-certificate", "without a client certificate it answers nobody")


async def check_largest(player: Player) -> AsyncIterator[Finding]:
    """The largest question there is."""
    asked = player.question()
    filled = {**asked.message["requestInfo"]["payload"], "padding": ""}
    info = {**asked.message["requestInfo"], "payload": filled}
    room = MAX_GATE_REQUEST_BYTES - len(player.question(requestInfo=info).body)
    filled["padding"] = "0" * room
    judged = await player.ask(player.question(requestInfo=info))
    if judged.decision is Decision.NOTHING:
        yield warning(
            "largest-question",
            f"a question of {MAX_GATE_REQUEST_BYTES} bytes: {judged.told}",
            "Requests with long messages or contract calls are refused, though your rules may allow them.",
            f"Allow bodies of {MAX_GATE_REQUEST_BYTES} bytes, in the handler and in each proxy before it.",
        )
    else:
        yield passed("largest-question", f"a question of {MAX_GATE_REQUEST_BYTES} bytes got {judged.told}")


async def check_huge(player: Player) -> AsyncIterator[Finding]:
    """A body that is larger than any."""
    taken = await _huge(player, player.question())
    if taken >= HUGE_BYTES:
        yield warning(
            "huge-body",
            f"it read {taken // 2**20} MiB of a body without an end",
            "Whoever reaches it can fill its memory.",
            f"Stop reading at {MAX_GATE_REQUEST_BYTES} bytes and answer 413.",
        )
    else:
        yield passed("huge-body", "it stopped reading a body without an end")


async def _huge(player: Player, asked: Question) -> int:
    """How many bytes it took before it answered, closed, or stopped reading."""
    sent, piece = 0, b" " * PIECE_BYTES
    call = asked.call(player.asks, player.now_s, player.settings.timeout_s)
    with contextlib.suppress(OSError, TimeoutError):
        async with player.raw() as connection, asyncio.timeout(player.settings.timeout_s):
            await connection.send(connection.head(2**30, call))
            answer = asyncio.ensure_future(connection.status())
            try:
                while sent < HUGE_BYTES and not answer.done():
                    await connection.send(piece)
                    sent += len(piece)
                    await asyncio.sleep(0)
                # What lies in buffers on the way was not read.
                await asyncio.wait([answer], timeout=1.0)
                return 0 if answer.done() else sent
            finally:
                answer.cancel()
                await asyncio.wait([answer])
    return 0


async def check_slow_clients(player: Player) -> AsyncIterator[Finding]:
    """Others that send half a question, or do not read their answer, must not hold up a signer."""
    async with contextlib.AsyncExitStack() as held:
        try:
            for number in range(SLOW_CLIENTS):
                asked = player.question()
                call = asked.call(player.asks, player.now_s, player.settings.timeout_s)
                connection = await held.enter_async_context(player.raw())
                body = asked.body if number % 2 else asked.body[: len(asked.body) // 2]
                await connection.send(connection.head(len(asked.body), call) + body)
            judged = await player.ask()
        except (OSError, TimeoutError):
            told = "and takes no further connection"
        else:
            told = f"and the next question: {judged.told}" if judged.lost else ""
    if told:
        yield failed(
            "slow-clients",
            f"{SLOW_CLIENTS} clients send or read slowly, {told}",
            "One slow connection stops every signature.",
            "Serve connections side by side, and close those on which nothing comes.",
        )
    else:
        yield passed("slow-clients", f"it answers while {SLOW_CLIENTS} others send or read slowly")


async def check_load(player: Player) -> AsyncIterator[Finding]:
    """As many at once as a signer has connections; and how long one takes."""
    at_once = await asyncio.gather(*(player.ask() for _ in range(MAX_CONNECTIONS)))
    lost = [judged for judged in at_once if judged.lost]
    if lost:
        yield failed(
            "at-once",
            f"of {MAX_CONNECTIONS} questions at once {len(lost)} got no answer: {lost[0].told}",
            "Requests are refused whenever there are some at once.",
            f"Serve {MAX_CONNECTIONS} connections side by side.",
        )
    else:
        yield passed("at-once", f"{MAX_CONNECTIONS} questions at once were all answered")
    player.latencies_s.clear()
    for _ in range(QUESTIONS):
        started_s = time.perf_counter()
        if (await player.ask()).decision is Decision.NOTHING or time.perf_counter() - started_s > SLOW_S:
            break
    if not player.latencies_s:
        yield skipped("latency", "no question was answered")
        return
    median_s, worst_s = statistics.median(player.latencies_s), max(player.latencies_s)
    told = f"median {median_s * 1000:.1f} ms, slowest {worst_s * 1000:.1f} ms"
    if worst_s > SLOW_S:
        means = "Every signature waits for it, in each signer's turn."
        person = "; where a person decides, answer 202 at once" if player.signed else ""
        yield warning("latency", told, means, f"Answer within a second{person}.")
    else:
        yield passed("latency", told)


async def check_reuse(player: Player) -> AsyncIterator[Finding]:
    """Whether a second question may come over the same connection."""
    reused = 0

    async def count(*_: object) -> None:
        nonlocal reused
        reused += 1

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(count)
    connector = aiohttp.TCPConnector(limit=1, ssl=player.caller.files.context)
    async with aiohttp.ClientSession(connector=connector, trace_configs=[trace], trust_env=False) as session:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            for _ in range(2):
                asked = player.question()
                call = asked.call(player.asks, player.now_s, player.settings.timeout_s)
                headers = {
                    "webhook-id": call.webhook_id,
                    "webhook-timestamp": call.webhook_timestamp,
                    "webhook-signature": call.webhook_signature,
                }
                limit = aiohttp.ClientTimeout(player.settings.timeout_s)
                posted = session.post(
                    player.settings.gate.url, data=asked.body, headers=headers, allow_redirects=False, timeout=limit
                )
                async with posted as answer:
                    await answer.content.read(PIECE_BYTES)
    if reused:
        yield passed("connection-reuse", "a second question came over the same connection")
    else:
        yield warning(
            "connection-reuse",
            "it closes the connection after each answer",
            "Every question costs a TLS handshake.",
            "Speak HTTP/1.1 with keep-alive, and do not close after an answer.",
        )

"""Real aiohttp servers with real TLS on loopback, for one test each."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from appliance.tls import server_context
from tests.fakes.tls import TlsFiles


@asynccontextmanager
async def serving(app: web.Application, tls: TlsFiles, *, mutual: bool = False, port: int = 0) -> AsyncIterator[int]:
    """Serve `app` over TLS; yields the port."""
    context: ssl.SSLContext = server_context(tls.server_certificate, tls.server_key, tls.ca if mutual else None)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, reuse_address=True)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()

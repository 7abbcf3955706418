"""Who is let in to the API, and how much of it each may take: before anything else looks at a request.

A POST is its client's by the signature of the request, whatever else it shows. All else is a reader's, by token or
client certificate, except what strangers may see too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from appliance.api.paths import OPEN_PATHS
from appliance.coordinator.bodies import Bodies
from appliance.coordinator.config import LimitSettings
from appliance.coordinator.credentials import Admitted, ClientKeys, Readers, Unauthorized
from appliance.coordinator.gateway import common_name
from appliance.coordinator.limits import JWS_HEADER, JWS_PATTERN
from appliance.coordinator.problems import REQUEST_ID
from appliance.coordinator.rates import Places, Rates
from appliance.telemetry import name_task
from enclave.wire import ClientRequest
from policies.errors import KeymootError, Refused

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SIGNED = web.RequestKey("signed", Admitted)
READER = web.RequestKey("reader", str)
STRANGER_BURST_S = 4.0
CLIENT_BURST_S = 2.0


class Admission:
    """The API's middleware. `wall_clock`: Unix seconds; `clock`: seconds, monotonic."""

    def __init__(
        self,
        clients: ClientKeys,
        readers: Readers,
        limits: LimitSettings,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._clients, self._readers, self._wall_clock = clients, readers, wall_clock
        self._rates = Rates(limits.requests_per_s, limits.requests_per_s * CLIENT_BURST_S, clock)
        # Of an address: what is refused, what is open to all, and (by the client it names) what has a bad signature.
        # Each by itself: no stranger takes the share of a client or a probe behind the same address.
        self._refused, self._probes, self._claims = (
            Rates(limits.strangers_per_s, limits.strangers_per_s * STRANGER_BURST_S, clock) for _ in range(3)
        )
        self._places = Places(limits.in_flight)
        self._bodies = Bodies(limits.body_timeout_s)

    def replace(self, clients: ClientKeys, readers: Readers) -> None:
        """From now on these, and nobody else."""
        self._clients, self._readers = clients, readers

    def check_approval(self, jws: str, path: str, body: bytes) -> str:
        """The client whose approval of a request it is. Raises `Refused`."""
        return self._clients.check_approval(jws, path, body, int(self._wall_clock()))

    def middleware(self) -> Middleware:
        """As aiohttp takes it. Raises `Unauthorized`, `Limited`, and what `Bodies.read` raises."""

        @web.middleware
        async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
            name = await self._name(request)
            if name is None:
                return await handler(request)
            self._rates.take(name)
            with self._places.take(name):
                return await handler(request)

        return admit

    async def _name(self, request: web.Request) -> str | None:
        """Whose request it is; None for a stranger who may see what he asks for. His address is charged for that, and
        for what is refused here."""
        address = address_of(request)
        if request.method == "POST":
            name: str | None = await self._client(request, address)
        else:
            with _Charging(self._refused, address):
                name = self._reader(request)
        if name is None:
            self._probes.take(address)
        else:
            name_task(client=name)
        return name

    def _reader(self, request: web.Request) -> str | None:
        authorization = request.headers.get("Authorization")
        if authorization is not None:
            name: str | None = self._readers.by_authorization(authorization)
        else:
            name = self._readers.by_certificate(common_name(request))
        if name is not None:
            request[READER] = name
            return f"reader/{name}"
        if request.path in OPEN_PATHS:
            return None
        raise Unauthorized("credential-missing", "reading needs a token or a client certificate that is listed")

    async def _client(self, request: web.Request, address: str) -> str:
        """The client that signed the request. What can be seen without the body is looked at before it is read."""
        jws, clients = request.headers.get(JWS_HEADER, ""), self._clients
        with _Charging(self._refused, address):
            if not JWS_PATTERN.match(jws):
                raise Unauthorized("request/jws", f"{JWS_HEADER}: a detached JWS (header..signature) is needed")
            looked_at = clients.look(jws, request.path, int(self._wall_clock()))
        kid = looked_at.header.kid
        claim = f"{address} {kid}"
        self._claims.check(claim)
        with _Charging(self._claims, claim):
            body = await self._bodies.read(request, address, kid)
            client = clients.verify(looked_at, body)
        signed = ClientRequest("POST", request.path, body, jws, request[REQUEST_ID])
        request[SIGNED] = Admitted(signed, client, looked_at.header.exp)
        return f"client/{client}"


class _Charging:
    """What the block refuses is charged to `name`. Raises `Unauthorized` for `Refused`; `Limited` after too many."""

    def __init__(self, rates: Rates, name: str) -> None:
        self._rates, self._name = rates, name

    def __enter__(self) -> None:
        """Nothing is charged yet."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, KeymootError):
            self._rates.take(self._name)
        if isinstance(error, Refused):
            raise Unauthorized(error.rule, error.reason) from None


def address_of(request: web.Request) -> str:
    """Whom a stranger's requests are charged to."""
    return network_of(request.remote or "")


def network_of(address: str) -> str:
    """An IPv4 address as it is; of IPv6 the /64, since one host has all of it."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))

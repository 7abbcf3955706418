"""Several coordinators as one API: where one does not answer, or cannot do it now, the same is asked of the next."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from appliance.api.credentials import Credential
from appliance.api.results import NotFound, NotNow
from appliance.api.transport import NoAnswer, Transport
from policies.errors import Bug, CallerError

P = ParamSpec("P")
R = TypeVar("R")


class Transports:
    """The APIs in the order in which they are tried: `current` is the one that answered last."""

    def __init__(self, apis: Sequence[tuple[str, pathlib.Path]], credential: Credential) -> None:
        """`apis`: each URL with its pinned CA. Raises `CallerError`."""
        if not apis:
            raise CallerError("a client needs the URL of a coordinator's API")
        self._all = [Transport(url, ca, credential) for url, ca in apis]
        self.current = self._all[0]

    def __len__(self) -> int:
        return len(self._all)

    def open(self) -> None:
        """Make ready for exchanges."""
        for each in self._all:
            each.open()

    async def close(self) -> None:
        """Close the connections."""
        for each in self._all:
            await each.close()

    def leave(self, failed: Transport) -> None:
        """`failed` was of no use: the next one is tried, unless somebody else has seen to it."""
        if self.current is failed:
            self.current = self._all[(self._all.index(failed) + 1) % len(self._all)]


class HasTransports(Protocol):
    """A client of several APIs."""

    transports: Transports


C = TypeVar("C", bound=HasTransports)


def at_any(
    method: Callable[Concatenate[C, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[C, P], Coroutine[Any, Any, R]]:
    """A method whose requests all go to one coordinator, and from the beginning to the next where it does not answer or
    cannot do it now.

    What is asked for has an `externalId`, so that it is not done twice.
    """

    @functools.wraps(method)
    async def tried(client: C, /, *arguments: P.args, **named: P.kwargs) -> R:
        for _ in range(len(client.transports) - 1):
            used = client.transports.current
            try:
                return await method(client, *arguments, **named)
            except (NoAnswer, NotNow):
                client.transports.leave(used)
        return await method(client, *arguments, **named)

    return tried


def where_it_is(
    method: Callable[Concatenate[C, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[C, P], Coroutine[Any, Any, R]]:
    """A method about a request that one coordinator took, under the id that this one gave it: the next is asked where
    it is not found, too. Raises `NotFound` only where all answered so, else what the one said that did not."""

    @functools.wraps(method)
    async def tried(client: C, /, *arguments: P.args, **named: P.kwargs) -> R:
        useless: NoAnswer | NotNow | None = None
        missing: NotFound | None = None
        for _ in range(len(client.transports)):
            used = client.transports.current
            try:
                return await method(client, *arguments, **named)
            except NotFound as error:
                missing = error
            except (NoAnswer, NotNow) as error:
                useless = error
            client.transports.leave(used)
        raise useless or missing or Bug("there is no coordinator to ask")

    return tried

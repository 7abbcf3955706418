"""Lists that come in pages: what a cursor is good for, and when a list has no end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from appliance.api.results import ApiError

MAX_PAGES = 1000

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Listed(Protocol[T_co]):
    """One page of a list."""

    @property
    def items(self) -> tuple[T_co, ...]:
        """What can be shown of it: damaged rows are left out, so it can be empty in the middle of a list."""

    @property
    def next_cursor(self) -> str | None:
        """Where the next page begins; None on the last one."""


async def all_pages(get: Callable[[dict[str, str]], Awaitable[Listed[T]]], limit: int | None = None) -> list[T]:
    """The list's first `limit` items, or all of them, asked for by `get` (of query parameters). Raises `ApiError` where
    there is always another page, as `get` does else."""
    listed: list[T] = []
    cursor = ""
    # After the last full page comes one without an item.
    for _ in range(MAX_PAGES + 1 + (limit or 0)):
        if limit is not None and len(listed) >= limit:
            return listed[:limit]
        page = await get({"cursor": cursor} if cursor else {})
        listed += page.items
        if page.next_cursor is None:
            return listed[:limit]
        cursor = page.next_cursor
    remedy = ": say how many are wanted, by a limit" if limit is None else ""
    raise ApiError(200, "endless-list", f"a list has more than {MAX_PAGES} pages{remedy}")

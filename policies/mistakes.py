"""Mistakes within a struct of a file, each told with the field it is in, so that a loader can say line and column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator


class Mistake(ValueError):
    """`what` is wrong, in the field `path` (names and places of items) below the struct that raises it. `others`: what
    else is wrong in the same struct."""

    def __init__(self, what: str, *path: str | int) -> None:
        super().__init__(what)
        self.path = path
        self.others: tuple[Mistake, ...] = ()


def refuse(mistakes: Iterable[Mistake]) -> None:
    """Raises the first of `mistakes` with all others, if there are any."""
    found = tuple(mistakes)
    if found:
        found[0].others = found[1:]
        raise found[0]


def wrong(read: Callable[[], object], *path: str | int) -> Iterator[Mistake]:
    """The mistake at `path`, where `read` raises `ValueError`."""
    try:
        read()
    except ValueError as error:
        yield Mistake(str(error), *path)


def wrong_items(check: Callable[[str], object], items: Iterable[str], *path: str | int) -> Iterator[Mistake]:
    """A mistake for each item of `path` for which `check` raises `ValueError`."""
    for place, item in enumerate(items):
        try:
            check(item)
        except ValueError as error:
            yield Mistake(str(error), *path, place)


def repeats(what: str, names: Iterable[str], *path: str | int) -> Iterator[Mistake]:
    """A mistake for each item of `path` that says again what an earlier one said."""
    seen: set[str] = set()
    for place, name in enumerate(names):
        if name in seen:
            yield Mistake(f"{what} `{name}`", *path, place)
        seen.add(name)

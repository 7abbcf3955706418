"""A mistake within a struct of a file, told with the field it is in, so that a loader can say line and column."""

from __future__ import annotations

from collections.abc import Iterable


class Mistake(ValueError):
    """`what` is wrong, in the field `path` (names and places of items) below the struct that raises it."""

    def __init__(self, what: str, *path: str | int) -> None:
        super().__init__(what)
        self.path = path


def refuse_repeats(what: str, names: Iterable[str], *path: str | int) -> None:
    """Raises `Mistake` at the item of `path` that says again what an earlier one said."""
    seen: set[str] = set()
    for place, name in enumerate(names):
        if name in seen:
            raise Mistake(f"{what} `{name}`", *path, place)
        seen.add(name)

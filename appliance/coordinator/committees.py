"""Which committees a roster has pools for."""

from __future__ import annotations

from collections.abc import Sequence


def windows(circle: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Every run of `size` neighbours in the circle, each once, sorted within; none where there are fewer."""
    if len(circle) < size:
        return []
    twice = [*circle, *circle]
    return sorted({tuple(sorted(twice[start : start + size])) for start in range(len(circle))})

"""Which committees a roster has pools for."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=256)
def windows(circle: tuple[int, ...], size: int) -> tuple[tuple[int, ...], ...]:
    """Every run of `size` neighbours in the circle, each once, sorted within; none where there are fewer."""
    if len(circle) < size:
        return ()
    twice = circle + circle
    return tuple(sorted({tuple(sorted(twice[start : start + size])) for start in range(len(circle))}))

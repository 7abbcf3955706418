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


@lru_cache(maxsize=256)
def kept(circle: tuple[int, ...], there: tuple[int, ...], size: int) -> tuple[tuple[int, ...], ...]:
    """The windows of the circle that are all `there`; where there is none, those of the ones that are there."""
    return tuple(window for window in windows(circle, size) if set(window) <= set(there)) or windows(there, size)

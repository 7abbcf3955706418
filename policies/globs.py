"""Patterns of policies: for labels, where `*` stays within one segment and `**` does not, and for paths.

A label pattern: `treasury/*` matches `treasury/hot`, not `treasury/hot/1`; `treasury/**` matches both.
A path pattern: `m` is the key itself; `m/0/5` one child; `m/0/*` any child of `m/0`; `m/0/**` all
below `m/0`, not `m/0` itself (`**` stands only at the end).
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_STARS = 4  # bounds the work of a match
MAX_INDEX = 2**31 - 1
MAX_CACHED = 4096

_LABEL_GLOB = re.compile(r"[A-Za-z0-9*][A-Za-z0-9._/*-]{0,95}")
_STARS = re.compile(r"(\*+)")
_PATH_GLOB = re.compile(r"m(/(0|[1-9][0-9]{0,9}|\*))*(/\*\*)?")


def check_label_glob(pattern: str) -> None:
    """Raises `ValueError` unless `pattern` is a label pattern."""
    if not _LABEL_GLOB.fullmatch(pattern):
        raise ValueError(f"`{pattern}` is not a label pattern: letters, digits, `._/-` and `*`")
    if "***" in pattern or len(_STARS.findall(pattern)) > MAX_STARS:
        raise ValueError(f"`{pattern}`: at most {MAX_STARS} wildcards `*` or `**`")


def label_matches(pattern: str, label: str) -> bool:
    """Whether the label pattern `pattern` matches the whole of `label`."""
    return _label_expression(pattern).fullmatch(label) is not None


@lru_cache(maxsize=MAX_CACHED)
def _label_expression(pattern: str) -> re.Pattern[str]:
    wildcards = {"*": "[^/]*", "**": ".*"}
    return re.compile("".join(wildcards.get(piece) or re.escape(piece) for piece in _STARS.split(pattern)))


def check_path_glob(pattern: str) -> None:
    """Raises `ValueError` unless `pattern` is a derivation path pattern with indices below 2^31."""
    if not _PATH_GLOB.fullmatch(pattern):
        raise ValueError(f"`{pattern}` is not a path pattern such as `m`, `m/0/5`, `m/0/*` or `m/0/**`")
    if any(step.isdigit() and int(step) > MAX_INDEX for step in pattern.split("/")):
        raise ValueError(f"`{pattern}`: indices end at {MAX_INDEX}; hardened derivation is impossible")


def path_matches(pattern: str, path: tuple[int, ...]) -> bool:
    """Whether the path pattern `pattern` matches the whole of `path`."""
    steps, below = _path_steps(pattern)
    if steps == path:
        return not below
    if below:
        if len(path) <= len(steps):
            return False
        path = path[: len(steps)]
    return len(steps) == len(path) and all(step in (None, index) for step, index in zip(steps, path, strict=True))


@lru_cache(maxsize=MAX_CACHED)
def _path_steps(pattern: str) -> tuple[tuple[int | None, ...], bool]:
    """The steps, None for any; and whether all below them is meant."""
    steps = pattern.split("/")[1:]
    below = bool(steps) and steps[-1] == "**"
    return tuple(None if step == "*" else int(step) for step in steps[: len(steps) - below]), below

"""Amounts in policy files: whole numbers of the smallest unit, or a number with a unit, read exactly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

MAX_AMOUNT = 2**256 - 1
MAX_DECIMALS = 77

WEI = {"wei": 0, "gwei": 9, "ether": 18}
SATOSHI = {"sat": 0, "BTC": 8}

Amount = Annotated[int, msgspec.Meta(ge=0)] | Annotated[str, msgspec.Meta(max_length=160)]
"""Such as `1000000000`, in the smallest unit, or `0.05 ether`."""

_WITH_UNIT = re.compile(r"(?P<whole>0|[1-9][0-9]{0,77})(?:\.(?P<part>[0-9]{1,77}))? (?P<unit>[A-Za-z]+)")
_DIGITS = re.compile(r"0|[1-9][0-9]{0,77}")


def parse_amount(amount: int | str, decimals_of: Mapping[str, int]) -> int:
    """`amount` in the smallest unit. `decimals_of`: the units, each as a power of ten. Raises `ValueError`."""
    number = amount if isinstance(amount, int) else _parse(amount, decimals_of)
    if not 0 <= number <= MAX_AMOUNT:
        raise ValueError(f"`{amount}` is not between 0 and 2^256")
    return number


def _parse(text: str, decimals_of: Mapping[str, int]) -> int:
    if _DIGITS.fullmatch(text):
        return int(text)
    found = _WITH_UNIT.fullmatch(text)
    if found is None or found["unit"] not in decimals_of:
        units = " or ".join(f"`1.5 {unit}`" for unit, decimals in decimals_of.items() if decimals)
        smallest = next(unit for unit, decimals in decimals_of.items() if not decimals)
        raise ValueError(f"`{text}` is no amount: write whole {smallest}{f', or {units}' if units else ''}")
    part, decimals = found["part"] or "", decimals_of[found["unit"]]
    if len(part) > decimals:
        raise ValueError(f"`{text}` has more than the {decimals} decimals of {found['unit']}")
    return int(found["whole"] + part.ljust(decimals, "0"))

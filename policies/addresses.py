"""Ethereum addresses in policy files, one by one or by the name of a list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

import msgspec

from policies.keccak import keccak256
from policies.mistakes import Mistake, wrong_items

ANY = "any"
NEW_CONTRACT = "new-contract"
MAX_PLACES = 1024
MAX_LISTS = 64

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_LIST_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")

Text = Annotated[str, msgspec.Meta(max_length=64)]
Addresses = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=MAX_PLACES)]
"""Each is `0x` and 40 hex digits, with EIP-55's checksum where it has letters of both cases."""
AddressLists = Annotated[dict[Text, Addresses], msgspec.Meta(max_length=MAX_LISTS)]
Places = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=MAX_PLACES)]
"""Addresses, names of lists of the policy, or words."""


def parse_address(text: str) -> bytes:
    """The 20 bytes. Raises `ValueError`, also where the checksum of EIP-55 is wrong."""
    if not _ADDRESS.fullmatch(text):
        raise ValueError(f"`{text}` is no address: 0x and 40 hex digits")
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and digits != _checksummed(digits.lower()):
        raise ValueError(f"`{text}` has a wrong checksum (EIP-55): a digit or the case of a letter is not right")
    return bytes.fromhex(digits)


def _checksummed(digits: str) -> str:
    checksum = keccak256(digits.encode()).hex()
    return "".join(digits[i].upper() if int(checksum[i], 16) >= 8 else digits[i] for i in range(len(digits)))


def wrong_places(places: Iterable[str], words: tuple[str, ...], *path: str) -> Iterator[Mistake]:
    """A mistake for each of `places` that is no address, can't be a list's name, and is none of `words`."""
    return wrong_items(lambda place: _check_place(place, words), places, *path)


def _check_place(place: str, words: tuple[str, ...]) -> None:
    if place.startswith("0x"):
        parse_address(place)
    elif place not in words and (place in (ANY, NEW_CONTRACT) or not _LIST_NAME.fullmatch(place)):
        said = "".join(f", or `{word}`" for word in words)
        raise ValueError(f"`{place}` is no address, no name of a list under `addresses`{said}")


def wrong_lists(lists: Mapping[str, tuple[str, ...]]) -> Iterator[Mistake]:
    """A mistake for each name and address that is not right in the policy's lists."""
    for name, addresses in lists.items():
        if not _LIST_NAME.fullmatch(name) or name in (ANY, NEW_CONTRACT):
            yield Mistake(f"`{name}` can't be the name of a list of addresses", "addresses", name)
        yield from wrong_items(parse_address, addresses, "addresses", name)


def unlisted(places: Iterable[str], lists: Mapping[str, tuple[str, ...]], *path: str | int) -> Iterator[Mistake]:
    """A mistake for each of `places` that is the name of no list."""
    for number, place in enumerate(places):
        if place not in (ANY, NEW_CONTRACT) and not place.startswith("0x") and place not in lists:
            yield Mistake(f"no list under `addresses` has the name `{place}`", *path, number)


class PlaceSet:
    """`places` of one field, ready to be asked. The lists' contents stay with the policy."""

    __slots__ = ("_direct", "_lists", "any", "new_contract")

    def __init__(self, places: Iterable[str]) -> None:
        found = tuple(places)
        self.any, self.new_contract = ANY in found, NEW_CONTRACT in found
        self._direct = frozenset(bytes.fromhex(place[2:]) for place in found if place.startswith("0x"))
        self._lists = tuple(place for place in found if not place.startswith("0x"))

    def holds(self, address: bytes, lists: Mapping[str, frozenset[bytes]]) -> bool:
        """Whether `address` (20 bytes) is one of them."""
        if self.any or address in self._direct:
            return True
        for name in self._lists:  # noqa: SIM110 -- asked for each rule: twice as fast as a generator
            if address in lists.get(name, ()):
                return True
        return False

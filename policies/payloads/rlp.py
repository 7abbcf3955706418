"""RLP, decoded strictly: one encoding for one value, nothing left over, bounded depth and size; and encoded.

Source: Ethereum Yellow Paper, appendix B.
"""

from __future__ import annotations

from policies.errors import Refused

MAX_BYTES = 48 * 1024
MAX_DEPTH = 4
MAX_ITEMS = 4096

Item = bytes | list["Item"]


def decode(data: bytes) -> Item:
    """The one item that `data` encodes. Raises `Refused` for anything else."""
    if len(data) > MAX_BYTES:
        raise _bad(f"{len(data)} bytes exceed {MAX_BYTES}")
    decoder = _Decoder(data)
    item = decoder.item(0, len(data), depth=0)
    if decoder.end != len(data):
        raise _bad("bytes after the end")
    return item


def encode(item: Item) -> bytes:
    """The one encoding of `item`."""
    if isinstance(item, bytes):
        return item if len(item) == 1 and item[0] < 0x80 else _header(0x80, len(item)) + item
    content = b"".join(map(encode, item))
    return _header(0xC0, len(content)) + content


def of_integer(number: int) -> bytes:
    """A non-negative integer as the item that `integer` reads."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _header(base: int, length: int) -> bytes:
    if length <= 55:
        return bytes([base + length])
    size = of_integer(length)
    return bytes([base + 55 + len(size)]) + size


def spans_list(data: bytes) -> bool:
    """Whether `data` reads as the header of a list and exactly as many bytes as it says, canonical or not."""
    if data[:1] < b"\xc0":
        return False
    size = max(0, data[0] - 0xF7)
    length = int.from_bytes(data[1 : 1 + size], "big") if size else data[0] - 0xC0
    return len(data) == 1 + size + length


def integer(item: Item, name: str, max_bytes: int = 32) -> int:
    """A canonical integer: big-endian without leading zeros. Raises `Refused` naming the field."""
    if not isinstance(item, bytes) or len(item) > max_bytes or item[:1] == b"\x00":
        raise Refused("payload/rlp", f"{name} is not a canonical integer of at most {max_bytes} bytes")
    return int.from_bytes(item, "big")


def fixed(item: Item, name: str, *lengths: int) -> bytes:
    """A byte string of one of the lengths. Raises `Refused` naming the field."""
    if not isinstance(item, bytes) or len(item) not in lengths:
        raise Refused("payload/rlp", f"{name} is not {' or '.join(map(str, lengths))} bytes")
    return item


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._items = 0
        self.end = 0

    def item(self, start: int, limit: int, depth: int) -> Item:
        """The item at `start`, wholly before `limit`; `end` is then where it ends."""
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            raise _bad("too deep or too many items")
        if start >= limit:
            raise _bad("an item is missing")
        prefix = self._data[start]
        if prefix < 0x80:
            self.end = start + 1
            return self._data[start : start + 1]
        is_list = prefix >= 0xC0
        begin, length = self._length(start, prefix - (0xC0 if is_list else 0x80), limit)
        if begin + length > limit:
            raise _bad("an item is cut short")
        if is_list:
            return self._list(begin, begin + length, depth)
        self.end = begin + length
        content = self._data[begin : self.end]
        if length == 1 and content[0] < 0x80:
            raise _bad("a single byte in the long form")
        return content

    def _list(self, start: int, end: int, depth: int) -> list[Item]:
        items: list[Item] = []
        position = start
        while position < end:
            items.append(self.item(position, end, depth + 1))
            position = self.end
        self.end = end
        return items

    def _length(self, start: int, code: int, limit: int) -> tuple[int, int]:
        """Where the content begins and how long it is."""
        if code <= 55:
            return start + 1, code
        size = code - 55
        encoded = self._data[start + 1 : min(start + 1 + size, limit)]
        if len(encoded) != size or encoded[0] == 0:
            raise _bad("a length that is cut short or has leading zeros")
        length = int.from_bytes(encoded, "big")
        if length <= 55:
            raise _bad("a short item in the long form")
        return start + 1 + size, length


def _bad(reason: str) -> Refused:
    return Refused("payload/rlp", f"not canonical RLP: {reason}")

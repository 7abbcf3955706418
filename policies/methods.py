"""Methods of contracts in policy files: a signature such as `transfer(address,uint256)`, or a 4-byte selector."""

from __future__ import annotations

import re
from functools import lru_cache

from policies.keccak import keccak256

SELECTOR_BYTES = 4
NO_DATA = "none"
ANY_DATA = "any"
MAX_SIGNATURE = 512

_SELECTOR = re.compile(r"0x[0-9a-f]{8}")
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]{0,127}")
_PIECE = re.compile(r"[(),]|[^(),]+")
_TYPE = re.compile(
    r"(?:u?int(?:8|16|24|32|40|48|56|64|72|80|88|96|104|112|120|128|136|144|152|160|168|176|184|192|200|208|216|224|232"
    r"|240|248|256)|bytes(?:[1-9]|[12][0-9]|3[0-2])?|address|bool|string|function)(?:\[[0-9]{0,4}\]){0,4}"
)
_BRACKETS = re.compile(r"(?:\[[0-9]{0,4}\]){1,4}")


@lru_cache(maxsize=1024)
def selector_of(method: str) -> bytes:
    """The 4 bytes that calls of `method` begin with. Raises `ValueError`."""
    if _SELECTOR.fullmatch(method):
        return bytes.fromhex(method[2:])
    if not _is_signature(method):
        raise ValueError(
            f"`{method}` is no method: write `name(type,...)` with full types (`uint256`, not `uint`) and no spaces, "
            "or a selector of 0x and 8 lower-case hex digits"
        )
    return keccak256(method.encode())[:SELECTOR_BYTES]


def check_method(method: str) -> None:
    """Raises `ValueError` unless `method` is a method, `none` or `any`."""
    if method not in (NO_DATA, ANY_DATA):
        selector_of(method)


def _is_signature(text: str) -> bool:
    """`name(…)` in the canonical form of the ABI: types in full, tuples in brackets, nothing else."""
    name, bracket, rest = text.partition("(")
    if not bracket or not _NAME.fullmatch(name):
        return False
    depth, before, ended = 1, "(", False
    for piece in _PIECE.findall(rest):
        follows = before in ("(", ",")
        if piece == "(":
            right = follows
            depth += 1
        elif piece == ")":
            right = before != ","
            depth -= 1
        elif piece == ",":
            right = not follows
        else:
            right = bool(_TYPE.fullmatch(piece) if follows else before == ")" and _BRACKETS.fullmatch(piece))
        if not right or ended:
            return False
        before, ended = piece, depth == 0
    return ended

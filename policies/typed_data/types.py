"""The types of a typed document: names checked, nothing undefined, nothing unused, `encodeType`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from policies.errors import CallerError
from policies.requests import TypedData, TypedMember

DOMAIN = "EIP712Domain"
DOMAIN_MEMBERS = (
    TypedMember("name", "string"),
    TypedMember("version", "string"),
    TypedMember("chainId", "uint256"),
    TypedMember("verifyingContract", "address"),
    TypedMember("salt", "bytes32"),
)
MAX_MEMBERS = 64
MAX_DIMENSIONS = 4
MAX_LENGTH = 4096

_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]{0,63}")
_ARRAY = re.compile(r"([A-Za-z0-9_$]+)((?:\[(?:[1-9][0-9]{0,3})?\])*)")
_DIMENSION = re.compile(r"\[([0-9]*)\]")
# What Solidity has a meaning for can't name a struct, whether it is a type of EIP-712 or not.
_RESERVED = re.compile(r"(?:u?int|bytes)[0-9]*|u?fixed(?:[0-9]+x[0-9]+)?|address|bool|string|function")
_SIZED = re.compile(r"(u?int|bytes)([1-9][0-9]{0,2})")


class TypedDataInvalid(CallerError):
    """Not EIP-712 typed data, or such that two readers could take it for different things."""


@dataclass(frozen=True)
class Atom:
    """`kind`: uint, int, bytes, bool, address, string. `size`: bits of an integer, bytes of `bytesN`, else 0."""

    kind: str
    size: int


@dataclass(frozen=True)
class MemberType:
    """A parsed type: `dimensions` from the innermost array outwards, None for one of any length."""

    base: str
    atom: Atom | None
    dimensions: tuple[int | None, ...]


class TypeTable:
    """The structs of a document. Raises `TypedDataInvalid` unless all of them make sense together."""

    def __init__(self, data: TypedData) -> None:
        self._structs = data.types
        self._members: dict[str, tuple[tuple[str, str, MemberType], ...]] = {}
        for name, members in data.types.items():
            self._members[name] = self._check_struct(name, members)
        self._check_domain()
        if data.primary_type == DOMAIN or data.primary_type not in data.types:
            raise TypedDataInvalid("primaryType names none of the document's structs")
        unused = data.types.keys() - self._reachable(data.primary_type) - {DOMAIN}
        if unused:
            raise TypedDataInvalid(f"nothing uses the type {min(unused)}")

    def members(self, struct: str) -> tuple[tuple[str, str, MemberType], ...]:
        """Name, type as written and parsed type of each member, in order."""
        return self._members[struct]

    def encode_type(self, struct: str) -> str:
        """EIP-712's `encodeType`: the struct, then all that it refers to, sorted."""
        others = sorted(self._reachable(struct) - {struct})
        return "".join(self._signature(name) for name in (struct, *others))

    def _signature(self, struct: str) -> str:
        return f"{struct}({','.join(f'{member.type} {member.name}' for member in self._structs[struct])})"

    def _reachable(self, struct: str) -> set[str]:
        found, waiting = {struct}, [struct]
        while waiting:
            for _, _, member in self._members[waiting.pop()]:
                if member.atom is None and member.base not in found:
                    found.add(member.base)
                    waiting.append(member.base)
        return found

    def _check_struct(self, name: str, members: tuple[TypedMember, ...]) -> tuple[tuple[str, str, MemberType], ...]:
        if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name):
            raise TypedDataInvalid(f"{name[:70]!r} can't be the name of a struct")
        if not 1 <= len(members) <= MAX_MEMBERS:
            raise TypedDataInvalid(f"{name} has {len(members)} members, not 1 to {MAX_MEMBERS}")
        if len({member.name for member in members}) != len(members):
            raise TypedDataInvalid(f"two members of {name} have the same name")
        return tuple(self._check_member(name, member) for member in members)

    def _check_member(self, struct: str, member: TypedMember) -> tuple[str, str, MemberType]:
        if not _NAME.fullmatch(member.name):
            raise TypedDataInvalid(f"{struct} has a member {member.name[:70]!r}, which is no name")
        return member.name, member.type, self._parse(struct, member)

    def _parse(self, struct: str, member: TypedMember) -> MemberType:
        match = _ARRAY.fullmatch(member.type)
        if match is None:
            raise TypedDataInvalid(f"{struct}.{member.name} has the type {member.type[:70]!r}, which is none")
        base, brackets = match.groups()
        dimensions = tuple(int(length) if length else None for length in _DIMENSION.findall(brackets))
        if len(dimensions) > MAX_DIMENSIONS or any(length and length > MAX_LENGTH for length in dimensions):
            raise TypedDataInvalid(
                f"{struct}.{member.name}: more than {MAX_DIMENSIONS} dimensions or {MAX_LENGTH} items"
            )
        atom = _atom(base)
        if atom is None and (base not in self._structs or base == DOMAIN):
            raise TypedDataInvalid(f"{struct}.{member.name} has the type {base[:70]}, which is not defined")
        return MemberType(base, atom, dimensions)

    def _check_domain(self) -> None:
        members = self._structs.get(DOMAIN, ())
        known = iter(DOMAIN_MEMBERS)
        if not members or not all(member in known for member in members):
            raise TypedDataInvalid(f"{DOMAIN} must have some of EIP-712's five fields, with its types and in its order")


def _atom(base: str) -> Atom | None:
    if base in ("bool", "address", "string", "bytes"):
        return Atom(base, 0)
    match = _SIZED.fullmatch(base)
    if match is None:
        return None
    kind, size = match[1], int(match[2])
    if size > (32 if kind == "bytes" else 256) or (kind != "bytes" and size % 8):
        return None
    return Atom(kind, size)

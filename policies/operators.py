"""The people who may stop a signer: one of them freezes it, so many as the policy says unfreeze it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from policies.clients import Client

MAX_OPERATORS = 16


class Operators(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`keys`: who signs orders to freeze and unfreeze, each as a client is listed. `unfreeze`: how many of them it
    takes to unfreeze; to freeze it takes one."""

    keys: Annotated[tuple[Client, ...], msgspec.Meta(min_length=1, max_length=MAX_OPERATORS)]
    unfreeze: Annotated[int, msgspec.Meta(ge=1, le=MAX_OPERATORS)] = 1

    def __post_init__(self) -> None:
        for what, names in (
            ("id", [operator.id for operator in self.keys]),
            ("key", [operator.key_bytes.hex() for operator in self.keys]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"operators: two have the same {what}")
        if self.unfreeze > len(self.keys):
            raise ValueError(f"operators: `unfreeze: {self.unfreeze}` of {len(self.keys)} can never be")

    def operator(self, operator_id: str) -> Client | None:
        """The operator with this id, or None."""
        return next((operator for operator in self.keys if operator.id == operator_id), None)

"""States of other signers that an operator has accepted although they were refused: `accepted-states.yaml`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from policies.roster import Name

ACCEPTED_STATES_FILE = "accepted-states.yaml"
BOOT_DIGITS = 16
MAX_ACCEPTED = 256


class AcceptedState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One boot of `signer`, which started with state `version`. `boot`: the first 16 hex digits of its boot nonce."""

    signer: Name
    version: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    boot: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$(?!\n)")]


class AcceptedStates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. A line serves once: for a boot that has not been seen yet."""

    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    accepted: Annotated[tuple[AcceptedState, ...], msgspec.Meta(max_length=MAX_ACCEPTED)]

"""A coordinator whose operator lies to signers and clients. Everything else of it is the real one.

    python -m tests.fakes.lying_coordinator CONFIG VICTIM LIE

`LIE`: a file that says how, read at each request: `no`; to the signer with index `VICTIM`: `altered` (a body that the
client has not signed), `first` and `last` (the first request there was, or the one before: what the others are not
asked for); to all signers: `key` (another key than the client named); to clients: `point` (its own public key in the
place of the signers') and `other` (another key, with its own certificate).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from appliance.api.models import Key
from appliance.coordinator import api, server, signing
from appliance.coordinator.views import show_key
from appliance.store.keys import KeyRow
from enclave import wire
from policies.errors import Bug
from policies.roster import Roster

# The generator of secp256k1: whoever is paid there has the key, which is 1.
OWN_POINT = "0x0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
asked: list[wire.ClientRequest] = []
shown: list[Key] = []


def lie(kind: str, honest: wire.ClientRequest) -> wire.ClientRequest:
    """What the victim is shown in place of the client's request."""
    match kind:
        case "altered":
            altered = honest.body.replace(b"pay".hex().encode(), b"pAy".hex().encode())
            if altered == honest.body:
                raise Bug("there was nothing to alter")
            return msgspec.structs.replace(honest, body=altered)
        case "first":
            return asked[0]
        case "last":
            return asked[-2]
        case _:
            return honest


def lie_of_key(kind: str, honest: Key) -> Key:
    """What a client is shown in place of a key."""
    match kind:
        case "point":
            return msgspec.structs.replace(honest, public_key=OWN_POINT)
        case "other":
            return other_than(honest.id)
        case _:
            return honest


def other_than(key_id: str | None) -> Key:
    """A key that was shown before and is not this one."""
    return next(key for key in shown if key.id not in (None, key_id))


def replace(of: object, name: str, by: object) -> None:
    """What is not there cannot be replaced: the lie would not be told."""
    if not hasattr(of, name):
        raise Bug(f"{of} has no {name}")
    setattr(of, name, by)


def main(config: Path, victim: int, lies: Path) -> None:
    """Run until it is told to stop."""

    def order(self: Any, approval: Any, request: Any, names: Any, after: Any) -> None:
        if request.client not in asked:
            asked.append(request.client)
        for index in approval.members:
            kind = lies.read_text().strip()
            told = lie(kind, request.client) if index == victim else request.client
            key_id = other_than(request.key_id).id if kind == "key" else request.key_id
            assert key_id is not None
            approval.order(
                index, wire.SignOrder(approval.id, key_id, told, approval.members, names[0], after.get(index))
            )

    def show(row: KeyRow, roster: Roster) -> Key:
        honest = show_key(row, roster)
        shown.append(honest)
        return lie_of_key(lies.read_text().strip(), honest)

    replace(api, "show_key", show)
    replace(signing.Signing, "_order_all", order)
    # It does not mind that what came back is not one thing.
    replace(signing, "_check_terms", lambda *_: None)
    server.run(config)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

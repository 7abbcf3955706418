"""A coordinator whose operator lies to one signer. Everything else of it is the real one.

    python -m tests.fakes.lying_coordinator CONFIG VICTIM LIE

`VICTIM`: the index of the signer lied to. `LIE`: a file that says how, read at each request: `no`; `altered` (a body
that the client has not signed); `first` and `last` (the first request there was, or the one before: what the others
are not asked for).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from appliance.coordinator import server, signing
from enclave import wire
from policies.errors import Bug

asked: list[wire.ClientRequest] = []


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


def main(config: Path, victim: int, lies: Path) -> None:
    """Run until it is told to stop."""

    def order(self: Any, approval: Any, request: Any, reservation: Any, after: Any) -> None:
        if request.client not in asked:
            asked.append(request.client)
        for index in approval.members:
            told = lie(lies.read_text().strip(), request.client) if index == victim else request.client
            approval.order(
                index,
                wire.SignOrder(approval.id, request.key_id, told, approval.members, reservation.name, after.get(index)),
            )

    signing.Signing._order_signing = order  # type: ignore[method-assign]
    # It does not mind that what came back is not one thing.
    signing._check_terms = lambda *_: None
    server.run(config)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

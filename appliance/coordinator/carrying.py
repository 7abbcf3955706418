"""Which approvals of a request are carried to its signers, and when these are worth asking again.

For liveness only: enclaves judge approvals, and any client that is listed here may bring some.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from appliance.store.approvals import ApprovalRow
from enclave import wire
from policies.approvals import named_in

MAX_REMEMBERED = 4096


def carried(approvals: Iterable[ApprovalRow], lacking: str, now_s: float) -> tuple[ApprovalRow, ...]:
    """Those to carry now, as many as an order takes: first of whom the signers named in what was `lacking`."""
    given, wanted = named_in(lacking)
    valid = (one for one in approvals if one.expires_s > now_s)
    ordered = sorted(valid, key=lambda one: (one.approver not in given | wanted, one.approver))
    return tuple(ordered[: wire.MAX_APPROVALS])


def brings_more(before: Sequence[ApprovalRow], now: Sequence[ApprovalRow], lacking: str) -> bool:
    """Whether it is worth asking again with the approvals of `now`: somebody's are among them who had none `before`, or
    another one of somebody who is still wanted."""
    names, (_, wanted) = {one.approver for one in before}, named_in(lacking)
    return any(one not in before and (one.approver not in names or one.approver in wanted) for one in now)


class LastRefusals:
    """Under which policy a signer last found approvals lacking. `digest(index)`: of the policy of a signer, where it is
    online. The oldest of more than `most` requests are forgotten, which costs an attempt."""

    def __init__(self, digest: Callable[[int], bytes | None], most: int = MAX_REMEMBERED) -> None:
        self._digest, self._most = digest, most
        self._known: OrderedDict[str, tuple[int, bytes | None]] = OrderedDict()

    def note(self, request_id: str, signer: int) -> None:
        """Signer `signer` refused now."""
        self._known[request_id] = signer, self._digest(signer)
        self._known.move_to_end(request_id)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def outdated(self, request_id: str) -> bool:
        """Whether the signer that refused has another policy now, or it is not known who that was."""
        signer, then = self._known.get(request_id, (0, None))
        if not signer:
            return True
        now = self._digest(signer)
        return now is not None and now != then

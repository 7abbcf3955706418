"""Network setup (SPEC 1): PRSS seeds of a new epoch, all signers of the roster."""

from __future__ import annotations

from appliance.coordinator.ceremonies import Ceremonies
from appliance.coordinator.errors import CeremonyEnded
from appliance.coordinator.prepare import collect_nonces
from enclave import wire
from policies.roster import Roster

SETUP_TIMEOUT_S = 75.0


async def setup(ceremonies: Ceremonies, roster: Roster, epoch: int) -> None:
    """Let all signers make the seeds of `epoch`. Raises `CeremonyEnded`; some signers may be at `epoch` then."""
    with ceremonies.open(roster.indices) as ceremony:
        nonces = await collect_nonces(ceremony, "setup")
        ceremony.order_all(wire.SetupOrder(ceremony.id, epoch, nonces))
        done = await ceremony.one_each(wire.SetupDone, SETUP_TIMEOUT_S)
    for index, report in done.items():
        if report.epoch != epoch:
            raise CeremonyEnded("unexpected-report", f"epoch {report.epoch} was not ordered", index)

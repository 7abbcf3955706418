"""What a coordinator says of itself: name, version, since when, and when its certificates end."""

from __future__ import annotations

import importlib.metadata

from appliance.api.models import CertificateExpiry, Coordinator
from appliance.coordinator.config import CoordinatorConfig
from appliance.coordinator.network import Network
from appliance.expiry import first_end_s, iso
from policies.roster import Roster


class Identity:
    """The coordinator of one configuration. `now_s`: Unix seconds, at its start."""

    def __init__(self, config: CoordinatorConfig, roster: Roster, now_s: float) -> None:
        self._config, self._roster = config, roster
        self._version = importlib.metadata.version("keymoot")
        self._started_at = iso(now_s)

    def show(self, network: Network, awaiting: int, now_s: float) -> Coordinator:
        """As it stands at `now_s`, certificates included: they may have been renewed. `awaiting`: approvals, so many
        requests."""
        shortage = network.shortage()
        return Coordinator(
            name=self._config.name,
            network=self._config.network,
            version=self._version,
            roster_digest="0x" + self._roster.digest().hex(),
            time=iso(now_s),
            started_at=self._started_at,
            trouble=shortage.missing if shortage else "",
            remedy=shortage.remedy if shortage else "",
            avoided=tuple(network.signers.name(index) for index in sorted(network.standing.avoided())),
            certificates=tuple(self._certificates()),
            awaiting_approvals=awaiting,
        )

    def _certificates(self) -> list[CertificateExpiry]:
        """The first to end of each file. One that cannot be read any more is left out: the process has loaded it."""
        shown = []
        files = {self._config.signers.certificate, self._config.api.certificate, self._config.signers.client_ca}
        for path in sorted(files):
            if (end_s := first_end_s(path)) is not None:
                shown.append(CertificateExpiry(path.name, iso(end_s)))
        return shown

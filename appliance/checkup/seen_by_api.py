"""What a coordinator's API shows of the network to who may read it: asked, then judged against a pinned roster."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from appliance.api.certificates import COMPARE, CertificateRefused
from appliance.api.client import Client
from appliance.api.credentials import Credential, load_token
from appliance.checkup.checks import Check, Looked
from appliance.checkup.findings import problem
from appliance.checkup.network import NetworkFacts, judge
from appliance.checkup.others import reached_at
from appliance.coordinator.config import load_config, load_roster
from appliance.profile import load_profile
from policies.roster import Roster, describe_scheme

OPERATOR_TOKEN = "operator.token"  # noqa: S105 - a file's name
ASK = "See whether the coordinator runs and this host reaches it, and that coordinator.yaml lists your token."

Now = Callable[[], datetime.datetime]


def ask(client: Client) -> NetworkFacts:
    """Everything that is judged, asked at about the same time.

    Raises `Unavailable`, `CertificateRefused`, `ApiError`.
    """
    coordinator, pools = client.coordinator(), client.pools()
    return NetworkFacts(coordinator, client.list_signers(), pools)


def network_check(profile: Path, token: Path | None, now: Now) -> Check:
    """The network as a client's profile reaches it."""

    def look() -> Looked:
        loaded = load_profile(profile, token)
        with Client.of(loaded) as client:
            return _judged(client, loaded.roster, now)

    return Check("network", "network", look, ASK)


def coordinators_own_check(directory: Path, now: Now) -> Iterator[Check]:
    """The network as the coordinator of `directory` shows it to its operator; nothing where there is no token."""
    if (directory / "coordinator.yaml").exists() and (directory / OPERATOR_TOKEN).exists():
        yield Check("network", directory.resolve().name, partial(_own, directory, now), ASK)


def _own(directory: Path, now: Now) -> Looked:
    config = load_config(directory / "coordinator.yaml")
    roster = load_roster(config)
    credential = Credential(load_token(directory / OPERATOR_TOKEN))
    url = reached_at(config.api.listen, config.api.certificate)
    with Client(url, roster, None, directory / "ca.pem", credential=credential) as client:
        return _judged(client, roster, now)


def _judged(client: Client, roster: Roster, now: Now) -> Looked:
    try:
        facts = ask(client)
    except CertificateRefused as error:
        return Looked("", [problem("coordinator", str(error), COMPARE)])
    good = f"{describe_scheme(roster.n, roster.tolerate)}; all run version {facts.coordinator.version}"
    return Looked(good, judge(facts, roster, now()))

"""What a coordinator's API shows of the network to who may read it: asked, then judged against a pinned roster."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from appliance.api.certificates import COMPARE, CertificateRefused
from appliance.api.client import ApiError, Client
from appliance.api.credentials import Credential, load_token
from appliance.checkup.checks import Check, Looked
from appliance.checkup.findings import Finding, problem, sentence
from appliance.checkup.network import NetworkFacts, judge, judge_another
from appliance.checkup.others import reached_at
from appliance.coordinator.config import load_config, load_roster
from appliance.profile import Profile, load_profile
from policies.errors import Unavailable
from policies.roster import Roster, describe_scheme

OPERATOR_TOKEN = "operator.token"  # noqa: S105 - a file's name
ASK = "See whether the coordinator runs and this host reaches it, and that coordinator.yaml lists your token."

Now = Callable[[], datetime.datetime]


@dataclass
class Seen:
    """`facts`: of the first coordinator that answered, None where none did. `findings`: about the network, and about
    each coordinator. `unreachable`: why none of them can be reached; None where one can."""

    facts: NetworkFacts | None = None
    findings: list[Finding] = field(default_factory=list)
    unreachable: str | None = None


def look_at_all(profile: Profile, now: datetime.datetime) -> Seen:
    """Every coordinator of a profile is asked by itself: one that is away is not covered up by the next."""
    seen, silent = Seen(), []
    apis = [(profile.api, profile.ca), *profile.others]
    for url, ca in apis:
        try:
            with Client(url, profile.roster, None, ca, credential=profile.credential) as client:
                if seen.facts is None:
                    seen.facts = ask(client)
                    seen.findings += judge(seen.facts, profile.roster, now)
                else:
                    seen.findings += judge_another(client.coordinator(), seen.facts.coordinator, profile.roster, now)
        except Unavailable as error:
            silent.append(error.what)
            seen.findings.append(problem("coordinator", error.what, sentence(error.remedy)))
        except CertificateRefused as error:
            seen.findings.append(problem("coordinator", str(error), COMPARE))
        except ApiError as error:
            seen.findings.append(problem("coordinator", f"API {url}: {error}", ASK))
    if len(silent) == len(apis):
        seen.unreachable = silent[0]
    return seen


def ask(client: Client) -> NetworkFacts:
    """Everything that is judged, asked at about the same time.

    Raises `Unavailable`, `CertificateRefused`, `ApiError`.
    """
    coordinator, pools = client.coordinator(), client.pools()
    return NetworkFacts(coordinator, client.list_signers(), pools)


def network_check(profile: Path, token: Path | None, now: Now) -> Check:
    """The network as a client's profile reaches it, each coordinator by itself."""

    def look() -> Looked:
        loaded = load_profile(profile, token)
        seen = look_at_all(loaded, now())
        return Looked("" if seen.facts is None else _good(seen.facts, loaded.roster), seen.findings)

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
    return Looked(_good(facts, roster), judge(facts, roster, now()))


def _good(facts: NetworkFacts, roster: Roster) -> str:
    return f"{describe_scheme(roster.n, roster.tolerate)}; all run version {facts.coordinator.version}"

"""What `keymoot status` makes of what a coordinator shows: each trouble is named, with its remedy."""

from __future__ import annotations

import datetime

import msgspec
import pytest

from appliance.api.models import Announced, CertificateExpiry, Condition, Coordinator, Frozen, Pool, PoolList, Signer
from appliance.checkup.findings import Severity, by_severity, need_attention
from appliance.checkup.network import NetworkFacts, can_sign, judge, judge_another
from tests.fakes.identities import roster

ROSTER = roster()
NOW = datetime.datetime(2026, 5, 1, 12, 0, tzinfo=datetime.UTC)
NAMES = [signer.name for signer in ROSTER.signers]
replace = msgspec.structs.replace


def a_signer(index: int, **changes: object) -> Signer:
    entry = ROSTER.signer(index)
    good = Signer(
        index=index,
        name=entry.name,
        operator=entry.operator,
        fingerprint=entry.fingerprint,
        online=True,
        links=tuple(name for name in NAMES if name != entry.name),
        announced=Announced(1, "signed", "0xaa", "0.1.0", "0.1.0"),
        condition=Condition("ready", "", "answers"),
        since="2026-05-01T11:00:00Z",
        certificate_expires="2028-01-01T00:00:00Z",
    )
    return replace(good, **changes)


def away(index: int, **changes: object) -> Signer:
    return a_signer(index, online=False, links=(), announced=None, condition=None, **changes)


COORDINATOR = Coordinator(
    name="main",
    network=ROSTER.network,
    version="0.1.0",
    roster_digest="0x" + ROSTER.digest().hex(),
    time="2026-05-01T12:00:01Z",
    started_at="2026-05-01T10:00:00Z",
    trouble="",
    remedy="",
    avoided=(),
    certificates=(CertificateExpiry("server.pem", "2028-01-01T00:00:00Z"),),
)
POOL = Pool(committee=(1, 2, 3), available=600, low=200, high=600, kept_filled=True, ready=True)


def found(
    *signers: Signer, coordinator: Coordinator = COORDINATOR, pool: Pool = POOL
) -> list[tuple[Severity, str, str, str]]:
    """The findings about a network that is well but for what is given."""
    changed = {signer.index: signer for signer in signers}
    everybody = tuple(changed.get(index, a_signer(index)) for index in ROSTER.indices)
    findings = judge(NetworkFacts(coordinator, everybody, PoolList((pool,))), ROSTER, NOW)
    assert all(finding.remedy.endswith(".") and finding.remedy[0].isupper() for finding in findings)
    return [(one.severity, one.subject, one.what, one.remedy) for one in findings]


def one(*arguments: Signer, **named: object) -> tuple[Severity, str, str, str]:
    (finding,) = found(*arguments, **named)  # type: ignore[arg-type]
    return finding


def test_a_network_that_is_well_has_no_findings() -> None:
    assert found(a_signer(2, condition=Condition("ready", "", "answers", -5))) == []
    assert found() == []


def test_an_absent_signer_is_named_with_since_when_why_and_what_it_means() -> None:
    gone = away(2, since="2026-05-01T11:50:00Z", away_reason="the signer has closed the connection")
    severity, subject, what, remedy = one(gone)
    assert (severity, subject) == (Severity.PROBLEM, ROSTER.signer(2).name)
    assert what == (
        "has been away for 10 min (the signer has closed the connection); nothing can be signed: "
        "3 signers must be online, 2 are"
    )
    assert "keymoot status" in remedy


def test_a_signer_that_was_never_there_is_away_since_the_start() -> None:
    assert one(away(2, since=None))[2].startswith("has been away since the coordinator started; nothing can be signed")


def test_a_signer_with_another_roster_is_told_to_compare_rosters() -> None:
    reason = "refused: roster: your roster differs from the coordinator's: compare roster.yaml"
    assert "keymoot roster show" in one(away(1, since=None, away_reason=reason))[3]


@pytest.mark.parametrize(
    ("change", "severity", "said", "remedy"),
    [
        ({"condition": Condition("hsm-away", "no token", "answers")}, "problem", "HSM is away: no token", "hsm check"),
        ({"condition": Condition("silent", "x", "answers")}, "problem", "does not answer its signer", "log"),
        ({"condition": Condition("ready", "", "unreachable")}, "problem", "gate did not answer", "handler"),
        (
            {"condition": Condition("ready", "", "answers", 20)},
            "warning",
            "clock is 20 s ahead",
            "timedatectl",
        ),
        ({"condition": Condition("ready", "", "answers", -600)}, "problem", "clock is 10 min behind", "timedatectl"),
        ({"certificate_expires": "2026-05-11T13:00:00Z"}, "warning", "expires in 10 days", "pki renew"),
        ({"certificate_expires": "2026-05-02T13:00:00Z"}, "warning", "expires in 1 day", "pki renew"),
        ({"certificate_expires": "2026-04-30T13:00:00Z"}, "problem", "has expired", "pki renew"),
        ({"announced": Announced(1, "signed", "0xaa", "0.1.0", "0.2.0")}, "warning", "0.1.0 and 0.2.0", "version"),
        ({"announced": Announced(1, "none", "0xaa", "0.1.0", "0.1.0")}, "note", "has no gate", "enclave.yaml"),
        ({"announced": Announced(1, "status", "0xaa", "0.1.0", "0.1.0")}, "note", "unsigned", "signed"),
    ],
)
def test_each_trouble_of_a_signer_has_its_finding(
    change: dict[str, object], severity: str, said: str, remedy: str
) -> None:
    told = one(a_signer(3, **change))
    assert (told[0], told[1]) == (severity, ROSTER.signer(3).name)
    assert said in told[2]
    assert remedy in told[3]


def test_two_signers_without_a_channel_are_named_together() -> None:
    first, third = ROSTER.signer(1).name, ROSTER.signer(3).name
    told = one(a_signer(1, links=(ROSTER.signer(2).name,)))
    assert (told[0], told[1]) == (Severity.PROBLEM, f"{first}, {third}")


def test_disagreements_are_told() -> None:
    epoch = found(a_signer(2, announced=Announced(2, "signed", "0xaa", "0.1.0", "0.1.0")))
    assert [what for _, _, what, _ in epoch] == [
        "the signers are at different PRSS epochs: " + ", ".join(f"{n} {2 if n == NAMES[1] else 1}" for n in NAMES)
    ]
    policy = one(a_signer(2, announced=Announced(1, "signed", "0xbb", "0.1.0", "0.1.0")))
    assert (policy[0], policy[2]) == (Severity.NOTE, "the signers have different policies")


@pytest.mark.parametrize(
    ("change", "severity", "said"),
    [
        ({"roster_digest": "0x00"}, "problem", "roster is not the one pinned here"),
        ({"time": "2026-05-01T12:02:00Z"}, "warning", "clock and this host's differ by 2 min"),
        ({"certificates": (CertificateExpiry("server.pem", "2026-05-03T12:00:00Z"),)}, "warning", "server.pem expires"),
        ({"trouble": "the setup is under way", "remedy": "wait"}, "problem", "nothing can be signed: the setup"),
    ],
)
def test_each_trouble_of_the_coordinator_has_its_finding(change: dict[str, object], severity: str, said: str) -> None:
    told = one(coordinator=replace(COORDINATOR, **change))
    assert told[0] == severity
    assert said in told[2]


def test_another_coordinators_own_troubles_are_told_and_the_networks_once() -> None:
    def told(**changes: object) -> list[str]:
        found = judge_another(replace(COORDINATOR, name="two", **changes), COORDINATOR, ROSTER, NOW)
        return [f"{one.severity} {one.subject}: {one.what}" for one in found]

    assert told() == told(avoided=(NAMES[0],)) == []
    assert told(trouble="its pools are empty", remedy="wait") == [
        "problem two: nothing can be signed through it: its pools are empty"
    ]
    assert told(roster_digest="0x00") == ["problem two: the coordinator's roster is not the one pinned here"]
    both = replace(COORDINATOR, trouble="a signer is away")
    assert list(judge_another(both, both, ROSTER, NOW)) == []


def test_a_signer_that_is_left_out_of_committees_is_told() -> None:
    assert one(coordinator=replace(COORDINATOR, avoided=("signer-2",)))[:2] == (Severity.WARNING, "signer-2")


@pytest.mark.parametrize(
    ("change", "severity", "said"),
    [
        ({"available": 0}, "problem", "is empty; it is being filled"),
        ({"available": 0, "failure": "timeout: no answer"}, "problem", "presigning fails, 0 presignatures are left"),
        ({"available": 90, "failure": "timeout: no answer"}, "warning", "presigning fails, 90 presignatures are left"),
        (
            {"available": 100, "spent_per_s": 20.0, "seconds_to_empty": 5.0, "filled_per_s": 10.0},
            "warning",
            "will be empty in 5 s: 20 a second are used",
        ),
        (
            {"busiest_minute": 5000, "recommended_low": 5100, "recommended_high": 9196},
            "note",
            "its busiest minute used 5000, more than its high mark of 600",
        ),
    ],
)
def test_each_trouble_of_a_pool_has_its_finding(change: dict[str, object], severity: str, said: str) -> None:
    told = one(pool=replace(POOL, **change))
    assert (told[0], told[1]) == (severity, "pool 1-2-3")
    assert told[2].startswith(said)


@pytest.mark.parametrize(
    "change",
    [
        {"available": 0, "kept_filled": False},
        {"available": 100, "spent_per_s": 20.0, "seconds_to_empty": 5.0, "filled_per_s": 5000.0},
    ],
)
def test_a_pool_that_needs_nobody_is_not_told(change: dict[str, object]) -> None:
    assert found(pool=replace(POOL, **change)) == []


def test_notes_alone_are_well_and_problems_come_first() -> None:
    everybody = (
        a_signer(1, announced=Announced(1, "none", "0xaa", "0.1.0", "0.1.0")),
        a_signer(2, certificate_expires="2026-05-11T13:00:00Z"),
        a_signer(3, condition=Condition("hsm-away", "no token", "answers")),
    )
    findings = judge(NetworkFacts(COORDINATOR, everybody, PoolList((POOL,))), ROSTER, NOW)
    assert [finding.severity for finding in by_severity(findings)] == ["problem", "warning", "note"]
    assert need_attention(findings)
    assert not need_attention([finding for finding in findings if finding.severity is Severity.NOTE])


def test_what_a_hostile_coordinator_writes_does_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from appliance.cli import status_screen

    evil = "\x1b]0;owned\x07\x1b[2J[bold]All is well.\r\n"
    told = away(2, away_reason=evil)
    coordinator = replace(COORDINATOR, name=evil, version=evil)
    facts = NetworkFacts(coordinator, (a_signer(1), told, a_signer(3)), PoolList((replace(POOL, failure=evil),)))
    status_screen.show(facts, ROSTER, [], judge(facts, ROSTER, NOW), None, NOW)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]All is well." in shown  # its words, as they are


@pytest.mark.parametrize(("awaiting", "shown"), [(0, False), (3, True)])
def test_requests_that_await_approvals_are_shown(
    capsys: pytest.CaptureFixture[str], awaiting: int, shown: bool
) -> None:
    from appliance.cli import status_screen

    facts = NetworkFacts(replace(COORDINATOR, awaiting_approvals=awaiting), (a_signer(1),), PoolList((POOL,)))
    status_screen.show(facts, ROSTER, [], [], None, NOW)
    assert ("3 requests await approvals" in capsys.readouterr().out) is shown


@pytest.mark.parametrize(
    ("change", "able"),
    [
        ({}, True),
        ({"condition": None}, True),
        ({"condition": Condition("hsm-away", "x", "answers")}, False),
        ({"condition": Condition("ready", "", "unreachable")}, False),
        ({"condition": Condition("ready", "", "answers", -31)}, False),
        ({"condition": Condition("ready", "", "answers", 30)}, True),
        ({"frozen": (Frozen("**", "olga", "2026-05-01T11:00:00Z", "drill"),)}, False),
        ({"frozen": (Frozen("hot/*", "olga", "2026-05-01T11:00:00Z", "drill"),)}, True),
        ({"online": False}, False),
    ],
)
def test_signatures_need_hsm_gate_and_clock_of_a_whole_committee(change: dict[str, object], able: bool) -> None:
    everybody = (a_signer(1), a_signer(2, **change), a_signer(3))
    assert can_sign(NetworkFacts(COORDINATOR, everybody, PoolList((POOL,))), ROSTER) is able
    troubled = replace(COORDINATOR, trouble="x", remedy="y")
    assert not can_sign(NetworkFacts(troubled, everybody, PoolList((POOL,))), ROSTER)

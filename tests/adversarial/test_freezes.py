"""The emergency stop against hostile coordinators, signers and operators; policies that change under requests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from appliance.api.jws import ClientKey, generate_client_key
from appliance.api.stop import countersign, sign_order
from enclave import wire
from enclave.wire import MAX_FREEZES
from policies.clients import Algorithm, Client
from policies.errors import CallerError
from policies.model import Policy
from policies.operators import Operators
from policies.stop_orders import StopOrder
from tests.adversarial.conftest import COMMITTEE, Desk
from tests.adversarial.test_signing import finish, only, refusals, remaining
from tests.fakes.clients import TestClient, b64url, open_policy
from tests.fakes.enclaves import authorizations_of

H = hashlib.sha256(b"one").digest()
FROZEN = 2  # the signer that the tests freeze


@dataclass
class Stop:
    """A desk whose signer 2 has three operators, two of whom it takes to unfreeze."""

    desk: Desk
    keys: dict[str, ClientKey] = field(
        default_factory=lambda: {name: generate_client_key(name, "ES256") for name in ("olga", "oscar", "otto")}
    )

    def operators(self, unfreeze: int = 2) -> Operators:
        listed = (Client(name, Algorithm.ES256, b64url(key.public_bytes)) for name, key in self.keys.items())
        return Operators(tuple(listed), unfreeze)

    def reload(self, policy: Policy, *signers: int) -> None:
        for j in signers or (FROZEN,):
            self.desk.net.policies[j] = policy
            self.desk.net.members[j].core.reload.run()

    def order(self, action: str, *labels: str, **changes: Any) -> StopOrder:
        self.desk.net.clock.now_s += 1
        now_s = self.desk.net.clock()
        made = StopOrder("testnet", f"signer-{FROZEN}", action, labels or ("**",), int(now_s * 1000), int(now_s) + 60)  # type: ignore[arg-type]
        return msgspec.structs.replace(made, **changes)

    def signed(self, order: StopOrder, *names: str) -> tuple[str, ...]:
        signatures: tuple[str, ...] = (sign_order(self.keys[names[0]], order),)
        for name in names[1:]:
            signatures = countersign(self.keys[name], signatures)
        return signatures

    def send(self, *signatures: str, j: int = FROZEN) -> wire.Stopped:
        net = self.desk.net
        net.tell(j, wire.StopOrders(7, signatures))
        net.run()
        answers = [said for said in net.members[j].said if isinstance(said, wire.Stopped)]
        assert answers[-1].ticket == 7
        return answers[-1]

    def freeze(self, *labels: str) -> tuple[str, ...]:
        signatures = self.signed(self.order("freeze", *labels), "olga")
        assert self.send(*signatures).refused == ""
        return signatures

    def unfreeze(self, *labels: str) -> tuple[str, ...]:
        signatures = self.signed(self.order("unfreeze", *labels), "oscar", "otto")
        assert self.send(*signatures).refused == ""
        return signatures

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(entry.body) for entry in self.desk.net.members[FROZEN].audit]


@pytest.fixture
def stop(desk: Desk) -> Stop:
    stop = Stop(desk)
    stop.reload(msgspec.structs.replace(open_policy(desk.client), operators=stop.operators()))
    return stop


def sign(desk: Desk, request: wire.ClientRequest | None = None, number: int = 1) -> dict[int, list[Any]]:
    request = request or desk.client.sign_hash(desk.key_id, H)
    return desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name(number))


def refused(reports: dict[int, list[Any]], j: int = FROZEN) -> tuple[str, str]:
    (report,) = reports[j]
    assert isinstance(report, wire.RequestRefused), report
    return report.rule, report.reason


# --- what a freeze stops ---


def test_a_frozen_signer_signs_nothing_and_the_others_say_what_they_would(stop: Stop) -> None:
    stop.freeze()
    reports = sign(stop.desk)
    assert refused(reports) == ("frozen", "signer signer-2 was frozen for everything by olga")
    assert isinstance(reports[1][0], wire.Authorized)
    assert remaining(stop.desk) == [8, 8, 8]
    stop.unfreeze()
    only(sign(stop.desk), wire.Authorized)


def test_a_pattern_freezes_its_labels_alone(stop: Stop) -> None:
    stop.freeze("cold/**", "hot/2")
    only(sign(stop.desk), wire.Authorized)
    stop.freeze("hot/*")
    assert refused(sign(stop.desk)) == ("frozen", "signer signer-2 was frozen for `hot/*` by olga")
    stop.unfreeze("hot/*")
    only(sign(stop.desk, number=2), wire.Authorized)
    assert [freeze.pattern for freeze in stop.send("x.y.z").freezes] == ["cold/**", "hot/2"]


def test_everything_can_be_frozen_however_much_is_frozen_already(stop: Stop) -> None:
    """One operator, whose key was stolen, must not keep the others from stopping a signer."""
    stop.freeze(*(f"junk/{number}" for number in range(MAX_FREEZES)))
    refusal = stop.send(*stop.signed(stop.order("freeze", "junk/more"), "olga"))
    assert refusal.refused == "stop/order: 64 patterns are frozen: freeze everything (`**`)"
    stop.freeze()
    assert [freeze.pattern for freeze in stop.send("x.y.z").freezes] == ["**"]
    assert refused(sign(stop.desk))[0] == "frozen"


def test_no_key_is_made_for_a_frozen_label(stop: Stop) -> None:
    stop.freeze("hot/9")
    net = stop.desk.net
    assert net.keygen(stop.desk.client.create_key("hot/9")) == {}
    assert sorted(net.keygen(stop.desk.client.create_key("hot/8"))) == [1, 2, 3]


def test_a_key_that_is_being_made_is_not_stored_once_its_label_is_frozen(stop: Stop) -> None:
    net, frozen = stop.desk.net, False

    def relay(sender: int, receiver: int, data: bytes) -> list[tuple[int, int, bytes]]:
        nonlocal frozen
        if not frozen and sender == FROZEN and net.members[FROZEN].core.status().gauges["ceremonies"]:
            frozen = True
            net.members[FROZEN].core.dispatch.handle(wire.StopOrders(1, stop.signed(stop.order("freeze"), "olga")))
        return [(sender, receiver, data)]

    net.relay = relay
    before = dict(net.members[FROZEN].store)
    assert net.keygen(stop.desk.client.create_key("hot/2")) == {}
    assert frozen
    assert {place for place in net.members[FROZEN].store if place[0] == "key"} == {
        place for place in before if place[0] == "key"
    }


def held_gate(desk: Desk) -> list[tuple[int, Any]]:
    """From now on gates decide, and their answers are held back: they are in the list."""
    held: list[tuple[int, Any]] = []

    def hold(member: int, call: wire.CallGate, reply: Any) -> Any:
        held.append((member, reply))

    desk.gate.alter = hold
    return held


def let_go(desk: Desk, held: list[tuple[int, Any]]) -> dict[int, list[Any]]:
    for member, reply in held:
        desk.net.tell(member, reply)
    desk.net.run()
    return desk.net.drain()


def test_a_request_that_waits_for_the_gate_is_refused_when_the_gate_says_yes(stop: Stop) -> None:
    held = held_gate(stop.desk)
    assert [*sign(stop.desk).values()] == [[], [], []]
    stop.freeze()
    reports = let_go(stop.desk, held)
    assert refused(reports)[0] == "frozen"
    assert isinstance(reports[3][0], wire.Authorized)


def test_a_request_is_not_asked_on_for_when_its_signer_is_frozen(stop: Stop) -> None:
    """The gate is undecided; the next poll is not made."""

    def undecided(member: int, call: wire.CallGate, reply: wire.GateReply) -> wire.GateReply:
        return msgspec.structs.replace(reply, status=202, body=b"", retry_after_s=2)

    stop.desk.gate.alter = undecided
    assert isinstance(sign(stop.desk)[FROZEN][0], wire.GatePending)
    stop.freeze()
    stop.desk.net.advance(3)
    reports = stop.desk.net.drain()
    assert refused(reports)[0] == "frozen"
    assert isinstance(reports[1][0], wire.GatePending)


def test_an_authorization_that_is_out_brings_no_share(stop: Stop) -> None:
    authorizations = authorizations_of(sign(stop.desk))
    stop.freeze()
    report = stop.desk.net.online(authorizations, stop.desk.key_id, COMMITTEE)[FROZEN][0]
    assert isinstance(report, wire.OnlineRefused)
    assert report.reason.startswith("frozen")
    assert not report.spent
    assert remaining(stop.desk) == [7, 8, 7]
    stop.unfreeze()
    # The others' presignatures are gone: nothing comes of that attempt any more.
    assert stop.desk.net.members[FROZEN].core.status().counters.get("shares_given", 0) == 0


def test_a_share_that_is_computed_while_the_freeze_comes_does_not_leave(stop: Stop) -> None:
    net = stop.desk.net
    authorizations = authorizations_of(sign(stop.desk))
    member = net.members[FROZEN]
    take_all: Callable[..., Any] = member.core.pool.take_all

    def take_and_freeze(*names: Any) -> Any:
        member.core.dispatch.handle(wire.StopOrders(1, stop.signed(stop.order("freeze"), "olga")))
        return take_all(*names)

    member.core.pool.take_all = take_and_freeze  # type: ignore[method-assign]
    report = net.online(authorizations, stop.desk.key_id, COMMITTEE)[FROZEN][0]
    assert isinstance(report, wire.OnlineRefused)
    assert (report.spent, report.reason[:6]) == (True, "frozen")
    assert member.core.status().counters.get("shares_given", 0) == 0


def test_what_was_answered_before_is_still_recalled(stop: Stop) -> None:
    request = stop.desk.client.sign_hash(stop.desk.key_id, H)
    shares = finish(stop.desk, authorizations_of(sign(stop.desk, request)))
    stop.freeze()
    assert only(sign(stop.desk, request), wire.Recalled)[FROZEN].answer.report == shares[FROZEN]  # type: ignore[attr-defined]


def test_presigning_goes_on(stop: Stop) -> None:
    stop.freeze()
    assert sorted(stop.desk.net.presign(COMMITTEE, 4)) == [1, 2, 3]


# --- across restarts ---


def test_a_freeze_outlasts_restarts_and_a_store_put_back(stop: Stop) -> None:
    disk = stop.desk.net.copy_disk(FROZEN)
    stop.freeze()
    for older in (None, disk):
        stop.desk.net.reboot(FROZEN, older)
        status = stop.desk.net.members[FROZEN].core.status()
        assert [freeze.pattern for freeze in status.freezes] == ["**"]


def restarted(stop: Stop) -> tuple[wire.Freeze, ...]:
    stop.desk.net.reboot(FROZEN)
    stop.desk.net.presence(COMMITTEE)
    stop.desk.net.run()
    return stop.desk.net.members[FROZEN].core.status().freezes


@pytest.mark.parametrize("data", [b"", b"{}", b'{"serial": 1}', b"\xff", None])
def test_a_state_that_cannot_be_read_or_is_missing_freezes_everything(stop: Stop, data: bytes | None) -> None:
    old = stop.freeze("cold/*"), stop.unfreeze("cold/*")
    stop.desk.net.freeze_stores[FROZEN].data = data
    (freeze,) = restarted(stop)
    assert (freeze.pattern, freeze.operator) == ("**", "")
    assert "freeze-state-lost" in [event["event"] for event in stop.events()]
    assert stop.send(*old[1]).refused.startswith("stop/replayed")
    stop.unfreeze()
    assert restarted(stop) == ()


def test_another_signers_state_freezes_everything(stop: Stop) -> None:
    store = stop.desk.net.freeze_stores[FROZEN]
    assert store.data is not None
    store.data = store.data.replace(b"signer-2", b"signer-1")
    assert [freeze.pattern for freeze in restarted(stop)] == ["**"]


def test_a_freeze_that_cannot_be_kept_holds_and_an_unfreeze_does_not(stop: Stop) -> None:
    store = stop.desk.net.freeze_stores[FROZEN]
    store.broken = True
    answer = stop.send(*stop.signed(stop.order("freeze"), "olga"))
    assert answer.refused.startswith("stop/kept: frozen until the next restart, since")
    assert refused(sign(stop.desk))[0] == "frozen"
    answer = stop.send(*stop.signed(stop.order("unfreeze"), "oscar", "otto"))
    assert answer.refused.startswith("stop/kept: not unfrozen")
    assert refused(sign(stop.desk))[0] == "frozen"
    store.broken = False
    stop.unfreeze()
    only(sign(stop.desk, number=2), wire.Authorized)


def test_a_freeze_that_cannot_be_kept_holds_where_memory_is_dropped(stop: Stop) -> None:
    """It is told to hold until the next restart, and that an enclave's memory is in doubt is none."""
    net = stop.desk.net
    net.freeze_stores[FROZEN].broken = True
    stop.send(*stop.signed(stop.order("freeze", "cold/*"), "olga"))
    for _ in range(2):
        net.drop_memory(FROZEN)
        net.presence(COMMITTEE)
        net.run()
        assert [freeze.pattern for freeze in net.members[FROZEN].core.status().freezes] == ["cold/*"]
    net.freeze_stores[FROZEN].broken = False
    stop.unfreeze("cold/*")
    net.drop_memory(FROZEN)
    assert net.members[FROZEN].core.status().freezes == ()
    assert restarted(stop) == ()


# --- who may ---


def test_an_order_serves_once_and_none_is_carried_out_after_a_later_one(stop: Stop) -> None:
    early = stop.signed(stop.order("unfreeze"), "olga", "otto")
    first = stop.freeze()
    assert stop.send(*early).refused.startswith("stop/replayed")
    ended = stop.unfreeze()
    for replayed in (first, ended, early):
        assert stop.send(*replayed).refused.startswith("stop/replayed")
    stop.freeze()
    assert stop.send(*ended).refused.startswith("stop/replayed")
    assert refused(sign(stop.desk))[0] == "frozen"


def test_after_an_order_of_a_clock_that_is_ahead_it_is_said_when_the_next_one_can_be(stop: Stop) -> None:
    ahead = stop.order("freeze", "hot/*", serial=int((stop.desk.net.clock() + 240) * 1000))
    assert stop.send(*stop.signed(ahead, "olga")).refused == ""
    said = stop.send(*stop.signed(stop.order("freeze"), "oscar")).refused
    assert said == (
        "stop/replayed: the last order was made by a clock that is ahead: make another in 239 s, or stop the enclave "
        "itself if it must not sign"
    )
    stop.desk.net.advance(239)
    assert stop.send(*stop.signed(stop.order("freeze"), "oscar")).refused == ""


def test_one_operator_does_not_unfreeze_where_it_takes_two(stop: Stop) -> None:
    stop.freeze()
    order = stop.order("unfreeze")
    one = sign_order(stop.keys["otto"], order)
    assert stop.send(one).refused == "stop/operator: to unfreeze takes 2 operators' signatures, the order has 1"
    assert stop.send(one, one).refused == "stop/operator: one operator signed twice"
    other = sign_order(stop.keys["olga"], stop.order("unfreeze"))
    assert stop.send(one, other).refused == "stop/jws: the signatures are of different orders"
    mallory = generate_client_key("mallory", "ES256")
    assert stop.send(*countersign(mallory, (one,))).refused == "stop/operator: the policy knows no operator mallory"
    posing = ClientKey("olga", mallory.private_key)
    assert "of operator olga does not verify" in stop.send(*countersign(posing, (one,))).refused
    assert refused(sign(stop.desk))[0] == "frozen"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"signer": "signer-1"}, "stop/signer"),
        ({"network": "mainnet"}, "stop/signer"),
        ({"expires": 1}, "stop/expired"),
        ({"expires": 2**33}, "stop/expired"),
        ({"serial": 1}, "stop/replayed"),
        ({"serial": 2**46}, "stop/time"),
        ({"labels": ("nothing/here",)}, "stop/order"),
    ],
)
def test_an_order_is_for_one_signer_and_a_short_time(stop: Stop, changes: dict[str, Any], rule: str) -> None:
    stop.freeze("cold/*")
    answer = stop.send(*stop.signed(stop.order("unfreeze", **changes), "olga", "otto"))
    assert answer.refused.partition(":")[0] == rule
    assert [freeze.pattern for freeze in answer.freezes] == ["cold/*"]


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", "x" * 100, "é.é.é", "eyJ9.eyJ9.AAAA"])
def test_what_is_no_order_is_refused(stop: Stop, text: str) -> None:
    assert stop.send(text).refused.startswith(("stop/jws", "stop/header"))


def test_a_client_is_no_operator_and_an_operator_no_client(stop: Stop) -> None:
    client = ClientKey(stop.desk.client.kid, stop.desk.client.key)
    answer = stop.send(sign_order(client, stop.order("freeze")))
    assert answer.refused == "stop/operator: the policy knows no operator payments"
    posing = TestClient(stop.desk.net.clock, "olga")
    assert refused(sign(stop.desk, posing.sign_hash(stop.desk.key_id, H)))[0] == "request/client"


def test_without_operators_nobody_freezes(stop: Stop) -> None:
    answer = stop.send(*stop.signed(stop.order("freeze", signer="signer-1"), "olga"), j=1)
    assert answer.refused == "stop/operator: this signer's policy names no operators: nobody may freeze it"
    assert answer.freezes == ()


def test_a_freeze_stays_when_its_operator_is_removed(stop: Stop) -> None:
    stop.freeze()
    stop.reload(open_policy(stop.desk.client))
    assert refused(sign(stop.desk))[0] == "frozen"
    assert [freeze.operator for freeze in restarted(stop)] == ["olga"]


def test_the_audit_chain_says_who_froze_what(stop: Stop) -> None:
    stop.freeze("hot/*")
    stop.unfreeze("hot/*")
    told = [event for event in stop.events() if event["event"] in ("freeze", "unfreeze")]
    assert [(event["event"], event["labels"], event["operators"]) for event in told] == [
        ("freeze", "hot/*", "olga"),
        ("unfreeze", "hot/*", "oscar, otto"),
    ]


# --- policies that change under requests ---


def test_a_revoked_client_gets_nothing_at_once(stop: Stop) -> None:
    """Whether its request is new, waits for the gate, or is authorised."""
    desk, other = stop.desk, TestClient(stop.desk.net.clock, "other")
    waiting = desk.client.sign_hash(desk.key_id, H)
    authorised = authorizations_of(sign(desk, number=3))
    held = held_gate(desk)
    sign(desk, waiting, number=2)
    stop.reload(open_policy(other))
    assert refused(let_go(desk, held)) == ("request/client", "the key of client payments was revoked meanwhile")
    assert refused(sign(desk))[0] == "request/client"
    report = desk.net.online(authorised, desk.key_id, COMMITTEE)[FROZEN][0]
    assert isinstance(report, wire.OnlineRefused)
    assert (report.spent, report.reason[:14]) == (False, "request/client")
    assert desk.net.keygen(desk.client.create_key("hot/7")) == {}


def test_a_client_whose_key_was_replaced_is_another(stop: Stop) -> None:
    desk = stop.desk
    held = held_gate(desk)
    sign(desk)
    stop.reload(open_policy(TestClient(desk.net.clock, desk.client.kid)))
    assert refused(let_go(desk, held))[0] == "request/client"


def test_a_clients_key_that_is_replaced_while_the_hsm_is_asked_for_the_signing_key(stop: Stop) -> None:
    """Its request verified by the old policy, and is put to the new one, which lists the same name."""
    desk = stop.desk
    desk.net.reboot(FROZEN)  # what it knows of keys is read from the store again
    desk.net.presence(COMMITTEE)
    desk.net.run()
    desk.net.drain()
    hsm = desk.net.members[FROZEN].hsm
    unseal = hsm.unseal

    def reload_and_unseal(*given: Any) -> Any:
        stop.reload(open_policy(TestClient(desk.net.clock, desk.client.kid)))
        return unseal(*given)

    hsm.unseal = reload_and_unseal  # type: ignore[method-assign]
    assert refused(sign(desk))[1] == "the key of client payments was revoked meanwhile"


def test_what_the_new_policy_forbids_is_refused_though_the_gate_agreed(stop: Stop) -> None:
    desk = stop.desk
    held = held_gate(desk)
    sign(desk)
    policy = open_policy(desk.client)
    stop.reload(msgspec.structs.replace(policy, rules=(msgspec.structs.replace(policy.rules[0], labels=("cold/*",)),)))
    assert refused(let_go(desk, held))[0] == "policy/label"


def test_a_reload_that_changes_nothing_for_a_request_lets_it_pass(stop: Stop) -> None:
    """Also one that came back and is attempted again, with the gate's yes of before."""
    desk = stop.desk
    held = held_gate(desk)
    request = desk.client.sign_hash(desk.key_id, H)
    sign(desk, request)
    stop.reload(open_policy(desk.client, TestClient(desk.net.clock, "new")), *COMMITTEE)
    reports = let_go(desk, held)
    finish(desk, authorizations_of(reports))


def test_an_added_client_is_served_at_once(stop: Stop) -> None:
    new = TestClient(stop.desk.net.clock, "new")
    request = new.sign_hash(stop.desk.key_id, H)
    assert refusals(sign(stop.desk, request)) == {"request/client"}
    stop.reload(open_policy(stop.desk.client, new), *COMMITTEE)
    only(sign(stop.desk, request), wire.Authorized)


def test_a_broken_file_keeps_the_policy_and_says_so(stop: Stop) -> None:
    net, core = stop.desk.net, stop.desk.net.members[FROZEN].core
    before = core.status().policy

    def broken(config: Any) -> Any:
        raise CallerError("policy.yaml:3:1: unknown field `ruels`")

    good, net.reread = net.reread, broken
    core.reload.run()
    told = core.status()
    assert (told.policy.digest, told.policy.loaded_at_s) == (before.digest, before.loaded_at_s)
    assert told.policy.trouble == "policy.yaml:3:1: unknown field `ruels`"
    assert told.counters["policy_reloads|failed"] == 1
    assert "policy-not-reloaded" in [event["event"] for event in stop.events()]
    only(sign(stop.desk), wire.Authorized)
    net.reread = good
    core.reload.run()
    assert core.status().policy.trouble == ""


def test_operators_whose_freezes_could_not_be_kept_are_not_taken_in(desk: Desk) -> None:
    stop = Stop(desk)
    desk.net.freeze_stores[FROZEN].broken = True
    stop.reload(msgspec.structs.replace(open_policy(desk.client), operators=stop.operators()))
    assert desk.net.members[FROZEN].core.status().policy.trouble == "the disk is full"
    assert "names no operators" in stop.send(*stop.signed(stop.order("freeze"), "olga")).refused

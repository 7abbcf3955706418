"""Rules, patterns and the decision, apart from any example."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from policies.clients import Algorithm, Client
from policies.counters import Counters
from policies.decide import Allow, AskGate, Refuse, decide
from policies.facts import Request
from policies.globs import check_label_glob, check_path_glob, label_matches, path_matches
from policies.model import Action, Kind, Policy, Rule

KEY = base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"=").decode()
OTHER_KEY = base64.urlsafe_b64encode(bytes(32)).rstrip(b"=").decode()
# The generator of P-256.
POINT = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)


def policy(*rules: Rule) -> Policy:
    return Policy(1, (Client("a", Algorithm.ED25519, KEY), Client("b", Algorithm.ED25519, OTHER_KEY)), rules)


def rule(name: str = "r", **changes: Any) -> Rule:
    fields: dict[str, Any] = {
        "clients": ("a",),
        "actions": (Action.SIGN,),
        "labels": ("x",),
        "kinds": (Kind.ETHEREUM_TRANSACTION,),
    }
    return Rule(name=name, **(fields | changes))


SIGN = Request("a", Action.SIGN, "x", Kind.ETHEREUM_TRANSACTION)


def ask(chosen: Policy, request: Request = SIGN) -> object:
    return decide(chosen, request, Counters(), 0)


def test_no_rules_refuse_everything() -> None:
    assert ask(policy()) == Refuse("policy/client", "the policy has no rules, so it refuses everything")


def test_a_permitted_signature_asks_the_gate_and_a_permitted_key_does_not() -> None:
    both = policy(rule(actions=(Action.SIGN, Action.CREATE_KEY)))
    assert ask(both) == AskGate("r")
    assert ask(both, Request("a", Action.CREATE_KEY, "x")) == Allow("r")


@pytest.mark.parametrize(
    ("changes", "refused_by", "reason"),
    [
        ({"client_id": "b"}, "policy/client", "client b has no permission"),
        ({"action": Action.CREATE_KEY}, "policy/action", "client a may not create-key"),
        ({"label": "xx"}, "policy/label", "no permission to sign for the label xx"),
        ({"kind": Kind.HASH}, "policy/kind", "the kind Hash is not permitted"),
        ({"kind": None}, "policy/kind", "the kind unknown is not permitted"),
        ({"blind": True}, "policy/blind", "blind signing is not permitted"),
        ({"derivation_path": (0, 1)}, "policy/derivation-path", "the derivation path m/0/1 is not permitted"),
    ],
)
def test_each_check_refuses_by_name(changes: dict[str, object], refused_by: str, reason: str) -> None:
    assert ask(policy(rule()), msgspec.structs.replace(SIGN, **changes)) == Refuse(refused_by, reason)


def test_permissions_of_two_rules_do_not_add_up() -> None:
    two = policy(rule("one", labels=("y",)), rule("two", kinds=(Kind.BITCOIN_BIP143_PREIMAGE,)))
    assert ask(two) == Refuse("policy/kind", "the kind EthereumTransaction is not permitted")


def test_the_kind_hash_is_blind_whatever_the_request_claims() -> None:
    lax = msgspec.structs.replace(SIGN, kind=Kind.HASH, blind=False)
    unchecked = rule()
    msgspec.structs.force_setattr(unchecked, "kinds", (Kind.HASH,))
    assert ask(policy(unchecked), lax) == Refuse("policy/blind", "blind signing is not permitted")


@pytest.mark.parametrize(
    ("pattern", "label", "matches"),
    [
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("a/*", "a/", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("**", "anything/at/all", True),
        ("*", "a/b", False),
        ("a.b", "axb", False),
        ("a.b", "a.b", True),
        ("a*c", "abbc", True),
        ("a", "a\n", False),
        ("**", "a\n", False),
    ],
)
def test_label_patterns(pattern: str, label: str, matches: bool) -> None:
    assert label_matches(pattern, label) is matches


@pytest.mark.parametrize("pattern", ["", "/a", "a b", "a?", "[a]", "***", "a*b*c*d*e*f", "a" * 97, "é"])
def test_bad_label_patterns(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"label pattern|wildcards"):
        check_label_glob(pattern)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("m", (), True),
        ("m", (0,), False),
        ("m/0/*", (0, 7), True),
        ("m/0/*", (0,), False),
        ("m/0/*", (1, 7), False),
        ("m/0/**", (0,), False),
        ("m/0/**", (0, 1, 2), True),
        ("m/**", (), False),
        ("m/**", (9,), True),
        ("m/1", (11,), False),
    ],
)
def test_path_patterns(pattern: str, path: tuple[int, ...], matches: bool) -> None:
    assert path_matches(pattern, path) is matches


@pytest.mark.parametrize("pattern", ["", "0/1", "m/", "m/01", "m/0'", "m/0h", "m/**/0", "m/2147483648", "M/0"])
def test_bad_path_patterns(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"path pattern|hardened"):
        check_path_glob(pattern)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kinds": ()}, "no `kinds`"),
        ({"kinds": (Kind.HASH,)}, "always blind"),
        ({"kinds": (Kind.HASH_BATCH, Kind.MESSAGE)}, "the kind HashBatch, which is always blind"),
        ({"actions": (Action.CREATE_KEY,)}, "does not permit `sign`"),
        ({"labels": ("a b",)}, "label pattern"),
        ({"derivation_paths": ("0",)}, "path pattern"),
    ],
)
def test_rules_that_contradict_themselves(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        rule(**changes)


def test_policies_that_contradict_themselves() -> None:
    client = Client("a", Algorithm.ED25519, KEY)
    with pytest.raises(ValueError, match="two clients have the id `a`"):
        Policy(1, (client, Client("a", Algorithm.ED25519, OTHER_KEY)), ())
    with pytest.raises(ValueError, match="two clients or operators have the same key"):
        Policy(1, (client, Client("b", Algorithm.ED25519, KEY + "=")), ())
    with pytest.raises(ValueError, match="two rules have the name `r`"):
        policy(rule(), rule())
    with pytest.raises(ValueError, match="names the client `zed`"):
        policy(rule(clients=("zed",)))


@pytest.mark.parametrize(
    ("alg", "key"),
    [
        (Algorithm.ED25519, KEY[:-1]),
        (Algorithm.ED25519, KEY[:-1] + "9"),  # stray bits after the last byte
        (Algorithm.ED25519, KEY + "\n"),
        (Algorithm.ED25519, ""),
        (Algorithm.ES256, KEY),
        (Algorithm.ED25519, base64.b64encode(POINT).decode()),
        (Algorithm.ES256, base64.b64encode(POINT[:-1] + b"\0").decode()),  # not on the curve
        (Algorithm.ES256, base64.b64encode(b"\x02" + POINT[1:]).decode()),
    ],
)
def test_bad_client_keys(alg: Algorithm, key: str) -> None:
    with pytest.raises(ValueError, match="client a: public_key is not"):
        Client("a", alg, key)


def test_client_keys_in_both_alphabets() -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(POINT).decode()
        if encode is base64.urlsafe_b64encode:
            text = text.rstrip("=")
        assert Client("a", Algorithm.ES256, text).key_bytes == POINT
    assert Client("a", Algorithm.ED25519, KEY).key_bytes == bytes(range(32))


def test_digest_pins_every_field() -> None:
    base = policy(rule())
    others = [
        policy(),
        policy(rule("s")),
        policy(rule(clients=("a", "b"))),
        policy(rule(actions=(Action.SIGN, Action.CREATE_KEY))),
        policy(rule(labels=("y",))),
        policy(rule(kinds=(Kind.BITCOIN_BIP143_PREIMAGE,))),
        policy(rule(blind=True)),
        policy(rule(derivation_paths=("m/0",))),
        Policy(1, base.clients[::-1], base.rules),
    ]
    digests = {candidate.digest() for candidate in [base, *others]}
    assert len(digests) == len(others) + 1
    assert base.digest() == policy(rule()).digest()
    assert len(base.digest()) == 32

"""Attacks through what is signed: one kind's payload under another kind, on whole enclaves in memory."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest

from enclave import wire
from policies.constraints import EthereumConstraints
from policies.model import Kind
from policies.requests import Eip712TypedData, EthereumTransaction, Message, MessageHash, SigningBody, signatures_path
from tests.adversarial.conftest import COMMITTEE, Desk
from tests.adversarial.test_signing import finish, only, refusals, remaining, verify
from tests.fakes.enclaves import authorizations_of
from tests.fakes.payloads import eip2930_transaction, encoded_transaction, legacy_transaction, preimage
from tests.fakes.typed_data import ETHER_MAIL, ETHER_MAIL_HASH, parsed


def ask(desk: Desk, body: SigningBody | bytes, l: int = 1) -> dict[int, list[Any]]:
    request = desk.client.request(signatures_path(desk.key_id), body)
    return desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name(l))


def seen_by_gate(desk: Desk) -> dict[str, Any]:
    return json.loads(desk.net.members[1].gate_calls[-1].body)  # type: ignore[no-any-return]


def permit_only(desk: Desk, *kinds: Kind) -> None:
    """Every signer's policy permits these kinds and no blind signing."""
    for member in desk.net.members.values():
        policy = member.core._config.policy
        (rule,) = policy.rules
        msgspec.structs.force_setattr(rule, "kinds", kinds)
        msgspec.structs.force_setattr(rule, "blind", False)


def limit_ethereum(desk: Desk, limits: EthereumConstraints) -> None:
    """Every signer's policy permits transactions within `limits`."""
    permit_only(desk, Kind.ETHEREUM_TRANSACTION)
    for member in desk.net.members.values():
        (rule,) = member.core._config.policy.rules
        msgspec.structs.force_setattr(rule, "ethereum", limits)
        rule.__dict__.clear()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({6: 2 * 10**18}, "policy/value"),
        ({0: 10}, "policy/chain"),
        ({5: b"\x11" * 20}, "policy/destination"),
        ({5: b""}, "policy/destination"),
        ({7: bytes.fromhex("a9059cbb") + bytes(64)}, "policy/method"),
        ({3: 10**12}, "policy/fee"),
    ],
)
def test_a_transaction_that_no_rule_permits_reaches_no_gate(desk: Desk, changes: dict[int, Any], rule: str) -> None:
    to = "0xd8da6bf26964af9d7eed9e03e53415d37aa96045"
    limits = EthereumConstraints((1,), (to,), ("none",), max_value="1.5 ether", max_fee="0.001 ether")
    limit_ethereum(desk, limits)
    refused = EthereumTransaction("0x" + encoded_transaction(changes).hex(), "e-1")
    assert refusals(ask(desk, refused)) == {rule}
    assert desk.net.members[1].gate_calls == []
    assert remaining(desk) == [8, 8, 8]
    only(ask(desk, EthereumTransaction("0x" + encoded_transaction().hex(), "e-2")), wire.Authorized)


def test_a_message_is_shown_to_the_gate_and_signed_as_the_enclave_hashed_it(desk: Desk) -> None:
    permit_only(desk, Kind.MESSAGE)
    reports = ask(desk, Message("0x68656c6c6f", MessageHash.SHA_256, "m-1", (0, 5)))
    only(reports, wire.Authorized)
    h = hashlib.sha256(b"hello").digest()
    verify(desk, finish(desk, authorizations_of(reports)), h, (0, 5))
    request = seen_by_gate(desk)
    assert (request["signerInfo"]["tx_hash"], request["signerInfo"]["blind"]) == (h.hex(), False)
    assert request["requestInfo"]["decoded"] == {"message": "0x68656c6c6f", "hash": "SHA-256"}


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (encoded_transaction(), MessageHash.KECCAK_256),
        (eip2930_transaction(), MessageHash.KECCAK_256),
        (legacy_transaction(), MessageHash.KECCAK_256),
        (b"\x19\x01" + bytes(64), MessageHash.KECCAK_256),
        (preimage(), MessageHash.SHA_256D),
        (hashlib.sha256(preimage()).digest(), MessageHash.SHA_256),
    ],
)
def test_another_kind_smuggled_in_as_a_message(desk: Desk, message: bytes, name: MessageHash) -> None:
    permit_only(desk, Kind.MESSAGE)
    assert refusals(ask(desk, Message("0x" + message.hex(), name, "m-1"))) == {"payload/message"}
    assert desk.net.members[1].gate_calls == []
    assert remaining(desk) == [8, 8, 8]


@pytest.mark.parametrize("transaction", [encoded_transaction(), eip2930_transaction(), legacy_transaction()])
def test_a_gate_that_limits_transactions_reads_every_type_alike(desk: Desk, transaction: bytes) -> None:
    permit_only(desk, Kind.ETHEREUM_TRANSACTION)
    desk.gate.decide = lambda member, request: (
        int(request["requestInfo"]["decoded"]["value"]) <= 10**18
        and request["requestInfo"]["decoded"]["chain_id"] == "1",
        "above the limit",
    )
    assert refusals(ask(desk, EthereumTransaction("0x" + transaction.hex(), "e-1"))) == {"gate"}
    assert remaining(desk) == [8, 8, 8]


def test_a_transaction_that_is_good_on_every_chain(desk: Desk) -> None:
    for changes in ({6: 0}, {7: 1}):
        body = EthereumTransaction("0x" + legacy_transaction(changes).hex(), "e-1")
        assert refusals(ask(desk, body)) == {"payload/ethereum"}
    assert remaining(desk) == [8, 8, 8]


def test_typed_data_is_shown_to_the_gate_and_signed_as_the_enclave_hashed_it(desk: Desk) -> None:
    permit_only(desk, Kind.EIP712_TYPED_DATA)
    reports = ask(desk, Eip712TypedData(parsed(ETHER_MAIL), "t-1"))
    only(reports, wire.Authorized)
    verify(desk, finish(desk, authorizations_of(reports)), bytes.fromhex(ETHER_MAIL_HASH))
    decoded = seen_by_gate(desk)["requestInfo"]["decoded"]
    assert (decoded["primary_type"], decoded["chain_id"], decoded["verifying_contract"]) == (
        "Mail",
        "1",
        "0x" + "cc" * 20,
    )


def test_typed_data_that_two_readers_take_differently(desk: Desk) -> None:
    """Which of two equal keys counts, what an unlisted member says, which number is meant beyond 2^53."""
    permit_only(desk, Kind.EIP712_TYPED_DATA)
    good = msgspec.json.encode(Eip712TypedData(parsed(ETHER_MAIL), "t-1"))
    chain = b'"chainId":1'
    assert good.count(chain) == 1
    for altered, rule in (
        (good.replace(chain, chain + b',"chainId":2'), "request/body"),
        (good.replace(chain, chain + b',"note":"pay nobody"'), "payload/eip712"),
        (good.replace(chain, b'"chainId":9007199254740993'), "payload/eip712"),
        (good.replace(chain, b'"chainId":1.0'), "payload/eip712"),
        (good.replace(chain, b'"chainId":1e0'), "payload/eip712"),
        (good.replace(b'"Cow"', b'"\\ud800"'), "request/body"),
        (good.replace(b'"Cow"', b"[" * 13 + b"]" * 13), "request/body"),
    ):
        assert altered != good
        assert refusals(ask(desk, altered)) == {rule}
    assert remaining(desk) == [8, 8, 8]

"""What a policy costs: parsing and hashing one EIP-1559 transfer, and deciding on it, as an enclave does both."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
from Crypto.Hash import keccak

from policies.counters import Counters
from policies.decide import AskGate, decide
from policies.errors import Bug
from policies.facts import Request
from policies.load import parse_yaml
from policies.model import Action, Policy
from policies.payloads import decode_payload
from policies.requests import EthereumTransaction
from policies.tables import EthereumSample

ROUNDS = 20
_CLIENT_KEY = "D9N68QU1RanlzPzIOty0YP4STv-oi43I7x6lrXyyjtE"
_PAID = "0x" + "ff" * 20


class PolicyResult(msgspec.Struct, frozen=True):
    """Medians over rounds of repeated work, in one process. The rule that permits is the last of `rules`, all of which
    fit in client, action, label, kind and path; each names a list of `destinations` addresses."""

    rules: int
    destinations: int
    load_ms: float
    decode_us: float
    decide_us: float


def run(rules: int, destinations: int, repeat: int) -> PolicyResult:
    """Measure: `ROUNDS` rounds of `repeat` decisions."""
    text = _policy(rules, destinations)
    started_ns = time.perf_counter_ns()
    policy = parse_yaml(text, Policy, "bench")
    load_ms = (time.perf_counter_ns() - started_ns) / 1e6
    transfer = EthereumSample(chain=1, to=_PAID, value="1.5 ether", gas_limit=21_000)
    body = EthereumTransaction("0x" + transfer.encode().hex(), "bench")
    payload = decode_payload(body, _keccak256)
    request = Request("bench", Action.SIGN, "hot/1", payload.kind, payload.blind, (), payload.decoded)
    if decide(policy, request, Counters(), 0) != AskGate(f"rule-{rules}"):
        raise Bug("the last rule does not permit the request")
    return PolicyResult(
        rules=rules,
        destinations=destinations,
        load_ms=round(load_ms, 1),
        decode_us=_median_us(lambda: decode_payload(body, _keccak256), repeat),
        decide_us=_median_us(lambda: decide(policy, request, Counters(), 0), repeat),
    )


def _median_us(work: Callable[[], object], repeat: int) -> float:
    found = []
    for _ in range(ROUNDS):
        started_ns = time.perf_counter_ns()
        for _ in range(repeat):
            work()
        found.append((time.perf_counter_ns() - started_ns) / repeat / 1000)
    return round(sorted(found)[ROUNDS // 2], 1)


def _policy(rules: int, destinations: int) -> str:
    lines = [
        "version: 1",
        f"clients: [{{id: bench, alg: Ed25519, public_key: {_CLIENT_KEY}}}]",
        "addresses:",
        "  many:",
    ]
    lines += [f"    - '0x{number:040x}'" for number in range(1, destinations + 1)]
    lines.append("rules:")
    for number in range(1, rules + 1):
        to = "[many]" if number < rules else f"[many, '{_PAID}']"
        lines += [
            f"  - name: rule-{number}",
            "    clients: [bench]",
            "    actions: [sign]",
            "    labels: [hot/*]",
            "    kinds: [EthereumTransaction]",
            f"    ethereum: {{chains: [1], to: {to}, methods: [none], max_value: 5 ether, max_fee: 0.1 ether}}",
        ]
    return "\n".join(lines) + "\n"


def _keccak256(data: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=data).digest()

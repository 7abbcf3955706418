"""What an enclave counts and times: whole numbers by name, handed out in `Status`, told to Prometheus by its signer.

A name is a family and the values of its labels, joined by `|`. Every label value comes from a table in the code, never
from a client, a peer or a coordinator, so that nobody can make the numbers grow without bound.
"""

from __future__ import annotations

from bisect import bisect_left

from enclave.wire import DURATION_BOUNDS_US

_BOUNDS_NS = tuple(bound * 1000 for bound in DURATION_BOUNDS_US)
OTHER = "other"

# Every rule by which an enclave refuses; a test holds that none is missing.
RULES = frozenset(
    {
        *("authorization", "busy", "certificate", "committee", "delta", "epoch", "gate", "hash", "nonce", "path"),
        *(
            "gate/busy",
            "gate/echo",
            "gate/expired",
            "gate/http",
            "gate/malformed",
            "gate/no-mtls",
            "gate/not-asked",
            "gate/not-configured",
        ),
        *("gate/redirect", "gate/request-too-large", "gate/secrets", "gate/signature", "gate/stale", "gate/status"),
        *("gate/timeout", "gate/tls", "gate/too-large", "gate/undecided", "gate/unreachable", "gate/unsigned"),
        *("key", "key/pending", "key/roster", "pool", "presign", "presignature", "prss", "r", "replay"),
        *("payload", "payload/bitcoin", "payload/eip712", "payload/ethereum", "payload/message", "payload/rlp"),
        *("policy/action", "policy/blind", "policy/client", "policy/derivation-path", "policy/kind", "policy/label"),
        *("policy/anomaly", "policy/approvals", "policy/limits", "policy/hours", "policy/payload", "policy/chain"),
        *("policy/destination", "policy/method", "policy/token", "policy/value", "policy/fee", "policy/sighash"),
        *("policy/primary-type", "policy/message-hash"),
        *("request/attempts", "request/body", "request/boot", "request/busy", "request/client", "request/expired"),
        *("request/header", "request/jws", "request/lifetime", "request/network", "request/path"),
        *("request/external-id", "request/replayed", "request/scheme", "request/signature", "request/time"),
        *("freeze-state", "stop/expired", "stop/header", "stop/jws", "stop/kept", "stop/operator", "stop/order"),
        *("stop/replayed", "stop/signature", "stop/signer", "stop/time"),
        *("record", "frozen", "unavailable", "rolled-back", "cloned"),
    }
)


def rule_label(rule: str) -> str:
    """`rule` as a label's value: itself where it is one of ours."""
    return rule if rule in RULES else OTHER


class Durations:
    """How often something took how long: counts up to each of `DURATION_BOUNDS_US`, then beyond, then the sum in µs."""

    __slots__ = ("_counts", "_sum_ns")

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS_NS) + 1)
        self._sum_ns = 0

    def observe_ns(self, nanoseconds: int) -> None:
        """Count one. From one thread only."""
        self._counts[bisect_left(_BOUNDS_NS, nanoseconds)] += 1
        self._sum_ns += nanoseconds

    def told(self) -> tuple[int, ...]:
        """As `Status.durations` has it."""
        return (*self._counts, self._sum_ns // 1000)


class Timings:
    """Durations by name."""

    def __init__(self, *names: str) -> None:
        """`names`: those that are there from the start; others come with their first observation."""
        self._by_name = {name: Durations() for name in names}

    def observe_ns(self, name: str, nanoseconds: int) -> None:
        """Count one. `name` must be one of a few fixed ones."""
        durations = self._by_name.get(name)
        if durations is None:
            durations = self._by_name[name] = Durations()
        durations.observe_ns(nanoseconds)

    def told(self, family: str) -> dict[str, tuple[int, ...]]:
        """As `Status.durations` has it, with `family` before each name."""
        return {f"{family}|{name}": durations.told() for name, durations in list(self._by_name.items())}

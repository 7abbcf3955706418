"""What signer and coordinator tell Prometheus: the documented names and no others, with the right numbers."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.coordinator.ceremonies import Ceremonies
from appliance.coordinator.changes import Changes
from appliance.coordinator.config import PoolSettings
from appliance.coordinator.errors import CeremonyEnded, Rejected, failure
from appliance.coordinator.metrics import ApiMetrics, CoordinatorMetrics
from appliance.coordinator.network import Network
from appliance.durations import Durations, DurationsBy
from appliance.metrics import MetricsServer, Source, exposition, histogram
from appliance.signer import courier
from appliance.signer.config import SignerConfig
from appliance.signer.enclave_metrics import COUNTERS
from appliance.signer.metrics import SignerMetrics
from enclave import meters, wire
from enclave.meters import RULES, rule_label
from policies.errors import Unavailable
from policies.load import load_yaml
from policies.rules import CHECKS
from tests.fakes.metrics import documented
from tests.fakes.signer_side import attached

STATUS = wire.Status("ready", "", {"shares_given": 3}, {"presignatures": 7}, {})
REPLY = wire.GateReply("u", 200, "", "", "", 0, b"")


def exported(source: Source) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The same of every metric that a process tells."""
    found = {}
    for family in source.collect():
        name = family.name + "_total" if family.type == "counter" else family.name
        found[name] = (family.type, tuple(getattr(family, "_labelnames", ())))
    return found


def values(text: bytes) -> dict[tuple[str, str], float]:
    """Every sample by its name and its labels' values."""
    return {
        (sample.name, "/".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


class NoKeys:
    """A key book without keys."""


class Idle:
    """Requests and a store with nothing under way."""

    under_way = waiting = 0
    commit_seconds = Durations()
    seconds = DurationsBy()

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, ...]] = Counter({("Hash", "Signed"): 3})
        self.awaiting = self

    def awaiting_approvals(self) -> int:
        return 0

    def first_s(self) -> int | None:
        return None


def coordinator() -> tuple[CoordinatorMetrics, Network]:
    from tests.fakes.identities import roster

    made, idle = roster(), Idle()
    network = Network(made, PoolSettings(), Changes(), NoKeys(), secrets.token_bytes)  # type: ignore[arg-type]
    ends = {"server.pem": 1.8e9}
    metrics = CoordinatorMetrics(made, network, idle, idle, ApiMetrics(), lambda: ends, {})  # type: ignore[arg-type]
    return metrics, network


def signer() -> SignerMetrics:
    return SignerMetrics(Durations(), lambda: {"signer.pem": 1.8e9})


def test_the_page_names_exactly_what_is_exported() -> None:
    found = exported(signer()) | exported(coordinator()[0])
    assert found == documented()
    assert len(found) == 68


def test_durations_are_counted_in_cumulative_buckets() -> None:
    durations = Durations((0.1, 1.0))
    for seconds in (0.1, 0.5, 0.5, 7.0):
        durations.observe(seconds)

    class One:
        def collect(self):  # type: ignore[no-untyped-def]
            yield histogram("took_seconds", "Took.", durations)

    found = values(exposition(One()))
    assert [found["took_seconds_bucket", bound] for bound in ("0.1", "1.0", "+Inf")] == [1, 3, 4]
    assert (found["took_seconds_count", ""], found["took_seconds_sum", ""]) == (4, pytest.approx(8.1))


def test_gate_calls_are_counted_by_outcome() -> None:
    metrics = signer()
    metrics.gate_answered(REPLY, 0.002)
    metrics.gate_answered(wire.GateReply("u", 503, "", "", "", 0, b""), 0.002)
    metrics.gate_answered(wire.GateUnreachable("u", "no"), 40.0)
    found = values(exposition(metrics))
    assert [found["keymoot_signer_gate_calls_total", name] for name in ("2xx", "5xx", "unreachable")] == [1, 1, 1]
    assert found["keymoot_signer_gate_seconds_bucket", "30.0"] == 2
    assert found["keymoot_signer_gate_seconds_count", ""] == 3


async def test_a_signer_without_its_enclave_says_so() -> None:
    metrics = signer()
    metrics.enclave = STATUS
    metrics.coordinators_up = {"main": True}
    found = values(exposition(metrics))
    assert found["keymoot_enclave_state", "ready"] == 1
    assert found["keymoot_enclave_shares_given_total", ""] == 3
    assert found["keymoot_enclave_presignatures", ""] == 7
    await metrics.refresh()
    found = values(exposition(metrics))
    assert (found["keymoot_enclave_state", "ready"], found["keymoot_enclave_state", "away"]) == (0, 1)
    assert ("keymoot_enclave_presignatures", "") not in found
    assert found["keymoot_signer_coordinator_up", "main"] == 0


class SilentEnclave:
    """The link to an enclave that answers when the test says so."""

    waiting = 5
    attached = attached()

    def __init__(self) -> None:
        self.sent: list[wire.ToEnclave] = []

    def resume(self) -> None:
        raise AssertionError("nothing that it said had to wait")

    def send(self, source: str, message: wire.ToEnclave) -> None:
        assert source == "metrics"
        self.sent.append(message)


async def test_an_enclave_that_does_not_answer_is_asked_once_and_waited_for_shortly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(courier, "STATUS_TIMEOUT_S", 0.01)
    metrics, enclave = signer(), SilentEnclave()
    serving = courier.Courier(enclave, None, None, metrics, None)  # type: ignore[arg-type]
    metrics.serving = serving
    metrics.enclave = STATUS
    for _ in range(3):
        await metrics.refresh()
        assert metrics.enclave is None
    assert enclave.sent == [wire.StatusQuery()]
    assert metrics.queues == {"commits": 0, "gate-calls": 0, "to-enclave": 5}
    serving._on_status(STATUS)
    scrape = asyncio.ensure_future(metrics.refresh())
    await asyncio.sleep(0)
    serving._on_status(STATUS)
    await scrape
    assert metrics.enclave == STATUS
    assert enclave.sent == [wire.StatusQuery(), wire.StatusQuery()]
    with pytest.raises(wire.Malformed, match="without being asked"):
        serving._on_status(STATUS)


def test_ceremonies_are_counted_by_kind_and_outcome() -> None:
    metrics, network = coordinator()
    ceremonies: Ceremonies = network.ceremonies
    ceremonies._send = lambda index, body: True

    def run(error: BaseException | None, *orders: wire.OrderBody) -> None:
        with ceremonies.open((1, 2, 3)) as ceremony:
            for order in orders:
                ceremony.order(1, order)
            ceremony.abandon()
            if error is not None:
                raise error

    prepare = wire.PrepareOrder(b"c" * 16, "keygen")
    online = wire.ActivateOrder(b"c" * 16, "key_" + "ab" * 16, ())
    run(None, prepare)
    for error, orders in (
        (CeremonyEnded("timeout", "no answer"), (prepare,)),
        (failure(1, wire.CeremonyFailed(b"c" * 16, "timeout", "", "no end", (), (2,), 2)), (prepare,)),
        (Rejected("gate", "no", 1), (online,)),
        (asyncio.CancelledError(), ()),
    ):
        with pytest.raises(type(error)):
            run(error, *orders)
    found = values(exposition(metrics))
    assert {labels: value for (name, labels), value in found.items() if name.endswith("ceremonies_total")} == {
        "keygen/done/all": 1,
        "keygen/failed/prepare": 1,
        "keygen/failed/2": 1,
        "activate/rejected/ordered": 1,
        "none/interrupted/none": 1,
    }
    assert found["keymoot_coordinator_ceremonies_open", ""] == 0


async def test_the_server_answers_scrapes_and_refuses_a_taken_port() -> None:
    metrics = signer()
    server, second = MetricsServer(metrics, metrics.refresh), MetricsServer(metrics)
    port = await server.start("127.0.0.1:0")
    try:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert values(await answer.read())["keymoot_enclave_state", "away"] == 1
        with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port} for metrics"):
            await second.start(f"127.0.0.1:{port}")
    finally:
        await server.close()


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "example.org:9464", ":9464", "127.0.0.1"])
def test_metrics_are_served_on_loopback_alone(tmp_path: Path, listen: str) -> None:
    from policies.errors import CallerError

    text = (
        "network: n\nenclave_socket: s\nstate: d\n"
        "coordinators: [{name: main, url: 'https://h:1', ca: a, certificate: b, key: c}]\n"
        "metrics: "
    )
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(text + "'127.0.0.1:9464'\n")
    assert load_yaml(good, SignerConfig).metrics == "127.0.0.1:9464"
    bad.write_text(text + f"'{listen}'\n")
    with pytest.raises(CallerError, match="metrics"):
        load_yaml(bad, SignerConfig)


def test_an_enclaves_values_are_told_as_its_tables_say_and_nothing_else_is() -> None:
    durations = meters.Durations()
    for nanoseconds in (9_000, 10_000, 11_000, 61_000_000_000):
        durations.observe_ns(nanoseconds)
    counters = {"ceremonies_ended|presign|3|timeout": 2, "ceremonies_ended|presign": 5, "client|mallory": 1}
    gauges = {"links|main|up": 2, "queue|hsm": 1}
    metrics = signer()
    metrics.enclave = wire.Status("ready", "", counters, gauges, {"hsm|seal": durations.told()})
    text = exposition(metrics)
    found = values(text)
    assert found["keymoot_enclave_ceremonies_total", "presign/timeout/3"] == 2
    assert found["keymoot_enclave_links", "main/up"] == 2
    assert found["keymoot_enclave_queue_length", "hsm"] == 1
    buckets = [found["keymoot_enclave_hsm_seconds_bucket", f"{bound}/seal"] for bound in ("1e-05", "2.5e-05", "+Inf")]
    assert buckets == [2, 3, 4]
    assert found["keymoot_enclave_hsm_seconds_sum", "seal"] == pytest.approx(61.00003)
    assert b"mallory" not in text


def test_every_rule_that_an_enclave_refuses_by_is_in_its_table() -> None:
    written = set()
    for package in ("enclave", "policies"):
        for path in (Path(__file__).parents[2] / package).rglob("*.py"):
            written |= set(re.findall(r'(?:Refused|_NoDecision)\(\s*"([^"]+)"', path.read_text()))
    assert len(written) > 30
    assert written | {f"policy/{name}" for name, _ in CHECKS} <= RULES
    assert {rule_label(rule) for rule in ("policy/blind", "policy/" + "x" * 100)} == {"policy/blind", "other"}


def test_nothing_that_an_enclave_counts_is_left_out() -> None:
    counted = set()
    for path in (Path(__file__).parents[2] / "enclave").rglob("*.py"):
        counted |= set(re.findall(r'_count\(\s*f?"([a-z_]+)', path.read_text()))
    assert {"shares_given", "ceremonies_ended", "gate", "requests_recalled"} <= counted <= set(COUNTERS)

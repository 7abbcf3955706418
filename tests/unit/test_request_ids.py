"""What a request is called: by its client where that is well formed, in answers, orders and log lines."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from appliance.telemetry import configure_logging
from enclave import wire
from policies.requests import signatures_path
from tests.fakes.coordinator_side import FakeNetwork, until

KEY = {
    "scheme": "ECDSA",
    "curve": "secp256k1",
    "signers": 3,
    "tolerate": 1,
    "label": "test/names",
    "externalId": "name-key",
}
SIGNED = {"Keymoot-Signature": "aGVhZGVy..c2lnbmF0dXJl", "Content-Type": "application/json"}


@pytest.fixture
def logged() -> Iterator[None]:
    """The log as a process has it, on the real standard error."""
    configure_logging("coordinator")
    yield
    structlog.reset_defaults()


@pytest.fixture
async def net(tmp_path: pathlib.Path, logged: None, capfd: pytest.CaptureFixture[str]) -> AsyncIterator[FakeNetwork]:
    """What it logs while it comes up is in `capfd` too."""
    async with FakeNetwork.start(tmp_path) as made, made.all_connected():
        yield made


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


async def test_a_clients_name_is_in_the_answer_the_orders_and_every_line(
    net: FakeNetwork, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "payout-2026-11-21.0001"
    body = json.dumps(KEY).encode()
    headers = SIGNED | {"X-Request-Id": name, "Keymoot-Signature": net.sign("/v1/keys", body)}
    async with net.http.post(net.api + "/v1/keys?wait=20", data=body, headers=headers) as answer:
        assert (answer.status, answer.headers["X-Request-Id"]) == (201, name)
    for signer in net.signers:
        (order,) = signer.received(wire.KeygenOrder)
        assert [request.request_id for request in order.requests] == [name]
    found = [line for line in lines(capfd) if line.get("request_id") == name]
    assert [line["event"] for line in found] == ["request-accepted", "request-ended", "request"]
    (order,) = net.signers[0].received(wire.KeygenOrder)
    assert found[0]["request"] == order.requests[0].digest(net.dealer.roster.network).hex()
    assert (found[1]["outcome"], found[2]["status"]) == ("Active", 201)


async def test_a_request_without_a_name_gets_a_fresh_one(net: FakeNetwork) -> None:
    names = set()
    for _ in range(2):
        async with net.http.get(net.api + "/v1/keys/none") as answer:
            assert answer.status == 404
            shown = await answer.json(content_type=None)
            assert shown["requestId"] == answer.headers["X-Request-Id"]
            assert re.fullmatch("[0-9a-f]{32}", shown["requestId"])
            names.add(shown["requestId"])
    assert len(names) == 2


@pytest.mark.parametrize(
    "name",
    [
        "short",
        "x" * 65,
        'quoted","level":"error',
        "two words 12",
        "-leading-dash",
        "\u00e9\u00e8\u00e0-12345",
        "",
    ],
)
async def test_a_name_that_could_forge_a_line_is_refused_and_repeated_nowhere(
    net: FakeNetwork, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    lines(capfd)
    headers = SIGNED | {"X-Request-Id": name}
    async with net.http.post(net.api + signatures_path("key_" + "0" * 32), data=b"{}", headers=headers) as answer:
        assert answer.status == 400
        text = await answer.text()
    shown = json.loads(text)
    assert shown["detail"].startswith("X-Request-Id: 8 to 64 letters")
    assert re.fullmatch("[0-9a-f]{32}", shown["requestId"])
    (line,) = lines(capfd)
    assert (line["event"], line["status"], line["request_id"]) == ("request", 400, shown["requestId"])
    assert not name or name not in text


async def test_probes_leave_no_line_and_changes_of_the_network_one_each(
    capfd: pytest.CaptureFixture[str], net: FakeNetwork
) -> None:
    found = lines(capfd)

    def ready() -> bool:
        found.extend(lines(capfd))
        return "ready" in [line["event"] for line in found]

    for path in ("/healthz", "/v1/healthz", "/readyz"):
        status, _ = await net.get(path)
        assert status == 200
    await until(ready)
    changes = [line for line in found if line["event"] in ("degraded", "ready", "request")]
    assert [line["event"] for line in changes] == ["degraded", "ready"]
    assert changes[0]["reason"] == "3 signers must be online; away: signer-1, signer-2, signer-3"


@pytest.mark.parametrize("name", ["short", "a" * 65, "a b c d e f", 'a"bcdefgh', "line\nbreak"])
def test_no_message_carries_a_name_that_is_not_well_formed(name: str) -> None:
    request = wire.ClientRequest("POST", "/v1/keys", b"{}", "", name)
    with pytest.raises(wire.Malformed):
        wire.decode(wire.encode(request), wire.ClientRequest)
    call = wire.CallGate("u", "u", "1", "v1,x", b"{}", 1, name)
    with pytest.raises(wire.Malformed):
        wire.decode(wire.encode(call), wire.CallGate)


def test_a_name_is_no_part_of_what_was_signed() -> None:
    one, two = (wire.ClientRequest("POST", "/v1/keys", b"{}", "h..s", name) for name in ("name-0001", "name-0002"))
    assert one.digest("net") == two.digest("net")

"""What the API shows of signers, pools and readiness, with fake signers over real TLS; and the client's view of it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import pathlib
import time
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from appliance import relay
from appliance.api.client import ApiError, AsyncClient, CertificateRefused, Client
from appliance.api.credentials import Credential
from appliance.api.jws import generate_client_key
from appliance.checkup.seen_by_api import look_at_all
from appliance.expiry import iso
from appliance.profile import Profile
from appliance.tls import client_context
from enclave import wire
from policies.roster import Roster
from tests.fakes.coordinator_side import TOKEN, FakeNetwork, attached, until


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path) as made:
        yield made


def client_of(net: FakeNetwork, roster: Roster | None = None) -> AsyncClient:
    ca, credential = net.files.path("ca.pem"), Credential(TOKEN)
    return AsyncClient(net.api, roster or net.dealer.roster, None, ca, credential=credential)


def epochs(shown: dict[str, object]) -> list[object]:
    return [signer["announced"]["prssEpoch"] for signer in shown["items"]]


async def test_signers_are_shown_with_what_they_announced(net: FakeNetwork) -> None:
    roster = net.dealer.roster
    async with net.all_connected():
        status, shown = await net.get("/v1/signers")
        assert (status, epochs(shown)) == (200, [1, 1, 1])
        assert is_recent(shown["items"][1].pop("since"))
        assert shown["items"][1].pop("certificateExpires") > shown_now()
        assert shown["items"][1] == {
            "index": 2,
            "name": "signer-2",
            "operator": roster.signer(2).operator,
            "fingerprint": roster.signer(2).fingerprint,
            "online": True,
            "links": ["signer-1", "signer-3"],
            "announced": {
                "prssEpoch": 1,
                "gateMode": "none",
                "policyDigest": "0x" + "00" * 32,
                "signerVersion": "test",
                "enclaveVersion": "test",
            },
        }
        await net.signers[1].report(wire.LinkReport(3, False, "away"))
        await until(lambda: 3 not in net.coordinator.network.signers.session(2).links)
        assert (await net.get("/v1/signers"))[1]["items"][1]["links"] == ["signer-1"]


async def test_a_signer_that_is_away_is_shown_without_state(net: FakeNetwork) -> None:
    roster = net.dealer.roster
    async with net.signers[0].connected(net.gateway, net.files, gate_mode="signed", policy_digest=b"p" * 32):
        await until(lambda: net.coordinator.network.signers.online() == (1,))
        first, second, _ = (await net.get("/v1/signers"))[1]["items"]
        assert (first["online"], first["links"]) == (True, [])
        assert (first["announced"]["gateMode"], first["announced"]["policyDigest"]) == ("signed", "0x" + "70" * 32)
        assert second == {
            "index": 2,
            "name": "signer-2",
            "operator": roster.signer(2).operator,
            "fingerprint": roster.signer(2).fingerprint,
            "online": False,
            "links": [],
        }
    await until(lambda: net.coordinator.network.signers.online() == ())
    assert [s["online"] for s in (await net.get("/v1/signers"))[1]["items"]] == [False] * 3


async def test_a_signer_that_went_is_shown_with_since_when_and_why(net: FakeNetwork) -> None:
    async with net.signers[0].connected(net.gateway, net.files):
        await until(lambda: net.coordinator.network.signers.online() == (1,))
    await until(lambda: net.coordinator.network.signers.online() == ())
    first, second, _ = (await net.get("/v1/signers"))[1]["items"]
    assert (first["online"], first["awayReason"]) == (False, "the signer has closed the connection")
    assert is_recent(first["since"])
    assert ("since" in second, "awayReason" in second) == (False, False)


async def test_a_signer_that_is_refused_is_shown_with_the_reason(net: FakeNetwork) -> None:
    async with net.signers[1].connected(net.gateway, net.files, roster_digest=b"x" * 32):
        await until(lambda: net.signers[1].closed)
    shown = (await net.get("/v1/signers"))[1]["items"][1]
    assert shown["awayReason"] == "refused: roster: your roster differs from the coordinator's: compare roster.yaml"
    assert "since" not in shown


async def test_what_a_signer_tells_of_its_enclave_and_gate_is_shown(net: FakeNetwork) -> None:
    signers = net.coordinator.network.signers
    async with net.signers[0].connected(net.gateway, net.files):
        await until(lambda: signers.session(1))
        assert "condition" not in (await net.get("/v1/signers"))[1]["items"][0]
        await net.signers[0].send(relay.Condition("hsm-away", "the token is gone", "unreachable"))
        await until(lambda: signers.session(1).condition)
        shown = (await net.get("/v1/signers"))[1]["items"][0]["condition"]
        assert shown == {"enclave": "hsm-away", "reason": "the token is gone", "gate": "unreachable"}
        await net.signers[0].send(relay.Condition("ready", "", "answers", clock_s=int(time.time()) - 600))
        await until(lambda: signers.session(1).condition.enclave == "ready")
        shown = (await net.get("/v1/signers"))[1]["items"][0]["condition"]
        assert -605 <= shown.pop("clockAheadS") <= -598
        assert shown == {"enclave": "ready", "reason": "", "gate": "answers"}


async def test_the_coordinator_shows_itself(net: FakeNetwork) -> None:
    status, shown = await net.get("/v1/coordinator")
    assert (status, shown["name"], shown["network"]) == (200, "c1", net.dealer.roster.network)
    assert shown["rosterDigest"] == "0x" + net.dealer.roster.digest().hex()
    assert is_recent(shown["time"])
    assert is_recent(shown["startedAt"])
    assert shown["trouble"] == "3 signers must be online; away: signer-1, signer-2, signer-3"
    assert shown["remedy"].startswith("start the signers that are away")
    assert [one["file"] for one in shown["certificates"]] == ["ca.pem", "server.pem"]
    assert all(one["expires"] > shown_now() for one in shown["certificates"])


def shown_now() -> str:
    return iso(time.time())


def is_recent(text: str) -> bool:
    """Whether this ISO time is of the last minute."""
    return iso(time.time() - 60) <= text <= shown_now()


async def test_a_signer_on_one_connection_of_two_is_shown_as_away(net: FakeNetwork) -> None:
    tls = client_context(net.files.path("ca.pem"), *net.files.client("signer-1"))
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http,
        http.ws_connect(net.gateway + relay.CONTROL_PATH) as socket,
    ):
        await socket.send_bytes(wire.encode(relay.Announce("test", attached(net.dealer, 1))))
        await until(lambda: 1 in net.coordinator.network.signers._sessions)
        shown = (await net.get("/v1/signers"))[1]["items"][0]
        assert (shown["online"], "announced" in shown) == (False, False)


async def test_pools_are_shown_with_their_marks(net: FakeNetwork) -> None:
    assert await net.get("/v1/pools") == (200, {"items": []})
    async with net.all_connected():
        pool = {"committee": [1, 2, 3], "available": 8, "low": 2, "high": 8, "keptFilled": True, "ready": True,
                "spentPerS": 0.0}  # fmt: skip
        status, shown = await net.get("/v1/pools")
        (filled,) = shown["items"]
        assert filled.pop("filledPerS") > 0
        assert (filled.pop("recommendedLow"), filled.pop("recommendedHigh")) == (1, 9)
        assert (status, shown) == (200, {"items": [pool]})
        assert await net.get("/readyz") == (200, {"committees": [[1, 2, 3]]})
    await until(lambda: net.coordinator.network.signers.online() == ())
    (gone,) = (await net.get("/v1/pools"))[1]["items"]
    assert (gone["available"], gone["ready"], gone["keptFilled"]) == (0, False, False)


async def test_marks_are_recommended_for_a_burst(net: FakeNetwork) -> None:
    async with net.all_connected():
        (pool,) = (await net.get("/v1/pools?burst=500"))[1]["items"]
        assert (pool["recommendedLow"], pool["recommendedHigh"]) == (500, 508)
        for text in ("x", "-1", "1000000", "100001"):
            assert (await net.get(f"/v1/pools?burst={text}"))[0] == 400


async def test_not_ready_says_what_is_missing_and_what_to_do(net: FakeNetwork) -> None:
    async with net.http.get(net.api + "/readyz") as answer:
        assert (answer.status, answer.content_type) == (503, "application/problem+json")
        assert answer.headers["Retry-After"] == "2"
        shown = await answer.json(content_type=None)
        assert shown.pop("requestId") == answer.headers["X-Request-Id"]
    assert shown == {
        "type": "about:blank",
        "title": "Not ready",
        "status": 503,
        "code": "not-ready",
        "detail": "3 signers must be online; away: signer-1, signer-2, signer-3: start the signers that are away and "
        "see in their logs whether they reach this coordinator",
    }


async def test_an_empty_pool_is_not_ready(net: FakeNetwork) -> None:
    for signer in net.signers:
        signer.answers[wire.PresignOrder] = lambda order: []
    async with contextlib.AsyncExitStack() as stack:
        for signer in net.signers:
            await stack.enter_async_context(signer.connected(net.gateway, net.files))
        await until(lambda: net.signers[0].received(wire.PresignOrder))
        status, shown = await net.get("/readyz")
        assert (status, shown["code"]) == (503, "not-ready")
        assert str(shown["detail"]).startswith("the pools of presignatures are empty; they are being filled: wait")
        (pool,) = (await net.get("/v1/pools"))[1]["items"]
        assert (pool["available"], pool["ready"], pool["keptFilled"]) == (0, True, True)


# --- the client ---


async def test_the_client_reads_signers_pools_and_readiness(net: FakeNetwork) -> None:
    async with client_of(net) as client:
        with pytest.raises(ApiError, match="not-ready: 3 signers must be online") as refused:
            await client.readiness()
        assert refused.value.status == 503
        async with net.all_connected():
            assert [(s.name, s.online) for s in await client.list_signers()] == [
                ("signer-1", True),
                ("signer-2", True),
                ("signer-3", True),
            ]
            (pool,) = await client.list_pools()
            assert (pool.committee, pool.available, pool.low, pool.high) == ((1, 2, 3), 8, 2, 8)
            assert (pool.kept_filled, pool.ready, pool.filling, pool.failure) == (True, True, False, "")
            assert (await client.pools(burst=50)).items[0].recommended_low == 50
            assert (await client.coordinator()).trouble == ""
            assert (await client.readiness()).committees == ((1, 2, 3),)


async def test_the_client_shows_no_signers_of_another_roster(net: FakeNetwork) -> None:
    roster = net.dealer.roster
    first, *others = roster.signers
    other = msgspec.structs.replace(roster, signers=(msgspec.structs.replace(first, operator="Somebody"), *others))
    async with client_of(net, other) as client:
        with pytest.raises(CertificateRefused, match="not those of your roster"):
            await client.list_signers()


async def test_the_synchronous_client_reads_the_same(net: FakeNetwork) -> None:
    def read() -> tuple[int, int, str]:
        ca, credential = net.files.path("ca.pem"), Credential(TOKEN)
        with Client(net.api, net.dealer.roster, None, ca, credential=credential) as client:
            signers, pools = client.list_signers(), client.list_pools()
            with pytest.raises(ApiError) as refused:
                client.readiness()
            return len(signers), len(pools), refused.value.code

    assert await asyncio.to_thread(read) == (3, 0, "not-ready")


# --- what is wrong with each coordinator of a profile ---


@pytest.mark.parametrize("away_first", [True, False])
async def test_a_coordinator_that_is_away_is_told_though_another_answers(net: FakeNetwork, away_first: bool) -> None:
    """The next one answered in its place, and all was well."""
    ca, gone = net.files.path("ca.pem"), "https://127.0.0.1:1"
    (api, other) = (gone, net.api) if away_first else (net.api, gone)
    key = generate_client_key("reader")
    profile = Profile(api, net.dealer.roster, key, ca, Credential(TOKEN), ((other, ca),))
    async with net.all_connected():
        now = datetime.datetime.now(datetime.UTC)
        seen = await asyncio.to_thread(look_at_all, profile, now)
        assert (seen.facts is not None, seen.unreachable) == (True, None)
        told = [(one.severity.value, one.subject) for one in seen.findings if gone in one.what]
        assert told == [("problem", "coordinator")]
        nowhere = Profile(gone, net.dealer.roster, key, ca, Credential(TOKEN), ((gone, ca),))
        seen = await asyncio.to_thread(look_at_all, nowhere, now)
        assert seen.facts is None
        assert gone in (seen.unreachable or "")


async def test_a_token_that_a_coordinator_does_not_take_is_a_finding(net: FakeNetwork) -> None:
    """It ended the command, and nothing was said of the rest."""
    ca = net.files.path("ca.pem")
    profile = Profile(net.api, net.dealer.roster, generate_client_key("reader"), ca, Credential("kmt_" + "x" * 43))
    seen = await asyncio.to_thread(look_at_all, profile, datetime.datetime.now(datetime.UTC))
    (one,) = seen.findings
    assert (seen.facts, seen.unreachable, one.severity.value) == (None, None, "problem")
    assert "this token is not one of api.readers" in one.what

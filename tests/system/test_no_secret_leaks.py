"""No secret of a full run is in anything that the run wrote, printed, sent to its signers, or shows in /proc."""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client.parser import text_string_to_metric_families

from appliance.api.client import ApiError, CertifiedKey, Client, Failed, Rejected
from appliance.api.jws import ClientKey, generate_client_key
from appliance.cli import demo_inputs as inputs
from appliance.localnet import LocalNet
from appliance.localnet.process import family
from appliance.profile import load_profile
from enclave.crypto import polynomials
from enclave.crypto.curve import SECP256K1
from policies.errors import KeymootError, Unavailable
from policies.requests import EthereumTransaction, Hash
from tests.fakes.leaks import KnownSecret, Leak, files, forms, leaks, of_process
from tests.fakes.metrics import documented, scrape, serve_metrics
from tests.fakes.sealed import unsealed
from tests.fakes.taps import SocketTap

POOL = (50, 100, 50)
API_PATHS = ("/openapi.json", "/readyz", "/healthz", "/v1/signers", "/v1/pools", "/v1/keys", "/v1/keys/none", "/none")
REFUSING = 2
STOPPED = 2
BACK_TIMEOUT_S = 60.0

pytestmark = pytest.mark.timeout(170)


@dataclass
class Run:
    """A full run that is over: its directory, its secrets, and what else there was to see of it."""

    root: Path
    secrets: list[KnownSecret]
    written: list[tuple[str | Path, bytes]]
    shown: list[tuple[str | Path, bytes]]
    said: list[tuple[str | Path, bytes]]
    taps: list[SocketTap]
    scraped: dict[str, bytes]

    @property
    def everything(self) -> list[tuple[str | Path, bytes]]:
        """All that is scanned."""
        heard = [(direction, bytes(data)) for tap in self.taps for direction, data in tap.heard.items()]
        return [*self.written, *self.shown, *self.said, *heard, *self.scraped.items()]


def private_bytes(key: object) -> bytes:
    """The 32 secret bytes of an Ed25519 or P-256 key."""
    if isinstance(key, Ed25519PrivateKey):
        return key.private_bytes_raw()
    assert isinstance(key, EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes(32, "big")


def secrets_of(net: LocalNet, stranger: ClientKey) -> list[KnownSecret]:
    """Every secret in the network's files, with the file it belongs in, and one that belongs in none."""
    found = [KnownSecret("stranger", private_bytes(stranger.private_key))]
    for path in net.root.rglob("*.key"):
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        found.append(KnownSecret(str(path.relative_to(net.root)), private_bytes(key), path))
    token = net.profile.parent / "client.token"
    found.append(KnownSecret("token", token.read_bytes().strip(), token))
    for index in net.plan.indices:
        pin = net.plan.signer(index) / "pin"
        found.append(KnownSecret(f"PIN {index}", pin.read_bytes(), pin))
        pair = net.plan.gate_directory(index) / "gate-secrets.json"
        for name, text in json.loads(pair.read_bytes()).items():
            found.append(KnownSecret(f"{name} {index}", base64.b64decode(text.removeprefix("whsec_")), pair))
    return found


def tapped(net: LocalNet, index: int) -> SocketTap:
    """A relay between a signer that is not started yet and its enclave."""
    file = net.plan.signer(index) / "signer.yaml"
    text = file.read_text()
    assert text.count("run/enclave.sock") == 1
    file.write_text(text.replace("run/enclave.sock", "tap.sock"))
    return SocketTap(net.plan.signer(index) / "tap.sock", net.socket(index))


def operators(net: LocalNet) -> list[tuple[str | Path, bytes]]:
    """Two operators, whose keys one signer's policy names; what the command that makes them prints."""
    said, lines = [], []
    (net.root / "operators").mkdir()
    for name in ("olga", "otto"):
        words = ("operator-key", name, "--out", str(net.root / "operators" / f"{name}.key"), "--json")
        said.append(command(net, os.environ, *words))
        made = json.loads(said[-1][1])
        lines.append(f"    - {{id: {name}, alg: {made['alg']}, public_key: {made['public_key']}}}\n")
    policy = net.plan.signer(STOPPED) / "policy.yaml"
    policy.write_text(policy.read_text() + "operators:\n  unfreeze: 2\n  keys:\n" + "".join(lines))
    return said


def stop_and_go_on(net: LocalNet) -> list[tuple[str | Path, bytes]]:
    """A signer is frozen by one operator, and unfrozen by both."""
    directory, order = str(net.plan.signer(STOPPED)), ("--order", str(net.root / "operators" / "order"))
    olga, otto = (
        ("--operator", name, "--key", str(net.root / "operators" / f"{name}.key")) for name in ("olga", "otto")
    )
    target = ("--network", net.plan.network, "--signer", f"signer-{STOPPED}")
    said = [
        command(net, os.environ, "freeze", directory, *olga, "--reason", "drill", "--json"),
        command(net, os.environ, "unfreeze", *olga, *order, *target, "--json"),
        command(net, os.environ, "unfreeze", *otto, *order, *target, "--json"),
        command(net, os.environ, "unfreeze", directory, *order, "--json"),
    ]
    assert [json.loads(said[number][1])["frozen"] for number in (0, 3)] == [["**"], []]
    return said


def sign_when_back(client: Client, key: CertifiedKey, said: list[tuple[str | Path, bytes]]) -> None:
    """A signature as soon as there is one again; what is said until then is kept."""
    deadline_s = time.monotonic() + BACK_TIMEOUT_S
    while True:
        try:
            said.append(("answer", repr(client.sign(key.id, Hash("0x" + secrets.token_hex(32), new_id()))).encode()))
            return
        except (Failed, Unavailable, ApiError) as error:
            said.append(("error", (str(error) + repr(error)).encode()))
            if time.monotonic() > deadline_s or (isinstance(error, ApiError) and error.status < 500):
                raise


def new_id() -> str:
    return "test-" + secrets.token_hex(8)


def work(net: LocalNet, stranger: ClientKey, shown: list[tuple[str | Path, bytes]]) -> list[tuple[str | Path, bytes]]:
    """Everything a network goes through. What clients were told; `shown` gets what /proc shows on the way."""
    said: list[tuple[str | Path, bytes]] = []
    profile = load_profile(net.profile)
    net.wait_for_pool(POOL[0])
    reader = profile.credential
    with net.client() as client, Client(profile.api, profile.roster, stranger, profile.ca, credential=reader) as wrong:
        key = client.create_key("test/leaks", "leaks-key")
        said.append(("key", repr(key).encode()))
        for _ in range(5):
            sign_when_back(client, key, said)
        refused = EthereumTransaction(inputs.unsigned_transaction(inputs.REFUSED_DESTINATION), new_id())
        for caller, body, expected in (
            (client, refused, Rejected),
            (wrong, Hash("0x" + "ab" * 32, new_id()), KeymootError),
        ):
            with pytest.raises(expected) as error:
                caller.sign(key.id, body)
            said.append(("error", (str(error.value) + repr(error.value)).encode()))
        with pytest.raises(ApiError) as unknown:
            client.sign("key-that-is-not-there", Hash("0x" + "ab" * 32, new_id()))
        said.append(("error", str(unknown.value).encode()))
        for victim in ("enclave-1", "signer-3"):
            shown.extend(processes(net))
            net.kill(victim, signal.SIGKILL)
            net.restart(victim)
            sign_when_back(client, key, said)
        said += stop_and_go_on(net)
        for words in (
            ("keys", "show", key.id),
            ("keys", "list"),
            ("pool", "--once"),
            ("status", *map(str, hosts(net))),
            ("doctor", *map(str, hosts(net)), "--gate-secrets", str(net.plan.gate_directory(1) / "gate-secrets.json")),
            ("sign", "batch", key.id, str(hashes_file(net))),
        ):
            said.append(command(net, os.environ, *words, "--json", "--profile", str(net.profile)))
            assert len(said[-1][1]) > 100, said[-1]
    said += [(f"answer of {path}", answer(net, path)) for path in API_PATHS]
    return said


def hashes_file(net: LocalNet) -> Path:
    """Three hashes to be signed under one decision."""
    path = net.root / "hashes"
    path.write_text("".join(secrets.token_hex(32) + "\n" for _ in range(3)))
    return path


def hosts(net: LocalNet) -> list[Path]:
    """The directories of a signer, the coordinator and a gate, as an operator has them on a host."""
    return [net.plan.signer(1), net.root / "coordinator", net.plan.gate_directory(1)]


def command(net: LocalNet, environment: Mapping[str, str], *arguments: str) -> tuple[str | Path, bytes]:
    """All that a command prints."""
    words = [sys.executable, "-m", "appliance.cli", *arguments]
    done = subprocess.run(words, cwd=net.root, env=dict(environment), capture_output=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return " ".join(("keymoot", *arguments[:2])), done.stdout + done.stderr


def answer(net: LocalNet, path: str) -> bytes:
    """Status, headers and body of an answer of the API to somebody without a credential, as they came."""
    profile = load_profile(net.profile)
    host, _, port = profile.api.removeprefix("https://").partition(":")
    context = ssl.create_default_context(cafile=profile.ca)
    with closing(http.client.HTTPSConnection(host, int(port), context=context, timeout=10.0)) as connection:
        connection.request("GET", path)
        got = connection.getresponse()
        return f"{got.status} {got.getheaders()}\n".encode() + got.read()


def sealed_secrets(net: LocalNet) -> list[KnownSecret]:
    """Every key share and PRSS seed, as the HSMs unseal them, and the key itself, which is nowhere."""
    found: dict[str, bytes] = {}
    for index in net.plan.indices:
        directory = net.plan.signer(index)
        store = directory / "state" / "signer.db"
        found |= unsealed(directory / "enclave.yaml", store, net.plan.environment(index))
    shares = {index: int.from_bytes(found[f"share {index}"], "big") for index in net.plan.indices}
    found["key"] = polynomials.interpolate(shares, SECP256K1.q).to_bytes(32, "big")
    return [KnownSecret(name, value) for name, value in found.items()]


def processes(net: LocalNet) -> list[tuple[str | Path, bytes]]:
    """Arguments and environment of every process of the network and its children."""
    return [item for process in net.processes.values() for pid in family(process.pid) for item in of_process(pid)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    net = LocalNet(pool=POOL, refuse={REFUSING: (inputs.REFUSED_DESTINATION,)})
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        # What a process writes elsewhere than it was told comes into what is scanned too.
        for name, folder in (("TMPDIR", "tmp"), ("HOME", "home")):
            (net.root / folder).mkdir()
            patch.setenv(name, str(net.root / folder))
        stack.callback(net.close)
        net.write()
        made = operators(net)
        taps = [stack.enter_context(tapped(net, index)) for index in net.plan.indices]
        ports = serve_metrics(net)
        net.start()
        stranger = generate_client_key("stranger")
        known = secrets_of(net, stranger)
        shown: list[tuple[str | Path, bytes]] = []
        said = [*made, *work(net, stranger, shown)]
        shown += processes(net)
        scraped = {f"metrics of {name}": scrape(port) for name, port in ports.items()}
        written = files(net.root)
        for process in net.processes.values():
            process.stop()
        for index in net.plan.indices:
            environment, config = net.plan.environment(index), str(net.plan.signer(index) / "enclave.yaml")
            said.append(command(net, environment, "hsm", "check", "--config", config))
            said.append(command(net, environment, "pki", "show", str(net.plan.signer(index))))
        known += sealed_secrets(net)
        yield Run(net.root, known, [*written, *files(net.root)], shown, said, taps, scraped)


def test_the_run_had_every_kind_of_secret_and_each_is_found_where_it_belongs(run: Run) -> None:
    names = {secret.name for secret in run.secrets}
    parts = ["coordinator", *(f"{kind}-{index}" for kind in ("gate", "signer") for index in (1, 2, 3))]
    assert names == {
        "stranger",
        "token",
        "client/client.key",
        "operators/olga.key",
        "operators/otto.key",
        *(f"{part}/ca.key" for part in parts),
        *(f"{part}/{'signer' if part.startswith('signer') else 'server'}.key" for part in parts),
        *(f"{kind} {index}" for kind in ("PIN", "request_hmac", "answer_hmac", "share") for index in (1, 2, 3)),
        # Of 3 subsets of two, 3 pairs for presigning and 3 for the online step, each signer has two.
        *(f"seed {number} of {index}" for number in range(1, 7) for index in (1, 2, 3)),
        "key",
    }
    assert len({secret.value for secret in run.secrets if secret.name.startswith("seed")}) == 9
    for secret in run.secrets:
        if secret.home is not None:
            at_home = leaks([KnownSecret(secret.name, secret.value)], [(secret.home, secret.home.read_bytes())])
            assert at_home, secret.name


def test_all_that_a_run_leaves_behind_was_there_to_scan(run: Run) -> None:
    places = {str(place) for place, data in run.everything if data}
    for name in ("coordinator", *(f"{kind}-{index}" for kind in ("enclave", "signer") for index in (1, 2, 3))):
        assert str(run.root / "logs" / f"{name}.log") in places
    for store in ("coordinator/state/coordinator.db", *(f"signer-{index}/state/signer.db" for index in (1, 2, 3))):
        assert {str(run.root / store), str(run.root / (store + "-wal"))} <= places
    assert [tap.connections >= least for tap, least in zip(run.taps, (2, 1, 2), strict=True)] == [True] * 3
    assert all(len(data) > 10_000 for tap in run.taps for data in tap.heard.values())
    assert sum(1 for place, _ in run.shown if str(place).endswith("environ")) >= 3 * len(("enclave", "worker")) * 3
    assert b"\0--config\0" in b"".join(data for _, data in run.shown)


def test_the_metrics_of_the_run_are_the_documented_ones_with_its_numbers(run: Run) -> None:
    told = [one for text in run.scraped.values() for one in text_string_to_metric_families(text.decode())]
    page = documented()
    found = {one.name + "_total" * (one.type == "counter"): one for one in told}
    assert {name: one.type for name, one in found.items()} == {name: kind for name, (kind, _) in page.items()}
    for name, one in found.items():
        for series in one.samples:
            assert series.labels.keys() - {"le"} == set(page[name][1]), series
    assert sample(run, "signer-1", 'keymoot_enclave_state{state="ready"}') == 1
    assert sample(run, "signer-1", "keymoot_enclave_prss_epoch") == 1
    assert sample(run, "signer-1", 'keymoot_enclave_links{coordinator="coordinator",state="up"}') == 2
    assert sample(run, "signer-1", 'keymoot_signer_coordinator_up{coordinator="coordinator"}') == 1
    assert sample(run, "signer-3", 'keymoot_signer_connections_total{peer="enclave"}') == 1
    done = 'keymoot_coordinator_ceremonies_total{{kind="{}",outcome="done",round="all"}}'
    assert [
        sample(run, "coordinator", done.format(kind)) for kind in ("keygen", "setup", "online", "batch-online")
    ] == [1, 1, 7, 1]
    assert sample(run, "coordinator", 'keymoot_coordinator_signer_up{signer="signer-3"}') == 1
    assert sample(run, "coordinator", 'keymoot_coordinator_requests_total{kind="Hash",outcome="Signed"}') == 7
    unknown = 'operation="GET /v1/keys/{key}",status="404"'
    assert sample(run, "coordinator", f"keymoot_coordinator_api_answers_total{{{unknown}}}") == 1
    # An attempt that a kill ended is made again, so there may be more of these.
    assert sample(run, "coordinator", 'keymoot_coordinator_signer_connections_total{signer="signer-3"}') >= 2
    assert sample(run, "signer-1", 'keymoot_signer_connections_total{peer="enclave"}') >= 2
    assert sample(run, "signer-1", 'keymoot_signer_gate_calls_total{outcome="2xx"}') >= 8
    assert sample(run, "signer-1", "keymoot_enclave_requests_authorized_total") >= 2


def sample(run: Run, name: str, series: str) -> float:
    """The value of one series in what a process told."""
    text = run.scraped[f"metrics of {name}"].decode()
    values = [line.removeprefix(series) for line in text.splitlines() if line.startswith(series + " ")]
    assert len(values) == 1, text
    return float(values[0])


def test_no_secret_of_a_full_run_is_in_anything_it_wrote_printed_or_sent(run: Run) -> None:
    assert leaks(run.secrets, run.everything) == []


@pytest.mark.parametrize("encoding", ["raw", "hex", "base64", "base64url", "decimal", "repr"])
@pytest.mark.parametrize("lead", [0, 1, 2])
def test_a_planted_secret_is_found_in_each_encoding(encoding: str, lead: int) -> None:
    secret = os.urandom(32)
    longer = os.urandom(lead) + secret + os.urandom(5)
    data = {
        "raw": longer,
        "hex": longer.hex().encode(),
        "base64": base64.encodebytes(longer),
        "base64url": base64.urlsafe_b64encode(longer),
        "decimal": str(int.from_bytes(secret, "big")).encode(),
        "repr": repr(longer).encode(),
    }[encoding]
    # Base64 without the two differing characters is found as both.
    found = {leak.encoding for leak in leaks([KnownSecret("planted", secret)], [("log", b"before " + data + b"}\n")])}
    assert encoding in found
    assert leaks([KnownSecret("planted", os.urandom(32))], [("log", data)]) == []


@pytest.mark.parametrize("planted", ["PIN 2", "share 1", "seed 3 of 2", "key", "request_hmac 3", "token"])
def test_a_secret_planted_in_each_kind_of_output_is_found(run: Run, planted: str) -> None:
    secret = next(secret for secret in run.secrets if secret.name == planted)
    kinds = {
        "log": (run.root / "logs" / "enclave-2.log", b'{"event":"hsm away","reason":"%s"}\n'),
        "metrics": ("metrics of signer-1", b'keymoot_enclave_requests_refused_total{rule="%s"} 1.0\n'),
        "problem": ("answer of /none", b'{"title":"Not found","detail":"%s"}'),
        "temporary file": (run.root / "tmp" / "core.17", b"\x7fELF\x00%s\x00"),
    }
    material = dict(run.everything)
    for kind, (place, line) in kinds.items():
        assert kind == "temporary file" or place in material, place
        for encoding in ("hex", "base64", "base64url", "decimal"):
            data = material.get(place, b"") + line % forms(secret.value)[encoding][0]
            found = leaks(run.secrets, [(place, data)])
            assert Leak(planted, encoding, str(place)) in found
            assert {leak.secret for leak in found} <= names_of(run, secret.value)


def names_of(run: Run, value: bytes) -> set[str]:
    """Two signers have one seed."""
    return {secret.name for secret in run.secrets if secret.value == value}

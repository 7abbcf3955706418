"""Everything that turns bytes from outside into values, in one table: any input is a value or the error that stands
there, and nothing else. A new decoder without a line in the table fails the last test.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import pathlib
import ssl
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance import pki, relay, renewal
from appliance.api import certificates, jws, models, signatures, transport
from appliance.api.approvals import ApprovalsWanted
from appliance.api.batches import BatchState, SignatureBatch
from appliance.api.results import ApiError
from appliance.checkup import times
from appliance.checkup.others import reached_at
from appliance.cli import setup_questions, sign, stop
from appliance.cli.approve import describe
from appliance.configure import read_ca
from appliance.coordinator import api as coordinator_api
from appliance.coordinator.authorities import Authorities
from appliance.coordinator.convictions import read_convictions
from appliance.coordinator.credentials import ClientKeys
from appliance.coordinator.unfinished import wanted_label
from appliance.coordinator.views import show_batch, show_signature
from appliance.enrolment import Identity, make_roster, read_identity
from appliance.expiry import first_end_s
from appliance.gate.check import judge as check_judge
from appliance.gate.check import keys as check_keys
from appliance.gate.check import questions as check_questions
from appliance.gate.config import load_config as load_gate_config
from appliance.gate.config import load_secrets
from appliance.profile import load_profile
from appliance.setup.answers import Answers, merged, read_answers
from appliance.signer.config import SignerConfig
from appliance.signer.config import load_config as load_signer_config
from appliance.signer.enclave_link import next_message
from appliance.signer.status import StatusServer
from appliance.store.batches import BatchRow
from appliance.store.certificates import decode_certificate
from appliance.store.failures import Damaged
from appliance.store.keys import KeyRow
from appliance.store.rows import parse_row
from appliance.store.signatures import SignatureRow
from enclave import gate, gate_keys, rewrap, wire, worker
from enclave.__main__ import _hsm_section
from enclave.config import load_config as load_enclave_config
from enclave.errors import CallerError, Malformed, Refused, Unavailable
from enclave.evidence import verify_evidence
from enclave.freezes import Freezes
from enclave.hsm.errors import HsmMisconfigured, SealBroken
from enclave.hsm.keys import decode_point
from enclave.hsm.records import RecordContext, parse_record
from enclave.requests import VerifiedRequest, parse_hash_batch, parse_key_creation, parse_signing_body
from enclave.webhooks import WebhookInvalid, parse_key, verify
from policies.acceptance import AcceptedStates
from policies.errors import KeymootError
from policies.gate_messages import RequestInfo, SignerInfo
from policies.json_strict import JsonInvalid, parse_json
from policies.keccak import keccak256
from policies.load import load_policy, load_yaml, parse_yaml
from policies.reading import Asker, read_body
from policies.requests import HashBatch, KeyCreation, SigningBody, signature_batches_path, signatures_path
from policies.roster import Roster
from policies.signed_requests import claimed_client, claimed_name, split_jws
from policies.stop_orders import split_order
from policies.tables import Table
from tests.fakes.certificates import Dealer
from tests.fakes.decoders import ROOT, decoding_places
from tests.fakes.enclaves import FreezeMemory
from tests.fakes.tls import TlsFiles
from tests.property.covered_decoders import COVERED, OWN

DEALER = Dealer.make()
CONTEXT = RecordContext("network", 1, "key", "key_" + "ab" * 16, 1, 3)
ACKNOWLEDGEMENT = DEALER.certificate()[0]

# --- inputs: hostile by hand, good ones edited, and noise ---

BOMBS = [
    b"",
    b"\0",
    b"\xff" * 40,
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"\x91" * 100_000,
    b"\x81\xa1a" * 50_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc7\x01\x01\x00",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\xc1",
    b'{"a":1,"a":1}',
    b"NaN",
    b"-Infinity",
    b"1" * 5000,
    b"1e999999",
    b'"\xff"',
    b'{"title":"\xff\xfe"}',
    b'"\\ud800"',
    b'{"version":1e400}',
    b"a: &x [*x]",
    b"&a [*a,*a]",
    b"? [a]\n: b",
    b"!!python/object/apply:os.system [ls]",
    b"a: 1\na: 2",
    b"\ta: 1",
    b"%YAML 1.1\n---\na",
    b"<<: {a: 1}",
    b"- " * 40_000,
    b"a: !!binary AAAA",
    b"{" * 2000,
    b"'" * 3,
    b"\x00\x00\x00\x05",
    b"-----BEGIN CERTIFICATE-----\n",
    b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
    b"..",
    b"a.b.c",
    b"e30..e30",
    b"0x",
    b"whsec_",
]
EDITS = st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from("fdic"), st.integers(0, 255)), max_size=4)


def edited(data: bytes, edits: list[tuple[int, str, int]]) -> bytes:
    """`data` with bytes flipped, dropped, inserted, or cut off."""
    for place, what, byte in edits:
        at = place % max(1, len(data))
        head, tail = data[:at], data[at:]
        data = {
            "f": head + bytes([tail[0] ^ (byte or 1)]) + tail[1:] if tail else data,
            "d": head + tail[1:],
            "i": head + bytes([byte]) + tail,
            "c": head,
        }[what]
    return data


def inputs(*good: bytes) -> st.SearchStrategy[bytes]:
    """Bombs, noise, and good input that was edited."""
    edits = st.tuples(st.sampled_from(good or (b"{}", b"[]")), EDITS).map(lambda both: edited(*both))
    return st.sampled_from(BOMBS) | st.binary(max_size=80) | edits


# --- how each decoder is called ---


def text(call: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: call(data.decode("utf-8", "surrogateescape"))


def file(call: Callable[[pathlib.Path], object]) -> Callable[[bytes], object]:
    def on_disk(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "input"
            path.write_bytes(data)
            path.chmod(0o600)
            return call(path)

    return on_disk


def canonical(kind: Any) -> Callable[[bytes], object]:
    def check(data: bytes) -> object:
        message = wire.decode(data, kind)
        assert wire.encode(message) == data
        return message

    return check


def answer(kind: type[Any]) -> Callable[[bytes], object]:
    """What the client makes of an answer's body."""
    return lambda data: transport.parse_answer(200, data, kind)


def split_or_none(data: bytes, kind: Any) -> object:
    with contextlib.suppress(Malformed):
        return relay.split(data, kind)
    return None


def renewed(data: bytes) -> object:
    """A directory whose authority, certificate or key is the input."""
    made = None
    for name in ("ca.pem", "ca.key", "server.pem", "server.key"):
        with tempfile.TemporaryDirectory() as directory:
            files = TlsFiles.make(pathlib.Path(directory))
            (files.directory / name).write_bytes(data)
            with contextlib.suppress(CallerError):
                made = renewal.renew(files.directory, pki.datetime.datetime.now(pki.datetime.UTC))
                renewal.show(files.directory, pki.datetime.datetime.now(pki.datetime.UTC))
    return made


def shown(data: bytes) -> object:
    """A certificate of a signer, at a coordinator that knows whose authority is whose."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "ca.pem"
        path.write_bytes(CA)
        return Authorities({"a1": path}).check("a1", data)


def verified(data: bytes) -> VerifiedRequest:
    return VerifiedRequest("client", "jti", 0, data)


def freezes(data: bytes) -> object:
    """What cannot be read freezes everything."""
    store = FreezeMemory()
    store.data = data
    return Freezes("n", "s", lambda: None, store, lambda: 1.0, lambda event, facts: None).in_force


def wanted(body: str, path_of: Callable[[str], str] = signatures_path) -> object:
    """A request that a coordinator shows to an approver."""
    key_id = "key_" + "0" * 32
    shown = ApprovalsWanted("sig", key_id, BatchState.PENDING, "c", path_of(key_id), body, "", ())
    return describe(shown, key_id)


def gate_answer(data: bytes) -> object:
    """A body that the gate has signed."""
    keys = gate_keys.parse_gate_secrets(SECRETS)
    info = SignerInfo("Signing", "k", "p", "h", (), "c", "s", "ECDSA", "secp256k1", 1, (1, 2, 3), False)
    request = RequestInfo("r", "e", "n", {}, None)
    call = gate.build_call(info, request, uid="u1", attempt=1, deadline_s=2000, now_s=1000, keys=keys)
    signature = gate.webhooks.sign(keys.answer, "u1", 1000, data)
    reply = wire.GateReply("u1", 200, "u1", "1000", signature, 0, data)
    return gate.verify_reply(reply, call=call, keys=keys, now_s=1000)


def checked_answer(data: bytes) -> object:
    """The same, as `keymoot gate check` judges it."""
    keys = check_keys.parse_keys(SECRETS)
    signature = check_keys.header_of(keys.answers, "u1", "1000", data)
    reply = wire.GateReply("u1", 200, "u1", "1000", signature, 0, data)
    return check_judge.judge(reply, check_questions.question("u1", 2000, dry_run=False), keys, 1000)


def stop_request(data: bytes) -> object:
    """What somebody says to the status socket of a signer without an enclave."""
    metrics: Any = SimpleNamespace(serving=None, enclave_reason="none")
    config = parse_yaml(SIGNER.decode(), SignerConfig, "signer.yaml")
    return asyncio.run(StatusServer(config, metrics, "0")._stopped(data))


SECRETS = json.dumps(
    {
        name: "whsec_" + base64.b64encode(bytes([i]) * 32).decode()
        for i, name in enumerate(("request_hmac", "answer_hmac"))
    }
).encode()
GATE_ANSWER = json.dumps(
    {
        "type": "validation.answer",
        "uid": "u1",
        "request_digest": "x",
        "signer_id": "s",
        "kind": "Signing",
        "dryRun": False,
        "allowed": True,
        "status": {},
        "expiresAt": "2026-01-01T00:00:00Z",
    }
).encode()
HASH = b'{"kind":"Hash","hash":"0x' + b"11" * 32 + b'","externalId":"e","derivationPath":[0,1]}'
BATCH = b'{"kind":"HashBatch","hashes":["0x' + b"11" * 32 + b'"],"externalId":"e","derivationPaths":[[0]]}'
CREATION = b'{"scheme":"ECDSA","curve":"secp256k1","signers":3,"tolerate":1,"label":"a","externalId":"e"}'
ROSTER = msgspec.json.encode(DEALER.roster)
PROBLEM = b'{"type":"about:blank","title":"t","status":400,"code":"c","detail":"d"}'
KEY = msgspec.json.encode(DEALER.key_answer())
IDENTITY = msgspec.json.encode(
    Identity("test", "signer-1", "Op", DEALER.roster.signers[0].identity_key, DEALER.roster.signers[0].fingerprint)
)
SIGNER = (
    b"network: n\nenclave_socket: e\nstate: s\n"
    b"coordinators:\n  - {name: c, url: 'https://h:1', ca: a, certificate: b, key: c}\n"
)
ENCLAVE = (
    b"network: n\nsigner: s\nroster: r\npolicy: p\nsocket: s\n"
    b"hsm: {lib: /x, pin: 'file:p', token_label: t}\ngate: {mode: none}\n"
)
TABLE = (ROOT / "policies" / "exchange-hot-wallet.table.yaml").read_bytes()
POLICY = (ROOT / "policies" / "exchange-hot-wallet.yaml").read_bytes()
ACCEPTED = b'version: 1\naccepted:\n  - {signer: s1, version: 4, boot: "' + b"ab" * 8 + b'"}\n'
GATE_YAML = b"listen: 127.0.0.1:1\ncertificate: c\nkey: k\nsecrets: s\n"
CLIENT_YAML = b"network: n\napi: https://h\nca: c\nroster: r\nclient: c\nkey: k\n"
AUTHORITY = pki.make_ca("test ca")
CA = AUTHORITY.certificate_pem
SERVER = pki.issue(AUTHORITY, "localhost", pki.Purpose.SERVER, addresses=("127.0.0.1",)).certificate_pem
DER = ssl.PEM_cert_to_DER_cert(pki.issue(AUTHORITY, "a1", pki.Purpose.CLIENT).certificate_pem.decode())
ANSWERS = (
    b"role: signer\nnetwork: n\nname: s\noperator: A\nhsm: {lib: /x, token_label: t}\ngate: {mode: none}\n"
    b"coordinators:\n  - {name: c, url: 'https://h:1', ca: c.pem}\nroster: r\nsigners_ca: [a.pem]\n"
)
HSM = b'{"lib":"/x","pin":"file:p","token_label":"t"}'
STOP = b"e30.e30." + b"A" * 86
FREEZES = b'{"network":"n","signer":"s","serial":1,"freezes":[["**","olga",1,""]]}'
ROW = {
    "seq": 1,
    "id": "sig_1",
    "external_id": "e",
    "path": "p",
    "body": b"",
    "jws": "",
    "state": "Signed",
    "created_at_ms": 1,
    "reason_code": "",
    "reason_message": "",
    "reason_signer": "",
    "key_id": "k",
}
KEY_ROW = {name: value for name, value in ROW.items() if name not in ("key_id", "body")} | {
    "label": "a",
    "key_id": None,
    "certificate": None,
    "activated": 0,
}
# What whoever decodes a stored body catches.
BODY_ERRORS = (msgspec.DecodeError, UnicodeDecodeError)
RECORD = wire.Record("key", "k", 1, b"x" * 40)
SEALED = wire.encode(RECORD)

Fuzz = tuple[Callable[[bytes], object], tuple[type[Exception], ...], tuple[bytes, ...]]
FUZZ: dict[str, Fuzz] = {
    "json": (parse_json, (JsonInvalid,), (HASH, PROBLEM)),
    "wire to enclave": (canonical(wire.ToEnclave), (Malformed,), (wire.encode(wire.Presence("c", (1, 2))), SEALED)),
    "wire from enclave": (canonical(wire.FromEnclave), (Malformed,), (wire.encode(wire.Audit(())), SEALED)),
    "relay up": (canonical(relay.Up), (Malformed,), (wire.encode(relay.Forward(2, b"x")),)),
    "relay down": (canonical(relay.Down), (Malformed,), (wire.encode(relay.Online((1, 2))),)),
    "relay split": (
        lambda data: (split_or_none(data, relay.Up), split_or_none(data, relay.Down)),
        (),
        (wire.encode(relay.Online((1, 2))), wire.encode(relay.Forward(2, b"x"))),
    ),
    "rewrapped": (canonical(wire.Rewrapped), (Malformed,), ()),
    "record to rewrap": (lambda data: rewrap._read(io.BytesIO(data)), (CallerError,), (wire.frame(RECORD),)),
    "stored answer": (canonical(wire.Answer), (Malformed,), ()),
    "authority file": (file(lambda path: read_ca(path, "a CA")), (CallerError,), ()),
    "claimed client": (text(claimed_client), (), (b"e30..e30",)),
    "claimed name": (lambda data: claimed_name("n", "e30..e30", data), (), (HASH,)),
    "claimed name's header": (text(lambda given: claimed_name("n", given, HASH)), (), (b"e30..e30",)),
    "wanted label": (lambda data: wanted_label(KeyRow(**KEY_ROW, body=data)), (Damaged,), (CREATION,)),
    "wanted batch": (lambda data: msgspec.json.decode(data, type=HashBatch), BODY_ERRORS, (BATCH,)),
    "worker": (canonical(worker.FromWorker), (Malformed,), (wire.encode(worker.Outgoing(bytes(32), 2, b"frame")),)),
    "to worker": (canonical(worker.ToWorker), (Malformed,), (wire.encode(worker.Incoming(bytes(32), 2, b"frame")),)),
    "socket to signer": (lambda data: next_message(bytearray(data)), (Malformed,), (wire.frame(wire.Audit(())),)),
    "sealed record": (lambda data: parse_record(data, CONTEXT), (SealBroken,), (SEALED,)),
    "acknowledgement": (
        text(certificates._parse),
        (certificates.CertificateRefused,),
        (wire.encode(ACKNOWLEDGEMENT).hex().encode(),),
    ),
    "stored certificate": (decode_certificate, (Damaged,), (msgspec.msgpack.encode([wire.encode(ACKNOWLEDGEMENT)]),)),
    "stored row": (
        lambda data: parse_row({**ROW, "kind": data, "derivation_path": data, "result": data}, SignatureRow, "x"),
        (Damaged,),
        (b"[]",),
    ),
    "shown signature": (
        lambda data: show_signature(SignatureRow(**ROW, kind="Hash", derivation_path=data, result=data)),
        (Damaged,),
        (b"[0]",),
    ),
    "shown batch": (
        lambda data: show_batch(BatchRow(**ROW, count=1, result=data)),
        (Damaged,),
        (b'[{"reason":null}]',),
    ),
    "answer": (answer(models.Key), (ApiError,), (KEY,)),
    "answer list": (answer(models.KeyList), (ApiError,), (b'{"items":[' + KEY + b"]}",)),
    "answer batch": (answer(SignatureBatch), (ApiError,), (b'{"id":"b"}',)),
    "problem": (lambda data: transport._problem(400, {}, data), (), (PROBLEM,)),
    "hex of an answer": (
        text(lambda given: signatures._bytes(given, 32)),
        (signatures.SignatureRefused,),
        (b"0x" + b"11" * 32,),
    ),
    "client key": (file(lambda path: jws.load_client_key(path, "kid")), (CallerError,), ()),
    "api body": (lambda data: coordinator_api._parse(data, SigningBody), (KeymootError,), (HASH,)),
    "api creation": (lambda data: coordinator_api._parse(data, KeyCreation), (KeymootError,), (CREATION,)),
    "api batch": (lambda data: coordinator_api._parse(data, HashBatch), (KeymootError,), (BATCH,)),
    "body": (lambda data: parse_signing_body(verified(data)), (Refused,), (HASH,)),
    "creation": (lambda data: parse_key_creation(verified(data)), (Refused,), (CREATION,)),
    "batch": (lambda data: parse_hash_batch(verified(data)), (Refused,), (BATCH,)),
    "jws": (text(split_jws), (Refused,), (b"e30.." + b"A" * 86,)),
    "typed document": (text(sign._document), (CallerError,), (b'{"types": {}}',)),
    "wanted approval": (text(wanted), (CallerError,), (HASH,)),
    "wanted approval of a batch": (
        text(lambda body: wanted(body, signature_batches_path)),
        (CallerError,),
        (BATCH,),
    ),
    "stop order": (text(lambda given: split_order((given,))), (Refused,), (STOP,)),
    "freezes": (freezes, (), (FREEZES,)),
    "gate answer": (gate_answer, (Refused,), (GATE_ANSWER,)),
    "gate answer to a check": (checked_answer, (), (GATE_ANSWER,)),
    "gate secrets of a check": (check_keys.parse_keys, (CallerError,), (SECRETS,)),
    "request to check a gate with": (
        lambda data: check_questions.parse_parts(data, "FILE"),
        (CallerError, Refused),
        (HASH, b'{"requestInfo":{}}'),
    ),
    "gate secrets": (gate_keys.parse_gate_secrets, (CallerError,), (SECRETS,)),
    "gate secrets of the handler": (file(load_secrets), (CallerError,), (SECRETS,)),
    "webhook": (
        lambda data: verify(
            [parse_key("whsec_" + base64.b64encode(bytes(32)).decode())],
            "id",
            "1000",
            data.decode("latin-1"),
            data,
            1000,
        ),
        (WebhookInvalid,),
        (b"v1," + base64.b64encode(bytes(32)),),
    ),
    "webhook key": (text(parse_key), (CallerError,), (b"whsec_" + base64.b64encode(bytes(32)),)),
    "evidence": (lambda data: verify_evidence(data, DEALER.roster), (Malformed, Refused), ()),
    "HSM's point": (decode_point, (HsmMisconfigured,), (b"\x04" + bytes(64),)),
    "identity": (file(read_identity), (CallerError,), (IDENTITY,)),
    "identities": (
        text(lambda key: make_roster([Identity("n", f"s-{i}", "o", key, "") for i in range(3)], 1)),
        (CallerError,),
        (DEALER.roster.signers[0].identity_key.encode(),),
    ),
    "convictions": (file(read_convictions), (CallerError, Unavailable), (b'{"version":1,"convicted":{}}',)),
    "certificate file": (file(first_end_s), (), ()),
    "renewal": (renewed, (), ()),
    "time": (text(times.parse), (), (b"2026-01-01T00:00:00Z",)),
    "signer.yaml": (file(load_signer_config), (CallerError,), (SIGNER,)),
    "enclave.yaml": (file(load_enclave_config), (CallerError,), (ENCLAVE,)),
    "gate.yaml": (file(load_gate_config), (CallerError,), (GATE_YAML,)),
    "client.yaml": (file(load_profile), (CallerError,), (CLIENT_YAML,)),
    "roster.yaml": (file(lambda path: load_yaml(path, Roster)), (CallerError,), (ROSTER,)),
    "policy's reading": (
        lambda data: read_body(data, Asker("a", "hot/1"), keccak256),
        (Refused,),
        (HASH, BATCH, CREATION),
    ),
    "policy table": (file(lambda path: load_yaml(path, Table)), (CallerError,), (TABLE,)),
    "policy.yaml": (file(lambda path: ClientKeys(load_policy(path).clients, "n")), (CallerError,), (POLICY,)),
    "answers.yaml": (file(read_answers), (CallerError,), (ANSWERS,)),
    "typed answers": (
        text(lambda given: merged(Answers(), {"operator": given, "network": given, "hosts": [given], "roster": given})),
        (CallerError,),
        (b"acme",),
    ),
    "typed name": (text(setup_questions._name), (CallerError,), (b"acme-1",)),
    "typed file": (text(setup_questions._file), (CallerError,), (b"/etc/hostname", b"~nobodyhere/x", b"~\0/x")),
    "typed address": (text(setup_questions._url), (CallerError,), (b"https://c.example:8443",)),
    "typed order": (
        text(lambda given: stop._order("freeze", None, (given, given), [given], given)),
        (CallerError,),
        (b"signer-1",),
    ),
    "stop request": (stop_request, (), (b'{"stop":["' + STOP + b'"]}',)),
    "operator's authorities": (file(lambda path: Authorities({"a1": path})), (CallerError,), (CA, CA * 2)),
    "signer's certificate": (shown, (Refused,), (DER,)),
    "listener's certificate": (file(lambda path: reached_at("0.0.0.0:1", path)), (CallerError,), (SERVER,)),
    "HSM of the command line": (text(_hsm_section), (CallerError,), (HSM,)),
    "accepted-states.yaml": (file(lambda path: load_yaml(path, AcceptedStates)), (CallerError,), (ACCEPTED,)),
}
SLOW = {"renewal": 6, "client key": 25, "evidence": 40}


@pytest.mark.parametrize("name", FUZZ)
def test_any_input_is_a_value_or_the_error_of_the_table(name: str) -> None:
    call, allowed, good = FUZZ[name]

    @settings(max_examples=SLOW.get(name, 60), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(inputs(*good))
    def fuzz(data: bytes) -> None:
        with contextlib.suppress(*allowed):
            call(data)

    fuzz()
    for bomb in BOMBS if name not in SLOW else ():
        with contextlib.suppress(*allowed):
            call(bomb)


# --- which decoder is covered by what ---


def within_package(place: str) -> str:
    """Package and name of a place, without its module."""
    module, _, name = place.partition(":")
    return f"{module.partition('.')[0]}:{name}"


def test_every_decoder_in_the_code_is_covered() -> None:
    """Add a fuzz to `FUZZ` (or name the test that does as much) and a line to `COVERED`. What merely moved to another
    module of its package stays covered by its old line."""
    found = {place for place, _ in decoding_places()}
    gone = {within_package(place) for place in set(COVERED) - found}
    assert {place for place in found - set(COVERED) if within_package(place) not in gone} == set(), "without a fuzz"
    for place, by in COVERED.items():
        assert by in FUZZ or by == OWN or (ROOT / by).is_file(), f"{place}: {by}"


def test_the_guard_sees_a_new_decoder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fakes import decoders

    (tmp_path / "enclave").mkdir()
    (tmp_path / "enclave" / "new.py").write_text(
        "from enclave.wire import decode\nimport json\n\n\n"
        "class A:\n    def f(self, data):\n        return decode(data, int)\n"
        "\n\ndef g(data):\n    return json.loads(data)\n"
    )
    monkeypatch.setattr(decoders, "ROOT", tmp_path)
    assert sorted(decoders.decoding_places()) == [("enclave.new:A.f", "decode"), ("enclave.new:g", "json.loads")]

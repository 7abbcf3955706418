"""Every command with wrong files, missing directories, unreachable hosts and garbage: one sentence, an exit code."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from appliance import configure, templates
from appliance.api.jws import generate_client_key, save_client_key
from appliance.cli.app import app
from tests.fakes.command_line import Keymoot, Outcome, an_identity, write_identity

KEY = "key_" + "ab" * 16
HASH = "ab" * 32
# Nobody listens there.
DEAD = "https://127.0.0.1:9"
SOFTHSM_LIBS = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")
INIT_SIGNER = (
    "init signer {new} --network net --name s1 --operator A --coordinator c=https://localhost:1 "
    "--coordinator-ca {coordinator}/ca.pem "
)
# What runs until it is stopped, or prints a script, has no result to show.
# Those that print a document, which is JSON or YAML already.
PRINTERS = {"gate openapi", "gate question", "policy schema"}
WITHOUT_JSON = {"enclave run", "signer run", "coordinator run", "gate serve", "completion"} | PRINTERS

# Arguments, exit code, what the one sentence says.
MISTAKES = [
    ("scheme --signers 3 --tolerate 9", 2, "3 signers cannot tolerate 9"),
    ("scheme --signers 5 --tolerate 2 --operators A=", 2, "--operators A="),
    ("status --profile {missing}", 2, "no client profile"),
    ("status --profile {garbage}", 2, "garbage"),
    ("status {empty}", 2, "holds none of signer.yaml"),
    ("status {missing}", 2, "holds none of signer.yaml"),
    ("setup --no-input --directory {empty}", 2, "not known yet: --role"),
    ("setup --no-input --role signer --directory {missing}", 2, "not known yet: --network"),
    ("setup --no-input --answers {garbage}", 2, "garbage"),
    ("doctor {empty}", 2, "holds none of enclave.yaml"),
    ("doctor {missing}", 2, "holds none of enclave.yaml"),
    ("status {client}", 2, "is a client's: keymoot status --profile"),
    ("status {too_long}", 2, "nnnnn: File name too long"),
    ("doctor {too_long}", 2, "nnnnn: File name too long"),
    ("keys list --profile {too_long}", 2, "nnnnn: File name too long"),
    ("signer run --config {too_long}", 2, "nnnnn: File name too long"),
    ("status --token {missing} --profile {client}/client.yaml", 2, "token"),
    ("pool --profile {missing}", 2, "no client profile"),
    ("pool --profile {client}/client.yaml --once", 3, "API https://127.0.0.1:9: Connection refused"),
    ("pool --profile {client}/client.yaml --interval 0", 2, "--interval: at least 0.2"),
    ("pool --profile {client}/client.yaml --interval nan", 2, "--interval: at least 0.2"),
    ("pool --profile {client}/client.yaml --interval inf", 2, "at most a day"),
    ("pool --profile {client}/client.yaml --burst -5", 2, "--burst: 0 or more"),
    ("init coordinator {file} --network net", 2, "{file}"),
    ("init coordinator {new} --network NET!", 2, "--network NET!: a name is"),
    ("init coordinator {new} --network net --name ../x", 2, "--name ../x: a name is"),
    ("init coordinator {new} --network net --address localhost", 2, "not an IP address"),
    ("init coordinator {new} --network net --api-listen nowhere", 2, "nowhere"),
    ("init coordinator {new} --network net --api-listen 127.0.0.1:99999", 2, "there is no port 99999"),
    ("init coordinator /proc/nothing --network net", 2, "cannot make /proc/nothing"),
    ("init client {new} --network net --name me --api http://x --api-ca {coordinator}/ca.pem", 2, "https://HOST:PORT"),
    ("init client {new} --network net --name me --api {dead} --api-ca {missing}", 2, "cannot read the API's CA"),
    ("init client {new} --network net --name m/e --api {dead} --api-ca {coordinator}/ca.pem", 2, "--name m/e"),
    ("init client {new} --network net --name me --api {dead} --api-ca {garbage}", 2, "no certificate"),
    ("init gate {new} --listen nowhere", 2, "--listen nowhere: write it as ADDRESS:PORT"),
    ("init gate {new} --listen 127.0.0.1:99999", 2, "there is no port 99999"),
    ("init gate {file}", 2, "{file}"),
    (INIT_SIGNER + "--pin file:{missing}", 2, "PIN"),
    (INIT_SIGNER + "--pin 1234", 2, "pin"),
    (INIT_SIGNER + "--pin file:{pin} --lib {missing}", 2, "{missing}"),
    (INIT_SIGNER + "--pin file:{pin} --lib {garbage}", 2, "{garbage}"),
    (INIT_SIGNER + "--pin file:{pin} --token-label nobodys", 3, "nobodys"),
    (INIT_SIGNER + "--pin file:{pin} --slot 123456789", 3, "123456789"),
    (INIT_SIGNER + "--pin file:{pin} --slot 0 --token-label x", 2, "--token-label or by --slot"),
    (INIT_SIGNER + "--pin file:{pin} --gate https://x/validate", 2, "--gate and --gate-ca together"),
    (INIT_SIGNER + "--pin file:{pin} --coordinator d=https://localhost:2", 2, "--coordinator-ca once for each"),
    (INIT_SIGNER.replace("c=https", "c=http") + "--pin file:{pin}", 2, "NAME=https://HOST:PORT"),
    (INIT_SIGNER.replace("c=https", "../c=https") + "--pin file:{pin}", 2, "a name is"),
    (INIT_SIGNER.replace("ca.pem", "none.pem") + "--pin file:{pin}", 2, "cannot read the coordinator's CA"),
    ("roster assemble {garbage} {garbage} {garbage} --tolerate 1", 2, "is not a signer's identity.json"),
    ("roster assemble {missing} --tolerate 1", 2, "cannot read"),
    ("roster assemble {empty} --tolerate 1", 2, "cannot read"),
    ("roster assemble {identities} --tolerate 1 --out {roster}", 2, "exists: nothing is overwritten"),
    (
        "roster assemble {identities} --tolerate 1 --out /proc/nothing/r.yaml",
        2,
        "cannot make the directory /proc/nothing",
    ),
    ("roster assemble {identities} --tolerate 1 --out /proc/r.yaml", 2, "cannot write /proc/r.yaml"),
    ("roster show {missing}", 2, "{missing}"),
    ("roster show {garbage}", 2, "{garbage}"),
    ("roster show {empty}", 2, "{empty}"),
    ("roster check {garbage}", 2, "{garbage}"),
    ("roster check {roster} --identity {garbage}", 2, "is not a signer's identity.json"),
    ("enclave run --config {missing}", 2, "no configuration file"),
    ("enclave run --config {empty}", 2, "no configuration file"),
    ("enclave accept-rollback s2 --version 1 --boot x --config {missing}", 2, "no configuration file"),
    ("enclave accept-rollback s2 --version 1 --boot x --config {garbage}", 2, "{garbage}"),
    ("signer run --config {garbage}", 2, "{garbage}"),
    ("signer run --config {coordinator}/coordinator.yaml", 2, "coordinator.yaml"),
    ("coordinator run --config {garbage}", 2, "{garbage}"),
    ("coordinator run --config {coordinator}/coordinator.yaml", 2, "roster.yaml"),
    ("coordinator readmit s1 --config {missing}", 2, "no configuration file"),
    ("coordinator readmit nobody --config {coordinator}/coordinator.yaml", 2, "nobody"),
    ("coordinator token x/y", 2, "NAME x/y: an id is letters, digits"),
    ("coordinator token x --out {file}", 2, "{file}"),
    ("coordinator token x --out /proc/nothing/t", 2, "cannot make the directory /proc/nothing: No such file"),
    ("gate secret --config {missing}", 2, "no configuration file"),
    ("gate secret --config {garbage} --generate {new}", 2, "{garbage}"),
    ("gate secret --config {garbage} --generate {file}", 2, "exists: nothing is overwritten"),
    ("gate serve --config {missing}", 2, "no configuration file"),
    ("gate serve --config {garbage}", 2, "{garbage}"),
    ("gate serve --config {gate}/gate.yaml", 2, "gate-secrets.json"),
    ("hsm check", 2, "name the HSM by --config, or by --lib"),
    ("hsm check --config {garbage}", 2, "{garbage}"),
    ("hsm check --lib {missing} --pin file:{pin} --token-label x", 2, "{missing}"),
    ("hsm check --lib {garbage} --pin file:{pin} --token-label x", 2, "{garbage}"),
    ("hsm check --lib {softhsm} --pin {pin} --token-label x", 2, "pin"),
    ("hsm rewrap --config {missing} --signer {garbage}", 2, "{garbage}"),
    ("hsm rewrap --config {garbage} --signer {missing}", 2, "{missing}"),
    ("pki show {missing}", 2, "cannot read the directory"),
    ("pki show {empty}", 2, "no certificate in"),
    ("pki show {bad_pem}", 2, "does not hold certificates in PEM"),
    ("pki renew {empty}", 2, "certificate authority"),
    ("pki renew {bad_pem}", 2, "is not PEM"),
    ("pki renew {coordinator} --days 0", 2, "valid for 1 to"),
    ("keys create --label x --profile {missing}", 2, "no client profile"),
    ("keys create --label x --profile {client}/client.yaml", 3, "Connection refused"),
    ("keys create --label !! --profile {client}/client.yaml", 2, "label"),
    ("keys list --profile {garbage}", 2, "{garbage}"),
    ("keys list --profile {client}/client.yaml", 3, "Connection refused"),
    ("keys list --profile {client}/client.yaml --token {garbage}", 2, "{garbage}"),
    ("keys show " + KEY + " --profile {client}/client.yaml", 3, "Connection refused"),
    ("keys show " + KEY + " --path m/0h --profile {client}/client.yaml", 2, "is not a path"),
    ("keys show " + KEY + " --path m/99999999999 --profile {client}/client.yaml", 2, "path"),
    ("keys show ../../x --profile {client}/client.yaml", 2, "is not a key's id"),
    ("sign hash " + KEY + " zz --profile {client}/client.yaml", 2, "not hex"),
    ("sign hash " + KEY + " abcd --profile {client}/client.yaml", 2, "not a signing request"),
    ("sign hash " + KEY + " " + HASH + " --profile {client}/client.yaml", 3, "Connection refused"),
    ("sign hash nokey " + HASH + " --profile {client}/client.yaml", 2, "is not a key's id"),
    ("sign hash " + KEY + " @{missing} --profile {client}/client.yaml", 2, "cannot read"),
    ("sign hash " + KEY + " @{garbage} --profile {client}/client.yaml", 2, "something else than hex"),
    ("approve " + KEY + " sig_1 --profile {client}/client.yaml", 3, "Connection refused"),
    ("approve nokey sig_1 --profile {client}/client.yaml", 2, "is not a key's id"),
    ("sign batch " + KEY + " {missing} --profile {client}/client.yaml", 2, "cannot read"),
    ("sign batch " + KEY + " {garbage} --profile {client}/client.yaml", 2, "line 1"),
    ("sign batch " + KEY + " {empty_file} --profile {client}/client.yaml", 2, "not a batch"),
    ("sign message " + KEY + " @{empty} --profile {client}/client.yaml", 2, "cannot read"),
    ("sign message " + KEY + " hello --profile {client}/client.yaml", 3, "Connection refused"),
    ("sign typed-data " + KEY + " @{garbage} --profile {client}/client.yaml", 2, "not JSON"),
    ("sign typed-data " + KEY + " @{twice} --profile {client}/client.yaml", 2, "a duplicate key"),
    # The start of a file is never taken for all of it.
    ("sign batch " + KEY + " {big} --profile {client}/client.yaml", 2, "{big} is larger than 262144 bytes"),
    ("sign message " + KEY + " @{big} --profile {client}/client.yaml", 2, "{big} is larger than 262144 bytes"),
    ("gate question --request {big}", 2, "{big} is larger than 524288 bytes"),
    ("freeze {empty} --order {big}", 2, "{big} is larger than 307200 bytes"),
    ("sign typed-data " + KEY + " @{missing} --profile {client}/client.yaml", 2, "cannot read"),
    ("sign typed-data " + KEY + " @{json} --profile {client}/client.yaml", 2, "not a signing request"),
    ("sign ethereum " + KEY + " nothex --profile {client}/client.yaml", 2, "not hex"),
    ("sign bitcoin " + KEY + " @{garbage} --profile {client}/client.yaml", 2, "something else than hex"),
    ("evidence verify {missing} --roster {roster}", 2, "no file {missing}"),
    ("evidence verify {garbage} --roster {missing}", 2, "no file {missing}"),
    ("evidence verify {garbage} --roster {garbage}", 2, "{garbage}"),
    ("bench presign --signers 3 --tolerate 2", 2, "3 signers cannot tolerate 2"),
    ("bench presign --batch 0", 2, "--batch is 1 to"),
    ("bench gate --clients 0", 2, "--clients is 1 to"),
    ("bench policy --rules 0", 2, "--rules is 1 to"),
    ("policy check {missing}", 2, "cannot be read: No such file"),
    ("policy test {missing}", 2, "cannot be read: No such file"),
    ("policy test {empty}", 2, "cannot be read: Is a directory"),
    ("policy test {garbage}", 2, "{garbage}"),
    ("policy explain {garbage} --request {missing} --client x", 2, "{garbage}"),
    ("policy explain {missing} --request {json} --client x", 2, "cannot be read: No such file"),
    ("operator-key a/b", 2, "NAME a/b: an id is letters, digits"),
    ("operator-key x --out {file}", 2, "{file} exists: nothing is overwritten"),
    ("operator-key x --out {file}/k", 2, "cannot make the directory {file}: it is a file"),
    ("operator-key x --out /proc/nothing/k", 2, "cannot make the directory /proc/nothing: No such file"),
    ("freeze --reason x", 2, "name the signer's DIRECTORY to send the order"),
    ("freeze {empty}", 2, "sign the order: --operator ID --key FILE"),
    ("freeze {empty} --operator x --key {missing}", 2, "{missing}"),
    ("freeze --network n --signer s --key {key} --order /proc/order", 2, "cannot write /proc/order"),
    ("unfreeze {empty}", 2, "sign the order: --operator ID --key FILE"),
    ("unfreeze {empty} --operator x --key {garbage}", 2, "{garbage}"),
    ("gate trial-secrets /proc/nothing", 2, "cannot make the directory /proc/nothing: No such file"),
    ("gate trial-secrets {file}", 2, "cannot make the directory {file}: it is a file"),
    ("gate question --kind Reshare --request {garbage}", 2, "give --request or --kind, not both"),
    ("gate check nowhere --ca {missing}", 2, "must be https://"),
    ("gate check " + DEAD + " --ca {missing}", 2, "give the gate's secrets with --secrets"),
    ("gate check " + DEAD + " --ca {missing} --mode status", 2, "{missing}"),
    ("gate check " + DEAD + " --ca {garbage} --mode status", 2, "{garbage}"),
    ("gate question --request {missing}", 2, "cannot read {missing}"),
    ("gate question --request {garbage}", 2, "{garbage}"),
    ("bench online --concurrency 0", 2, "at least 1"),
    ("bench wan --delay-ms 0", 2, "--delay-ms is more than 0"),
    ("bench load --clients 0", 2, "--clients is 1 to"),
    ("bench gate --seconds 0", 2, "--seconds at most"),
    ("bench load --keys 0", 2, "--keys is 1 to"),
]


@pytest.fixture
def keymoot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Keymoot:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"not secrets")))
    for name in ("KEYMOOT_PROFILE", "KEYMOOT_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    return Keymoot(monkeypatch, capsys)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files and directories, by the names that the table uses."""
    root = tmp_path_factory.mktemp("mistakes")
    made = {name: root / name for name in ("missing", "garbage", "empty", "file", "bad_pem", "json")}
    made |= {name: root / name for name in ("empty_file", "big", "twice")}
    made["big"].write_text("\n" * 600 * 1024)
    made["twice"].write_text('{"a": 1, "a": 2}')
    made["garbage"].write_bytes(bytes(range(256)) * 4)
    made["empty"].mkdir()
    made["file"].write_text("a file\n")
    made["json"].write_text('{"a": 1}')
    made["empty_file"].write_text("")
    made["bad_pem"].mkdir()
    for name in ("ca.pem", "ca.key", "server.pem", "server.key"):
        (made["bad_pem"] / name).write_bytes(b"-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n")
    made["key"] = root / "key"
    save_client_key(generate_client_key("key"), made["key"])
    made["pin"] = root / "pin"
    made["pin"].touch(0o600)
    made["pin"].write_text("1234")
    made["coordinator"] = root / "coordinator"
    configure.write_coordinator(made["coordinator"], templates.CoordinatorSetup("net", "c"))
    ca = (made["coordinator"] / "ca.pem").read_bytes()
    made["gate"] = root / "gate"
    configure.write_gate(made["gate"], templates.GateSetup("gate", "127.0.0.1:8090"))
    made["client"] = root / "client"
    configure.write_client(made["client"], templates.ClientSetup("net", "me", DEAD, ca))
    identities = [write_identity(root / f"{name}.json", an_identity(name)) for name in ("a", "b", "c")]
    made["roster"] = made["client"] / "roster.yaml"
    _assemble(identities, made["roster"])
    named = {name: str(path) for name, path in made.items()}
    return named | {
        "identities": " ".join(map(str, identities)),
        "dead": DEAD,
        "too_long": "n" * 300,
        "softhsm": next((lib for lib in SOFTHSM_LIBS if Path(lib).exists()), SOFTHSM_LIBS[0]),
    }


def _assemble(identities: list[Path], out: Path) -> None:
    from appliance import enrolment

    made = enrolment.make_roster([enrolment.read_identity(path) for path in identities], 1)
    out.write_text(enrolment.roster_yaml(made))


@pytest.mark.parametrize(("arguments", "code", "said"), MISTAKES, ids=[row[0][:60] for row in MISTAKES])
def test_a_mistake_is_one_sentence_and_an_exit_code(
    keymoot: Keymoot,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTHSM2_CONF", str(_softhsm(tmp_path)))
    filled = places | {"new": str(tmp_path / "new")}
    outcome = _run(keymoot, [word.format(**filled) for word in arguments.split()])
    assert outcome.code == code, outcome.err
    assert said.format(**filled) in outcome.err
    assert outcome.err.startswith("keymoot: ")
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    # What was not finished is not left behind: the same command can be given again.
    assert not (tmp_path / "new").exists()


def _run(keymoot: Keymoot, words: list[str]) -> Outcome:
    """In this process, but for `enclave run`, which becomes another program."""
    expanded: list[str] = []
    for word in words:
        expanded += word.split() if word.count(".json ") else [word]
    if expanded[:2] != ["enclave", "run"] or "garbage" not in " ".join(expanded):
        return keymoot(*expanded)
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", *expanded], capture_output=True, text=True, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def _softhsm(directory: Path) -> Path:
    """A SoftHSM without any token."""
    (directory / "tokens").mkdir()
    conf = directory / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {directory / 'tokens'}\nobjectstore.backend = file\n")
    return conf


def commands() -> Iterator[tuple[str, object]]:
    """Every command by its words, and typer's command."""
    yield from _walk(typer.main.get_command(app), ())


def _walk(command: object, words: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield " ".join(words), command
        return
    for name, child in children.items():
        yield from _walk(child, (*words, name))


def test_every_command_is_tried_with_a_mistake() -> None:
    tried = [row[0] for row in MISTAKES]
    without = {"demo", "completion", "gate openapi", "policy schema"}  # have nothing to get wrong but their options
    untried = [name for name, _ in commands() if not any(f"{row} ".startswith(f"{name} ") for row in tried)]
    assert set(untried) == without, "give every new command a row in MISTAKES"


def test_every_command_with_a_result_has_json() -> None:
    with_json = {name for name, command in commands() if any("--json" in one.opts for one in command.params)}  # type: ignore[attr-defined]
    assert {name for name, _ in commands()} - with_json == WITHOUT_JSON


def test_no_command_has_options_that_only_it_explains() -> None:
    for name, command in commands():
        for one in command.params:  # type: ignore[attr-defined]
            assert getattr(one, "help", "") or name in WITHOUT_JSON, f"{name}: {one.name} has no help"


def test_standard_output_is_one_json_object_and_nothing_else(
    keymoot: Keymoot, places: dict[str, str], tmp_path: Path
) -> None:
    ca = f"{places['coordinator']}/ca.pem"
    runs = [
        ["scheme", "--signers", "3", "--tolerate", "1"],
        ["init", "coordinator", tmp_path / "c", "--network", "net"],
        ["init", "client", tmp_path / "k", "--network", "net", "--name", "me", "--api", DEAD, "--api-ca", ca],
        ["init", "gate", tmp_path / "g"],
        ["roster", "assemble", *places["identities"].split(), "--tolerate", "1", "--out", tmp_path / "r.yaml"],
        ["roster", "show", places["roster"]],
        ["roster", "check", places["roster"]],
        ["coordinator", "token", "prometheus", "--out", tmp_path / "t"],
        ["pki", "show", places["coordinator"]],
        ["pki", "renew", places["coordinator"]],
    ]
    for words in runs:
        outcome = keymoot(*words, "--json")
        assert (outcome.code, outcome.err) == (0, ""), words
        assert isinstance(json.loads(outcome.out), dict)
        assert outcome.out.count("\n") == 1


def test_an_unreachable_network_is_told_as_json_too(keymoot: Keymoot, places: dict[str, str]) -> None:
    outcome = keymoot("status", "--profile", f"{places['client']}/client.yaml", "--json")
    assert outcome.code == 3
    shown = json.loads(outcome.out)
    assert (shown["status"], shown["findings"][0]["subject"]) == ("unreachable", "coordinator")


@pytest.mark.skipif(not os.access("/bin/bash", os.X_OK), reason="bash is not installed")
def test_bash_completes_commands_and_options() -> None:
    script = """
    eval "$($PYTHON -m appliance.cli completion bash)"
    keymoot() { "$PYTHON" -m appliance.cli "$@"; }
    complete_words() {
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        _keymoot_completion "$DIRECTORY/keymoot"
        echo "${COMPREPLY[@]}"
    }
    complete_words keymoot ros
    complete_words keymoot roster ""
    complete_words keymoot pki show --js
    """
    done = subprocess.run(
        ["/bin/bash", "--norc", "-euc", script],
        env={**os.environ, "PYTHON": sys.executable, "DIRECTORY": str(Path(sys.executable).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["roster", "assemble show check", "--json"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(keymoot: Keymoot, shell: str) -> None:
    outcome = keymoot("completion", shell)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"_KEYMOOT_COMPLETE=complete_{shell}" in outcome.out

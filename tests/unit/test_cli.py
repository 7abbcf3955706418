"""The command line's answers to mistakes: one sentence, an exit code, never a stack trace."""

from __future__ import annotations

import base64
import io
import json
import stat
from pathlib import Path

import msgspec
import pytest

from appliance import cli
from appliance.cli.app import app
from appliance.cli.keys import parse_path
from appliance.cli.output import working
from appliance.enrolment import Identity, new_secrets
from policies.errors import Bug, CallerError, KeymootError, Refused, Unavailable
from tests.fakes.command_line import Keymoot, an_identity, write_identity


@pytest.fixture
def keymoot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Keymoot:
    return Keymoot(monkeypatch, capsys)


def test_help_names_every_command(keymoot: Keymoot) -> None:
    shown = keymoot("--help")
    assert shown.code == 0
    named = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    named |= {group.name for group in app.registered_groups if group.name}
    assert len(named) > 20
    for command in named:
        assert f" {command} " in shown.out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CallerError("x"), 2),
        (Unavailable("x", "y"), 3),
        (Refused("x", "y"), 4),
        (Bug("x"), 1),
        (KeymootError("x"), 1),
    ],
)
def test_every_root_has_its_exit_code(error: KeymootError, code: int) -> None:
    assert cli.exit_code(error) == code


def test_errors_of_the_api_have_exit_codes_by_who_is_to_act() -> None:
    from appliance.api.client import ApiError, Failed, Rejected

    assert cli.exit_code(Rejected("signer-2", "gate", "no")) == 4
    assert cli.exit_code(ApiError(409, "conflict", "another body")) == 2
    assert cli.exit_code(ApiError(503, "signers-offline", "1 of 3")) == 3
    assert cli.exit_code(Failed("timeout", "no result")) == 1


def test_an_answer_that_is_not_to_be_believed_is_no_mistake_of_the_caller() -> None:
    """It was exit code 2, as a wrong option is."""
    from appliance.api.client import CertificateRefused, SignatureRefused

    assert cli.exit_code(CertificateRefused("signed by nobody")) == 1
    assert cli.exit_code(SignatureRefused("not over what was asked for")) == 1


def test_a_certificate_that_is_refused_says_what_to_do(keymoot: Keymoot, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.api.client import CertificateRefused

    def refuse() -> None:
        raise CertificateRefused("the key belongs to network b, not to a")

    monkeypatch.setattr("appliance.cli.app.app", refuse)
    said = keymoot("keys", "list")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith(
        "keymoot: the key belongs to network b, not to a. Nothing of the key was shown or used. "
    )
    assert said.err.endswith("one of the files is another.\n")


@pytest.mark.parametrize(
    "words",
    [
        ("sign", "message", "key_" + "ab" * 16, "caf\udce9"),
        ("scheme", "--signers", "3", "--tolerate", "1", "--operators", "caf\udce9=3", "--json"),
        ("roster", "show", "caf\udce9"),
    ],
)
def test_an_argument_that_is_no_text_is_a_mistake(keymoot: Keymoot, words: tuple[str, ...]) -> None:
    said = keymoot(*words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(r"keymoot: an argument is not UTF-8: caf\xe9")


def test_what_others_wrote_is_no_markup_and_moves_no_cursor(keymoot: Keymoot, tmp_path: Path) -> None:
    """An operator's name is anything: it could have hidden the fingerprint that is to be compared."""
    from appliance import enrolment

    hostile = "[/]Bank [red]\x1b[2K\u202e"
    identities = [an_identity(name) for name in ("a", "b", "c")]
    made = enrolment.make_roster([msgspec.structs.replace(identities[0], operator=hostile), *identities[1:]], 1)
    path = tmp_path / "roster.yaml"
    path.write_text(enrolment.roster_yaml(made))
    shown = keymoot("roster", "show", path)
    assert shown.code == 0
    assert "[/]Bank [red]" in shown.out
    assert shown.out.replace("\n", "").isprintable()
    assert all(identity.fingerprint in shown.out for identity in identities)


def test_progress_shows_any_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with working("Checking [/etc]…") as tell:
        tell("Checking [/a]\x07…")
    assert "Checking [/" in terminal.getvalue()
    assert "\x07" not in terminal.getvalue()


def test_a_message_stays_on_one_line() -> None:
    assert cli.one_line(CallerError("first\nsecond\x1b[31m")) == "first second [31m"


@pytest.mark.parametrize("process", ["enclave", "signer", "coordinator"])
def test_a_missing_configuration_says_how_to_make_one(keymoot: Keymoot, tmp_path: Path, process: str) -> None:
    path = tmp_path / "none.yaml"
    outcome = keymoot(process, "run", "--config", path)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err == (
        f"keymoot: no configuration file {path}: make one with `keymoot init`, or name it with --config\n"
    )


@pytest.mark.parametrize("process", ["signer", "coordinator"])
def test_an_unknown_field_is_named_with_line_and_column(keymoot: Keymoot, tmp_path: Path, process: str) -> None:
    path = tmp_path / f"{process}.yaml"
    path.write_text("network: net\n  # a comment\nnetwrk: net\n")
    outcome = keymoot(process, "run", "--config", path)
    assert outcome.code == 2
    assert outcome.err.startswith(f"keymoot: {path}:3:1: unknown field `netwrk`")
    assert "Traceback" not in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_client_without_profile_is_told_how_to_get_one(keymoot: Keymoot, tmp_path: Path) -> None:
    outcome = keymoot("keys", "list", "--profile", tmp_path / "client.yaml")
    assert (outcome.code, outcome.out) == (2, "")
    assert "keymoot init client" in outcome.err


def test_an_api_that_is_away_is_unavailable(keymoot: Keymoot, tmp_path: Path) -> None:
    keymoot("init", "coordinator", tmp_path / "c", "--network", "net")
    # Port 9 of loopback: nobody listens there.
    made = keymoot(
        *("init", "client", tmp_path / "p", "--network", "net", "--name", "me", "--api", "https://127.0.0.1:9"),
        *("--api-ca", tmp_path / "c" / "ca.pem"),
    )
    assert made.code == 0, made.err
    identities = [write_identity(tmp_path / f"{name}.json", an_identity(name)) for name in ("a", "b", "c")]
    assert keymoot("roster", "assemble", *identities, "--tolerate", "1", "-o", tmp_path / "p" / "roster.yaml").code == 0
    outcome = keymoot("keys", "list", "--profile", tmp_path / "p" / "client.yaml")
    assert outcome.code == 3
    assert outcome.err.startswith("keymoot: API https://127.0.0.1:9: ")


def test_init_coordinator_writes_private_keys_for_the_owner_alone(keymoot: Keymoot, tmp_path: Path) -> None:
    outcome = keymoot("init", "coordinator", tmp_path / "c", "--network", "net")
    assert outcome.code == 0
    assert "Next:" in outcome.out
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((tmp_path / "c" / name).stat().st_mode) == 0o600
    assert (tmp_path / "c" / "coordinator.yaml").read_text().startswith("# The coordinator: ")


def test_init_overwrites_nothing(keymoot: Keymoot, tmp_path: Path) -> None:
    keymoot("init", "coordinator", tmp_path / "c", "--network", "net")
    before = (tmp_path / "c" / "ca.key").read_bytes()
    outcome = keymoot("init", "coordinator", tmp_path / "c", "--network", "net")
    assert outcome.code == 2
    assert "nothing is overwritten" in outcome.err
    assert (tmp_path / "c" / "ca.key").read_bytes() == before


def test_a_roster_is_assembled_shown_and_checked(keymoot: Keymoot, tmp_path: Path) -> None:
    identities = {name: an_identity(name) for name in ("a", "b", "c")}
    paths = [write_identity(tmp_path / f"{name}.json", identity) for name, identity in identities.items()]
    roster = tmp_path / "roster.yaml"
    made = keymoot("roster", "assemble", *paths, "--tolerate", "1", "--out", roster)
    assert made.code == 0, made.err
    assert "3 signers, tolerate 1: all 3 online to sign, 2 shares reconstruct" in made.out
    shown = json.loads(keymoot("roster", "show", roster, "--json").out)
    assert [signer["fingerprint"] for signer in shown["signers"]] == [one.fingerprint for one in identities.values()]
    assert keymoot("roster", "check", roster, "--identity", paths[1]).code == 0


def test_a_roster_with_another_key_for_a_signer_fails_the_check(keymoot: Keymoot, tmp_path: Path) -> None:
    paths = [write_identity(tmp_path / f"{name}.json", an_identity(name)) for name in ("a", "b", "c")]
    roster = tmp_path / "roster.yaml"
    keymoot("roster", "assemble", *paths, "--tolerate", "1", "--out", roster)
    write_identity(paths[1], an_identity("b"))
    outcome = keymoot("roster", "check", roster, "--identity", paths[1])
    assert outcome.code == 2
    assert "lists another key for b" in outcome.err


@pytest.mark.parametrize(
    ("names", "networks", "tolerate", "said"),
    [
        (("a", "b", "c"), ("net", "net", "other"), 1, "different networks: net, other"),
        (("a", "b", "c"), ("net", "net", "net"), 2, "3 signers cannot tolerate 2"),
        (("a", "b", "a"), ("net", "net", "net"), 1, "two signers have the same name"),
        (("a", "b"), ("net", "net"), 1, "no roster can be made"),
    ],
)
def test_signers_that_do_not_fit_make_no_roster(
    keymoot: Keymoot, tmp_path: Path, names: tuple[str, ...], networks: tuple[str, ...], tolerate: int, said: str
) -> None:
    paths = [
        write_identity(tmp_path / f"{number}.json", an_identity(name, network))
        for number, (name, network) in enumerate(zip(names, networks, strict=True))
    ]
    outcome = keymoot("roster", "assemble", *paths, "--tolerate", str(tolerate), "-o", tmp_path / "roster.yaml")
    assert outcome.code == 2
    assert said in outcome.err
    assert not (tmp_path / "roster.yaml").exists()


def test_an_identity_whose_fingerprint_is_not_its_keys_is_refused(keymoot: Keymoot, tmp_path: Path) -> None:
    one, other = an_identity("a"), an_identity("b")
    swapped = Identity(one.network, one.name, one.operator, other.identity_key, one.fingerprint)
    path = write_identity(tmp_path / "a.json", swapped)
    outcome = keymoot("roster", "assemble", path, path, path, "--tolerate", "1", "-o", tmp_path / "r")
    assert outcome.code == 2
    assert "the fingerprint is not that of the key" in outcome.err


def test_paths_are_bip32_and_not_hardened() -> None:
    assert parse_path("m") == ()
    assert parse_path("m/0/5") == (0, 5)
    for text in ("", "0/5", "m/", "m/0'", "m/-1", "m/0x1", "M/1", "m/²"):
        with pytest.raises(CallerError, match="non-hardened"):
            parse_path(text)


@pytest.mark.parametrize("text", ["", "0x", "0x123", "0xzz", "@/does/not/exist"])
def test_signing_something_that_is_no_hex_is_the_callers_mistake(keymoot: Keymoot, text: str) -> None:
    outcome = keymoot("sign", "ethereum", "key_" + "0" * 32, text)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("presign", "--signers", "4", "--tolerate", "2"),
        ("presign", "--batch", "0"),
        ("online", "--concurrency", "0"),
        ("load", "--clients", "0"),
        ("load", "--seconds", "0"),
        ("load", "--hashes", "1001"),
        ("wan", "--delay-ms", "0"),
        ("gate", "--clients", "0"),
    ],
)
def test_impossible_benchmarks_are_refused_before_anything_starts(keymoot: Keymoot, arguments: tuple[str, ...]) -> None:
    outcome = keymoot("bench", *arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


def test_new_gate_secrets_are_fresh_and_different_in_each_direction() -> None:
    pairs = [json.loads(new_secrets()) for _ in range(2)]
    values = [value for pair in pairs for value in pair.values()]
    assert {tuple(sorted(pair)) for pair in pairs} == {("answer_hmac", "request_hmac")}
    assert len(set(values)) == 4
    assert all(len(base64.b64decode(value.removeprefix("whsec_"))) == 32 for value in values)

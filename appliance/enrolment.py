"""Enrolment: making a signer's identity in its HSM, exchanging identities, assembling the roster, gate secrets.

Whatever needs the HSM runs in a fresh interpreter with the enclave alone, never in this process.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import nacl.signing

from appliance import pki
from appliance.templates import quoted
from policies.errors import CallerError, Unavailable
from policies.roster import Roster, RosterSigner, describe_scheme, identity_fingerprint

IDENTITY_FILE = "identity.json"
MAX_IDENTITY_BYTES = 16 * 1024
ENCLAVE_TOOL_TIMEOUT_S = 120
SECRET_BYTES = 32
SECRET_NAMES = ("request_hmac", "answer_hmac")
_EXIT_CALLER = 2


class RunAs(Protocol):
    """Whom a tool runs as."""

    @property
    def uid(self) -> int:
        """User id."""

    @property
    def gid(self) -> int:
        """Group id."""

    @property
    def groups(self) -> tuple[int, ...]:
        """All groups."""


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a signer's operator sends to the others: `identity.json`. Holds nothing secret."""

    network: str
    name: str
    operator: str
    identity_key: str
    fingerprint: str


class Provisioned(msgspec.Struct, frozen=True):
    """What `enclave provision` prints."""

    identity_key: str
    fingerprint: str
    profile: str


def enclave_command(action: str, config: Path) -> list[str]:
    """The command line of a fresh interpreter with the enclave alone. Raises `CallerError` without the file."""
    return [sys.executable, "-I", "-m", "enclave", action, "--config", str(require_file(config).resolve())]


def require_file(path: Path) -> Path:
    """`path`, or `CallerError` where there is no file."""
    if not path.is_file():
        raise CallerError(f"no configuration file {path}: make one with `keymoot init`, or name it with --config")
    return path


def run_enclave_tool(
    arguments: list[str],
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    timeout_s: float = ENCLAVE_TOOL_TIMEOUT_S,
    user: RunAs | None = None,
) -> bytes:
    """Standard output of a short-lived enclave command. What it says on standard error becomes the error.

    Raises `CallerError` (its exit code 2), `Unavailable` for any other failure.
    """
    try:
        done = subprocess.run(  # noqa: S603
            arguments,
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=environment,
            user=None if user is None else user.uid,
            group=None if user is None else user.gid,
            extra_groups=None if user is None else user.groups,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the HSM did not answer in {timeout_s:.0f} s", "check the module and the token") from None
    if done.returncode == 0:
        return done.stdout
    said = _last_line(done.stderr)
    if done.returncode == _EXIT_CALLER:
        raise CallerError(said)
    raise Unavailable(said, f"said by `{' '.join(arguments[2:5])}`")


def provision(
    directory: Path,
    network: str,
    name: str,
    operator: str,
    environment: Mapping[str, str] | None = None,
    user: RunAs | None = None,
) -> tuple[Identity, str]:
    """Make or find the HSM's keys for `directory`/enclave.yaml and write `identity.json` there.

    Returns the identity and the sealing profile. Raises `CallerError` and `Unavailable` with what the enclave said.
    """
    output = run_enclave_tool(enclave_command("provision", directory / "enclave.yaml"), b"", environment, user=user)
    try:
        made = msgspec.json.decode(output, type=Provisioned)
    except msgspec.DecodeError as error:
        raise Unavailable(f"`enclave provision` answered something unexpected: {error}", "report it") from None
    identity = Identity(network, name, operator, made.identity_key, made.fingerprint)
    fingerprint_of(identity)
    text = json.dumps(msgspec.to_builtins(identity), indent=2, ensure_ascii=False) + "\n"
    pki.write_new(directory / IDENTITY_FILE, text.encode())
    return identity, made.profile


def read_identity(path: Path) -> Identity:
    """An exported identity whose fingerprint is that of its key. Raises `CallerError` otherwise."""
    try:
        with path.open("rb") as file:
            identity = msgspec.json.decode(file.read(MAX_IDENTITY_BYTES), type=Identity)
    except OSError as error:
        raise CallerError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(f"{path} is not a signer's identity.json: {error}") from None
    if fingerprint_of(identity) != identity.fingerprint:
        raise CallerError(f"{path}: the fingerprint is not that of the key: ask {identity.operator} for it again")
    return identity


def fingerprint_of(identity: Identity) -> str:
    """The fingerprint computed from the identity's key. Raises `CallerError` where it is no P-256 point."""
    try:
        point = RosterSigner(1, identity.name, identity.operator, identity.identity_key).identity_point
    except ValueError as error:
        raise CallerError(str(error)) from None
    return identity_fingerprint(point)


def make_roster(identities: list[Identity], tolerate: int) -> Roster:
    """A roster with indices in the order given. Raises `CallerError` where they do not fit together."""
    networks = sorted({identity.network for identity in identities})
    if len(networks) != 1:
        raise CallerError(f"these signers belong to different networks: {', '.join(networks)}")
    try:
        return msgspec.convert(
            {
                "version": 1,
                "network": networks[0],
                "tolerate": tolerate,
                "signers": [
                    {
                        "index": index,
                        "name": identity.name,
                        "operator": identity.operator,
                        "identity_key": identity.identity_key,
                    }
                    for index, identity in enumerate(identities, start=1)
                ],
            },
            Roster,
        )
    except msgspec.ValidationError as error:
        raise CallerError(f"no roster can be made of these signers: {error}") from None


def roster_yaml(roster: Roster) -> str:
    """The roster as a commented YAML file."""
    signers = "".join(
        f"  - index: {signer.index}\n"
        f"    name: {quoted(signer.name)}\n"
        f"    operator: {quoted(signer.operator)}\n"
        f"    # fingerprint {signer.fingerprint}\n"
        f"    identity_key: {quoted(signer.identity_key)}\n"
        for signer in roster.signers
    )
    return (
        f"# {describe_scheme(roster.n, roster.tolerate)}.\n"
        "# Every operator compares the fingerprints with the others and keeps this file as it is.\n"
        f"version: {roster.version}\nnetwork: {quoted(roster.network)}\n"
        f"# How many signers may be corrupted.\ntolerate: {roster.tolerate}\nsigners:\n{signers}"
    )


def new_secrets() -> bytes:
    """A fresh pair, one secret for each direction, as the JSON that both sides read."""
    pair = {name: "whsec_" + base64.b64encode(os.urandom(SECRET_BYTES)).decode() for name in SECRET_NAMES}
    return (json.dumps(pair) + "\n").encode()


def new_secret_files(*, ed25519: bool = False) -> tuple[bytes, bytes]:
    """Fresh secrets as the enclave's and as the handler's JSON: the same pair, and with `ed25519` a key pair for each
    direction instead, of which each side has its own private key alone."""
    if not ed25519:
        return (pair := new_secrets()), pair
    request, answer = (nacl.signing.SigningKey.generate() for _ in SECRET_NAMES)
    enclave = {"request_ed25519": _private(request), "answer_ed25519": _public(answer)}
    handler = {"request_ed25519": _public(request), "answer_ed25519": _private(answer)}
    return (json.dumps(enclave) + "\n").encode(), (json.dumps(handler) + "\n").encode()


def _private(key: nacl.signing.SigningKey) -> str:
    return "whsk_" + base64.b64encode(key.encode() + key.verify_key.encode()).decode()


def _public(key: nacl.signing.SigningKey) -> str:
    return "whpk_" + base64.b64encode(key.verify_key.encode()).decode()


def _last_line(stderr: bytes) -> str:
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("keymoot enclave: ") if lines else "the enclave ended without a word"

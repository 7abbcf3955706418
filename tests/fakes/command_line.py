"""The command line run in this process, and files that it is given."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance import cli
from appliance.enrolment import Identity, fingerprint_of


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


class Keymoot:
    """Runs `keymoot` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> Outcome:
        self._monkeypatch.setattr("sys.argv", ["keymoot", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        seen = self._capsys.readouterr()
        code = ended.value.code
        return Outcome(0 if code is None else int(code), seen.out, seen.err)


def an_identity(name: str, network: str = "net") -> Identity:
    point = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    )
    made = Identity(network, name, f"operator of {name}", base64.b64encode(point).decode(), "")
    return Identity(made.network, made.name, made.operator, made.identity_key, fingerprint_of(made))


def write_identity(path: Path, identity: Identity) -> Path:
    path.write_text(json.dumps({name: getattr(identity, name) for name in identity.__struct_fields__}))
    return path

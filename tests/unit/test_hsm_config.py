"""PIN references and the `hsm` section of the configuration."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from enclave.hsm.config import HsmConfig, read_pin
from enclave.hsm.errors import HsmMisconfigured

SECTION = {"lib": "/lib/x.so", "token_label": "one", "pin": "file:pin"}


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [b"1234", b"1234\n", b"1234\r\n"])
def test_pin_from_a_file(tmp_path: Path, content: bytes) -> None:
    assert read_pin(f"file:{write(tmp_path / 'pin', content)}", {}) == "1234"


def test_pin_keeps_inner_and_leading_white_space(tmp_path: Path) -> None:
    assert read_pin(f"file:{write(tmp_path / 'pin', b' 12 34 ')}", {}) == " 12 34 "


def test_pin_from_a_systemd_credential(tmp_path: Path) -> None:
    write(tmp_path / "hsm-pin", b"1234", 0o400)
    assert read_pin("credential:hsm-pin", {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "1234"


def test_credential_without_systemd() -> None:
    with pytest.raises(HsmMisconfigured, match="LoadCredential=hsm-pin"):
        read_pin("credential:hsm-pin", {})


def test_credential_cannot_leave_its_directory(tmp_path: Path) -> None:
    with pytest.raises(HsmMisconfigured, match="must be file:PATH or credential:NAME"):
        read_pin("credential:../pin", {"CREDENTIALS_DIRECTORY": str(tmp_path)})


@pytest.mark.parametrize("reference", ["1234", "env:PIN", "file:", "credential:", ""])
def test_other_references_are_refused_without_echo(reference: str) -> None:
    with pytest.raises(HsmMisconfigured, match="must be file:PATH or credential:NAME") as caught:
        read_pin(reference, {})
    assert "1234" not in str(caught.value)


def test_missing_pin_file(tmp_path: Path) -> None:
    with pytest.raises(HsmMisconfigured, match="No such file"):
        read_pin(f"file:{tmp_path / 'none'}", {})


@pytest.mark.parametrize("content", [b"", b"\n", b"9" * 257], ids=["empty", "newline", "too long"])
def test_pin_size(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(HsmMisconfigured, match="1 to 256 bytes") as caught:
        read_pin(f"file:{write(tmp_path / 'pin', content)}", {})
    assert "9" * 9 not in str(caught.value)


def test_pin_must_be_text(tmp_path: Path) -> None:
    with pytest.raises(HsmMisconfigured, match="not UTF-8"):
        read_pin(f"file:{write(tmp_path / 'pin', bytes((0xFF, 0x31)))}", {})


def test_pin_file_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HsmMisconfigured, match="chmod o-rwx"):
        read_pin(f"file:{write(tmp_path / 'pin', b'1234', 0o644)}", {})


def test_defaults_and_relative_pin_path() -> None:
    config = msgspec.convert(SECTION, HsmConfig)
    assert config == HsmConfig(
        lib="/lib/x.so",
        pin="file:pin",
        token_label="one",
        slot=None,
        sealing_key_label="keymoot-seal-1",
        identity_key_label="keymoot-identity",
        retired_key_labels=(),
        init_args=None,
        accept_key_export=False,
    )
    assert config.resolved(Path("/etc/keymoot")).pin == "file:/etc/keymoot/pin"
    absolute = msgspec.structs.replace(config, pin="file:/run/pin")
    assert absolute.resolved(Path("/etc/keymoot")).pin == "file:/run/pin"
    credential = msgspec.structs.replace(config, pin="credential:pin")
    assert credential.resolved(Path("/etc/keymoot")) == credential


@pytest.mark.parametrize(
    "change",
    [
        {"slot": 1},
        {"pin": "1234"},
        {"pin": "credential:../x"},
        {"lib": ""},
        {"token_label": "x" * 33},
        {"sealing_key_label": ""},
        {"sealing_key_label": "a b"},
    ],
)
def test_refused_sections(change: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**SECTION, **change}, HsmConfig)

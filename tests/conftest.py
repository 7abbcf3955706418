"""Fixtures that several test folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pkcs11
import pytest

from tests.fakes.softhsm import SoftToken, library


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftToken]:
    """A fresh SoftHSM token that this process's next module opening will see."""
    made = SoftToken(tmp_path / "hsm", "keymoot-test")
    monkeypatch.setenv("SOFTHSM2_CONF", str(made.create()))
    yield made
    loaded = pkcs11.lib(str(library()))
    # A test that failed half-way left the module initialized with its own token directory.
    loaded.finalize()

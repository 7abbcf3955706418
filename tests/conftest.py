"""Fixtures that several test folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pkcs11
import pytest

from tests.fakes.softhsm import SoftToken, library


@pytest.hookimpl(tryfirst=True)  # before the distribution reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A parallel run takes a file as a whole, and all that start real networks one after the other, from the start."""
    for item in items:
        system = item.path.parent.name == "system"
        item.add_marker(pytest.mark.xdist_group("system" if system else item.path.stem))
    items.sort(key=lambda item: item.path.parent.name != "system")


def pytest_collection_finish(session: pytest.Session) -> None:
    """A parallel run without its groups would start two networks at once, and each module's more than once."""
    if getattr(session.config.option, "loadgroup", False) and any("@" not in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist does not group tests with this version of pytest: install another")


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftToken]:
    """A fresh SoftHSM token that this process's next module opening will see."""
    made = SoftToken(tmp_path / "hsm", "keymoot-test")
    monkeypatch.setenv("SOFTHSM2_CONF", str(made.create()))
    yield made
    loaded = pkcs11.lib(str(library()))
    # A test that failed half-way left the module initialized with its own token directory.
    loaded.finalize()

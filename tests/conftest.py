"""Fixtures that several test folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pkcs11
import pytest
from hypothesis import settings

from tests.fakes.softhsm import SoftToken, library

# Of the tests that start real networks, those that wait more than they compute: they run beside the others.
LATE = frozenset({"test_certificates_end", "test_disks_put_back", "test_gates_at_work", "test_rewrap"})
# A machine that does other things, too, is slow; that is no fault of an example.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.hookimpl(tryfirst=True)  # before the distribution reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A parallel run takes a file as a whole. One process begins with the real networks, one after the other; the next
    with all else, and ends with the rest of the networks."""
    turns = {item: _turn(item) for item in items}
    for item in items:
        group = {0: "system", 1: item.path.stem, 2: "system-late"}[turns[item]]
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=turns.__getitem__)


def _turn(item: pytest.Item) -> int:
    if item.path.parent.name != "system":
        return 1
    return 2 if item.path.stem in LATE else 0


def pytest_collection_finish(session: pytest.Session) -> None:
    """A parallel run without its groups would start two networks at once, and each module's more than once."""
    if getattr(session.config.option, "loadgroup", False) and any("@" not in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist does not group tests with this version of pytest: install another")


@pytest.fixture(autouse=True, scope="session")
def loggers_are_set_up_anew() -> Iterator[None]:
    """A process sets its loggers up once for good; here one test's would be those of all that come after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.telemetry.LOGGERS_FOR_GOOD", False)
        yield


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftToken]:
    """A fresh SoftHSM token that this process's next module opening will see."""
    made = SoftToken(tmp_path / "hsm", "keymoot-test")
    monkeypatch.setenv("SOFTHSM2_CONF", str(made.create()))
    yield made
    loaded = pkcs11.lib(str(library()))
    # A test that failed half-way left the module initialized with its own token directory.
    loaded.finalize()

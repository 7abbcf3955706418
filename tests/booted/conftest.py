"""The package that all tests of booted systems and containers install, built once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.booted import image


@pytest.fixture(scope="session")
def building() -> Iterator[Future[Path]]:
    """Goes on while something else is made."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(image.build_package)


@pytest.fixture(scope="session")
def package(building: Future[Path]) -> Path:
    return building.result()

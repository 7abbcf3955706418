"""Who may import whom, and what is never in an enclave's process."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import enclave
import policies

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "ssl",
    "_ssl",
    "http",
    "urllib.request",
    "asyncio",
    "aiohttp",
    "structlog",
    "prometheus_client",
    "appliance",
}
PROGRAM = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def _modules_of(package: object) -> list[str]:
    path, name = package.__path__, package.__name__  # type: ignore[attr-defined]
    found = [name, *(module.name for module in pkgutil.walk_packages(path, name + "."))]
    return [module for module in found if not module.endswith("__main__")]


def _loaded_after_importing(modules: list[str]) -> set[str]:
    """`sys.modules` of a fresh interpreter, started as the enclave is."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, json.dumps(modules)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_an_enclave_has_no_network_stack_and_nothing_of_the_appliance() -> None:
    modules = [*_modules_of(enclave), "enclave.__main__"]
    assert len(modules) > 30
    loaded = _loaded_after_importing(modules)
    assert set(modules) <= loaded
    assert loaded & FORBIDDEN == set()


def test_policies_are_pure() -> None:
    loaded = _loaded_after_importing(_modules_of(policies))
    assert loaded & (FORBIDDEN | {"enclave", "cryptography", "nacl", "coincurve", "pkcs11"}) == set()


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kept, 0 broken" in done.stdout


def test_packaging_is_no_package() -> None:
    """It would shadow the distribution `packaging`, which our tools need."""
    assert not (ROOT / "packaging" / "__init__.py").exists()


def test_help_is_quick_because_it_loads_little() -> None:
    program = "import sys\nfrom appliance.cli.app import app\nprint([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["aiohttp", "asyncio", "cryptography", "sqlalchemy", "coincurve", "eth_account", "structlog", "yaml"]
    done = subprocess.run([sys.executable, "-I", "-c", program, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

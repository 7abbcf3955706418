"""The specification and the code cite each other without a gap; documents name nothing they must not."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "enclave" / "protocol" / "SPEC.md"
STEP = re.compile(r"^\*\*(\d+\.\d+[a-z]?)\*\*", re.MULTILINE)
CITATION = re.compile(r"SPEC (\d+\.\d+[a-z]?)((?:(?:, | and | to |–)\d+\.\d+[a-z]?)*)")
NUMBER = re.compile(r"(\d+)\.(\d+)([a-z]?)")
# Addresses of the real internet: examples use `example`, `.invalid` or loopback.
REAL_ADDRESS = re.compile(
    r"https?://(?!127\.0\.0\.1|[\w.-]*\bexample\b|[\w.-]+\.invalid\b)[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"
)
LICENCE = "LICENSE"


def _steps() -> set[str]:
    return set(STEP.findall(SPEC.read_text()))


def _cited(files: list[Path]) -> dict[str, Path]:
    """Every step that some file cites: `SPEC 3.2`, `SPEC 3.2, 3.4`, `SPEC 3.2 to 3.9`."""
    found: dict[str, Path] = {}
    for path in files:
        for first, rest in CITATION.findall(path.read_text()):
            numbers = [first]
            for joint, number in re.findall(r"(, | and | to |–)(\d+\.\d+[a-z]?)", rest):
                if joint.strip() in ("to", "–"):
                    numbers += _between(numbers[-1], number)
                numbers.append(number)
            found.update(dict.fromkeys(numbers, path))
    return found


def _between(first: str, last: str) -> list[str]:
    (chapter, start, _), (same, end, _) = (NUMBER.fullmatch(text).groups() for text in (first, last))  # type: ignore[union-attr]
    assert chapter == same, f"a range of steps crosses chapters: {first} to {last}"
    return [f"{chapter}.{number}" for number in range(int(start) + 1, int(end))]


def _committed(*suffixes: str) -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    paths = [ROOT / name for name in names if name]
    return [path for path in paths if path.is_file() and (not suffixes or path.name.endswith(suffixes))]


def test_every_step_of_the_specification_is_cited_by_the_code() -> None:
    """By the enclave; combining shares (4.6) is anyone's, and our coordinator's."""
    steps = _steps()
    assert len(steps) > 25
    cited = _cited([*(ROOT / "enclave").rglob("*.py"), ROOT / "appliance" / "coordinator" / "combine.py"])
    assert sorted(steps - cited.keys()) == []


def test_every_citation_names_a_step_that_exists() -> None:
    steps = _steps()
    files = [
        path for package in ("enclave", "appliance", "policies", "tests") for path in (ROOT / package).rglob("*.py")
    ]
    cited = _cited([path for path in files if path != Path(__file__)])
    assert {step: str(path.relative_to(ROOT)) for step, path in cited.items() if step not in steps} == {}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_nothing_committed_names_a_real_address() -> None:
    found: dict[str, set[str]] = {}
    for path in _committed():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if addresses := set(REAL_ADDRESS.findall(text)):
            found[str(path.relative_to(ROOT))] = addresses
    # The licence names its own page, which also shows that the search finds something; the package the format of its
    # licences.
    assert list(found) == [LICENCE, "packaging/debian/copyright"]

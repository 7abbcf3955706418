"""The codes of problem documents are stable: the API's page and document tell those that are given, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from aiohttp import web

from appliance.coordinator import problems
from appliance.coordinator.openapi import PROBLEMS as DESCRIBED

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "appliance" / "api" / "README.md").read_text()
# Where a code is given, and where the status comes from.
GIVEN = re.compile(r'\bproblem\((\d{3}), "([a-z-]+)"')
LIMITED, UNAUTHORIZED = re.compile(r'\bLimited\("([a-z-]+)"'), re.compile(r'\bUnauthorized\("([a-z-]+)"')
# The router's own: the words of the status.
BY_HTTP = (web.HTTPNotFound, web.HTTPMethodNotAllowed, web.HTTPExpectationFailed)
# Every code of this kind is a rule of enclaves.
RULES = "request/…"


def given() -> set[tuple[int, str]]:
    """Status and code of all that the coordinator answers."""
    source = "".join(path.read_text() for path in (ROOT / "appliance" / "coordinator").glob("*.py"))
    found = {(int(status), code) for status, code in GIVEN.findall(source)}
    found |= {(429, code) for code in LIMITED.findall(source)} | {(401, code) for code in UNAUTHORIZED.findall(source)}
    found |= {(status, code) for _, status, code, _ in problems.PROBLEMS}
    for kind in BY_HTTP:
        text = kind.__name__.removeprefix("HTTP")
        found.add((kind.status_code, re.sub(r"(?<!^)(?=[A-Z])", "-", text).lower()))
    return found | {(401, RULES)}


def told() -> set[tuple[int, str]]:
    """Status and code of each in the table of the page: as many statuses as codes, in order, or one status for all."""
    found = set()
    for statuses, codes in re.findall(r"^\| (\d{3}(?:, \d{3})*) \| (`[^|]+`) \|", PAGE, re.MULTILINE):
        numbers, names = [int(one) for one in statuses.split(", ")], re.findall(r"`([^`]+)`", codes)
        assert len(numbers) in (1, len(names)), (statuses, codes)
        found |= set(zip(numbers if len(numbers) > 1 else numbers * len(names), names, strict=True))
    return found


def test_the_page_tells_every_code_with_its_status_and_no_other() -> None:
    assert told() == given()


def test_the_document_names_the_codes_of_each_status_that_it_describes() -> None:
    for status, text in DESCRIBED.items():
        codes = {code for of, code in given() if of == status} - {"malformed-http"}
        assert {code for code in codes if f"`{code}`" not in text} == set(), status

"""`keymoot pool` goes on looking where a coordinator comes back, and ends where it would be asked in vain."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.api.models import PoolList
from appliance.api.results import ApiError, api_error
from appliance.cli import pool
from policies.errors import Unavailable


class Answering:
    """A client whose looks give these, one after the other."""

    def __init__(self, *answers: PoolList | Exception) -> None:
        self._answers = iter(answers)

    def pools(self, burst: int | None) -> PoolList:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def look_until_the_end(client: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often pools were shown until the client has nothing more to answer, or raises."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    shown: list[PoolList] = []
    with pytest.raises((StopIteration, ApiError)):
        pool._each(client, None, 1.0, once=False, show=shown.append)
    return len(shown)


@pytest.mark.parametrize(
    ("error", "waited"),
    [
        (Unavailable("API https://c: connection refused", "start it"), True),
        (api_error(503, "unavailable", "the store does not take writes"), True),
        (api_error(429, "rate-limited", "more than 50 requests a second"), True),
        (api_error(401, "credential-unknown", "this token is not listed"), False),
    ],
)
def test_what_passes_is_waited_for_and_said(
    error: Exception, waited: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Answering(PoolList(()), error, PoolList(()))
    assert look_until_the_end(client, monkeypatch) == (2 if waited else 1)
    assert bool(capsys.readouterr().err) is waited

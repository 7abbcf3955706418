"""What an enclave logs of requests: rationed where it costs a coordinator nothing, for each coordinator by itself."""

from __future__ import annotations

import json

from enclave.log import Log
from enclave.request_log import REFUSALS_AT_ONCE, RequestLog

DIGEST = bytes(range(32))


def test_a_flood_of_one_coordinator_is_passed_over_and_counted_and_hides_nothing_of_another() -> None:
    now_s, lines = [0.0], list[str]()
    log = RequestLog(Log("enclave", write=lines.append), lambda: now_s[0])
    for _ in range(REFUSALS_AT_ONCE + 50):
        log.refused("flooding", "request refused", DIGEST, "request-1", rule="request/jws")
    assert len(lines) == REFUSALS_AT_ONCE
    log.refused("honest", "request refused", DIGEST, "request-2", rule="gate")
    log.told("share given", DIGEST, "request-3", count=1)
    now_s[0] = 1.0
    log.refused("flooding", "request refused", DIGEST, "request-4", rule="request/jws")
    honest, share, after = (json.loads(line) for line in lines[REFUSALS_AT_ONCE:])
    assert (honest["coordinator"], honest["rule"], honest["request"]) == ("honest", "gate", DIGEST.hex())
    assert (share["event"], share["request_id"]) == ("share given", "request-3")
    assert (after["coordinator"], after["not_told"]) == ("flooding", 50)
    assert "not_told" not in honest

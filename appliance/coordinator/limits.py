"""What the API takes besides bodies: the header that signs a request, how long one waits, how lists are paged."""

from __future__ import annotations

import re

JWS_HEADER = "Keymoot-Signature"
JWS_PATTERN = re.compile(r"^[A-Za-z0-9_-]{1,2048}\.\.[A-Za-z0-9_-]{1,1024}$")
DEFAULT_WAIT_S, MAX_WAIT_S = 30.0, 60.0
WAIT_PATTERN = re.compile(r"^[0-9]{1,2}(\.[0-9]{1,32})?([eE]-?[0-9]{1,3})?$")
PAGE = 100
# Signing requests of one client that await approvals: as many as an enclave remembers (SPEC 4.13).
MAX_AWAITING = 256
MAX_BURST = 100_000
BURST_PATTERN = re.compile(r"^[0-9]{1,6}$")
CURSOR_PATTERN = re.compile(r"^[0-9]{1,15}$")

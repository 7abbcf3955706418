"""Where the API shows what is not asked for by a signed request; the paths of those are in `policies.requests`."""

from __future__ import annotations

SIGNERS_PATH = "/v1/signers"
POOLS_PATH = "/v1/pools"
COORDINATOR_PATH = "/v1/coordinator"
HEALTH_PATHS = ("/v1/healthz", "/healthz")
READY_PATH = "/readyz"
OPENAPI_PATH = "/openapi.json"
# What strangers may see: whether it runs, whether it can sign, how to ask. No more than that of each.
OPEN_PATHS = ("/healthz", READY_PATH, OPENAPI_PATH)

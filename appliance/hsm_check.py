"""What `enclave hsm-check` says of a PKCS#11 module: asked in a fresh interpreter with the enclave alone."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from appliance.enrolment import ENCLAVE_TOOL_TIMEOUT_S, RunAs, run_enclave_tool
from policies.errors import Unavailable


class Operation(msgspec.Struct, frozen=True):
    """One operation, as the enclave's check reports it."""

    name: str
    works: bool
    detail: str
    median_us: float | None


class ConfiguredKey(msgspec.Struct, frozen=True):
    """A key that the configuration names, for `use` as `identity`, `sealing` or `retired`. `good`: it is on the token
    and cannot leave. `detail`: the identity's fingerprint, how a sealing key is used, or what is wrong."""

    use: str
    label: str
    good: bool
    detail: str


class Checked(msgspec.Struct, frozen=True):
    """A module. `profile` is None for one that Keymoot cannot use."""

    lib: str
    manufacturer: str
    description: str
    version: str
    token: str
    slot: int
    initialize_us: float
    login_us: float
    operations: tuple[Operation, ...]
    keys: tuple[ConfiguredKey, ...]
    profile: str | None
    reason: str


def check_module(
    command: list[str],
    timeout_s: float = ENCLAVE_TOOL_TIMEOUT_S,
    environment: Mapping[str, str] | None = None,
    user: RunAs | None = None,
) -> Checked:
    """Run an `enclave hsm-check`. Raises `CallerError` and `Unavailable` with what it said."""
    output = run_enclave_tool(command, environment=environment, timeout_s=timeout_s, user=user)
    try:
        return msgspec.json.decode(output, type=Checked)
    except msgspec.DecodeError as error:
        raise Unavailable(f"`enclave hsm-check` answered something unexpected: {error}", "report it") from None

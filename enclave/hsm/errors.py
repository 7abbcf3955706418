"""What can go wrong with an HSM, each with what the operator can do. No message holds a PIN or a secret.

`Unavailable` ones pass without a person (the HSM thread tries again); `CallerError` ones need somebody.
"""

from __future__ import annotations

from policies.errors import CallerError, Unavailable


class HsmAway(Unavailable):
    """The module, its token or its session cannot be used now. The HSM thread sets it up again."""


class TokenMissing(HsmAway):
    """The module works but shows no token with the configured label."""


class HsmBusy(Unavailable):
    """The HSM thread's queue is full: nothing was queued."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} HSM jobs are waiting already", "send less, or use a faster HSM")


class SealLimitReached(Unavailable):
    """A sealing key has sealed as often as random nonces safely allow. It still unseals."""

    def __init__(self, label: str, limit: int) -> None:
        super().__init__(
            f"sealing key {label!r} reached its limit of {limit} seals",
            "set a new hsm.sealing_key_label, name this one in hsm.retired_key_labels, and provision again",
        )


class HsmMisconfigured(CallerError):
    """The configuration, the module or the token's content is not usable: trying again will not help."""


class PinRefused(HsmMisconfigured):
    """The token refused the PIN. Never tried again with the same configuration: tokens lock."""


class KeyMissing(HsmMisconfigured):
    """A key that provisioning makes is not on the token."""


class KeyExposed(HsmMisconfigured):
    """A key could leave the HSM, or the module does not say that it cannot."""


class SealBroken(CallerError):
    """A sealed record that is malformed, altered, or not the one asked for. The HSM itself is well."""

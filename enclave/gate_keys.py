"""The keys by which an enclave and its gate's handler know each other's messages, one pair of sets for each direction.

What is held decides what counts: `chosen` leaves out every kind that the enclave's configuration does not name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from enclave import webhooks
from enclave.errors import CallerError
from enclave.secret import Secret
from enclave.webhooks import PrivateKey, PublicKey, SigningKey, VerifyingKey
from policies.json_strict import JsonInvalid, parse_as

Scheme = Literal["v1", "v1a"]
KEY_NAMES = ("request_hmac", "answer_hmac", "request_ed25519", "answer_ed25519")
OLDER = "older_"
"""Before the name of a key that a newer one is taking the place of."""
SHAPE = 'gate secrets must be JSON with a key for each direction: {"request_hmac": "whsec_…", "answer_hmac": "whsec_…"}'


class SecretsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The secrets as `keymoot gate secret` reads them; the older ones only while rotating.

    `…_hmac`: `whsec_`, on both sides the same. `request_ed25519`: `whsk_`, the enclave's own; `answer_ed25519`:
    `whpk_`, the handler's.
    """

    request_hmac: str | None = None
    answer_hmac: str | None = None
    older_request_hmac: str | None = None
    older_answer_hmac: str | None = None
    request_ed25519: str | None = None
    answer_ed25519: str | None = None
    older_request_ed25519: str | None = None
    older_answer_ed25519: str | None = None

    def __repr__(self) -> str:
        return "SecretsFile(…)"


@dataclass(frozen=True, repr=False)
class GateKeys:
    """Keys for each direction, newest first: `request` signs what is asked, `answer` verifies what is answered."""

    request: Sequence[SigningKey]
    answer: Sequence[VerifyingKey]

    def chosen(self, requests: Sequence[Scheme], answers: Sequence[Scheme]) -> GateKeys:
        """Those of the schemes that the configuration names. Raises `CallerError` where one has no key."""
        for direction, held, named in (("request", self.request, requests), ("answer", self.answer, answers)):
            for scheme in named:
                if scheme not in map(scheme_of, held):
                    what = f"{direction}_{'hmac' if scheme == webhooks.HMAC_VERSION else 'ed25519'}"
                    raise CallerError(
                        f"the gate's secrets have no {what}, which gate.{direction}s of enclave.yaml asks for: "
                        "seal it with `keymoot gate secret`"
                    )
        return GateKeys(
            [key for key in self.request if scheme_of(key) in requests],
            [key for key in self.answer if scheme_of(key) in answers],
        )


def scheme_of(key: SigningKey | VerifyingKey) -> str:
    """`v1` for HMAC, `v1a` for Ed25519."""
    return webhooks.HMAC_VERSION if isinstance(key, Secret) else webhooks.ED25519_VERSION


def parse_secrets_file(data: bytes) -> SecretsFile:
    """The file's fields, not looked into. Raises `CallerError`, which never quotes them."""
    try:
        return parse_as(data, SecretsFile)
    except (JsonInvalid, msgspec.DecodeError):
        raise CallerError(SHAPE) from None


def parse_gate_secrets(data: bytes) -> GateKeys:
    """`{"request_hmac": "whsec_…", "answer_hmac": "whsec_…"}`, the Ed25519 keys beside them or in their place. Raises
    `CallerError`, which never quotes them."""
    file = parse_secrets_file(data)
    request: list[SigningKey] = [
        webhooks.parse_key(text) for text in (file.request_hmac, file.older_request_hmac) if text
    ]
    answer: list[VerifyingKey] = [
        webhooks.parse_key(text) for text in (file.answer_hmac, file.older_answer_hmac) if text
    ]
    request += [webhooks.parse_private_key(text) for text in (file.request_ed25519, file.older_request_ed25519) if text]
    answer += [webhooks.parse_public_key(text) for text in (file.answer_ed25519, file.older_answer_ed25519) if text]
    for name in SecretsFile.__struct_fields__:
        if name.startswith("older_") and getattr(file, name) and not getattr(file, name.removeprefix("older_")):
            raise CallerError(f"gate secrets: {name} without a newer one")
    if not request or not answer:
        raise CallerError(SHAPE)
    # Otherwise a request could be reflected as an answer.
    if {_identity(key) for key in request} & {_identity(key) for key in answer}:
        raise CallerError("the two directions need different secrets")
    return GateKeys(request, answer)


def _identity(key: SigningKey | VerifyingKey) -> tuple[str, bytes]:
    if isinstance(key, Secret):
        return "hmac", key.reveal()
    public: PublicKey = key.public if isinstance(key, PrivateKey) else key
    return "ed25519", public.point

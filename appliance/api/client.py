"""The Python client for code without an event loop. `async_client` is the same for code with one.

    from appliance.api.client import Client
    from appliance.profile import load_profile

    with Client.of(load_profile(Path("client.yaml"))) as client:
        key = client.create_key("treasury/one", "create-1")
        signature = client.sign(key.id, Hash("0x…", "payment-17"))

Errors: `Rejected` (a signer's policy or gate said no), `Failed` (no result, and nobody decided so), `ApiError` with the
problem's `code` (`Unauthorized`, `NotFound`, `Conflict`, `TooMany`, `NotNow`), `Unavailable` (no answer),
`CertificateRefused` and `SignatureRefused` (the answer is not to be believed). What is answered 429 or 503 is asked
again, for 10 s at most, and of the next coordinator where it stays 503.
"""

from __future__ import annotations

import asyncio
import pathlib
import time
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from appliance.api import batches, models
from appliance.api.approvals import ApprovalsWanted
from appliance.api.async_client import APPROVAL_LIFETIME_S, LISTED, WAIT_TIMEOUT_S, AsyncClient
from appliance.api.certificates import CertificateRefused
from appliance.api.credentials import Credential
from appliance.api.jws import DEFAULT_LIFETIME_S, ClientKey
from appliance.api.results import (
    ApiError,
    AwaitingApprovals,
    CertifiedKey,
    Conflict,
    Failed,
    ListedKey,
    NotFound,
    NotNow,
    Rejected,
    TooMany,
    Unauthorized,
)
from appliance.api.signatures import SignatureRefused
from policies.requests import HashBatch, SigningBody
from policies.roster import Roster

if TYPE_CHECKING:
    from appliance.profile import Profile

__all__ = [
    "ApiError",
    "AsyncClient",
    "AwaitingApprovals",
    "CertificateRefused",
    "CertifiedKey",
    "Client",
    "Conflict",
    "Credential",
    "Failed",
    "ListedKey",
    "NotFound",
    "NotNow",
    "Rejected",
    "SignatureRefused",
    "TooMany",
    "Unauthorized",
]

T = TypeVar("T")


class Client:
    """The same client for code without an event loop. Use it as `with`; not from inside a running loop."""

    def __init__(
        self,
        url: str,
        roster: Roster,
        key: ClientKey | None,
        ca: pathlib.Path,
        *,
        credential: Credential | None = None,
        others: Sequence[tuple[str, pathlib.Path]] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """As `AsyncClient`."""
        self._client = AsyncClient(url, roster, key, ca, credential=credential, others=others, clock=clock)
        self._runner = asyncio.Runner()

    @classmethod
    def of(cls, profile: Profile) -> Client:
        """The client of a profile."""
        return cls(
            profile.api, profile.roster, profile.key, profile.ca, credential=profile.credential, others=profile.others
        )

    def __enter__(self) -> Client:
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._runner.run(self._client.close())
        except RuntimeError:
            # An interrupt in the moment a request ended: asyncio stops the loop once more than it was started.
            self._runner.run(self._client.close())
        finally:
            self._runner.close()

    def create_key(self, label: str, external_id: str, *, timeout_s: float = WAIT_TIMEOUT_S) -> CertifiedKey:
        """See `AsyncClient.create_key`."""
        return self._run(self._client.create_key(label, external_id, timeout_s=timeout_s))

    def get_key(self, key_id: str) -> CertifiedKey:
        """See `AsyncClient.get_key`."""
        return self._run(self._client.get_key(key_id))

    def list_keys(self, *, limit: int | None = None) -> tuple[ListedKey, ...]:
        """See `AsyncClient.list_keys`."""
        return self._run(self._client.list_keys(limit=limit))

    def sign(
        self,
        key_id: str,
        body: SigningBody,
        *,
        timeout_s: float = WAIT_TIMEOUT_S,
        lifetime_s: int = DEFAULT_LIFETIME_S,
    ) -> models.Signature:
        """See `AsyncClient.sign`."""
        return self._run(self._client.sign(key_id, body, timeout_s=timeout_s, lifetime_s=lifetime_s))

    def approvals_wanted(self, key_id: str, request_id: str) -> ApprovalsWanted:
        """See `AsyncClient.approvals_wanted`."""
        return self._run(self._client.approvals_wanted(key_id, request_id))

    def approve(
        self, key_id: str, request_id: str, body: bytes, *, lifetime_s: int = APPROVAL_LIFETIME_S
    ) -> models.Signature | batches.SignatureBatch:
        """See `AsyncClient.approve`."""
        return self._run(self._client.approve(key_id, request_id, body, lifetime_s=lifetime_s))

    def sign_batch(
        self,
        key_id: str,
        body: HashBatch,
        *,
        timeout_s: float = WAIT_TIMEOUT_S,
        lifetime_s: int = DEFAULT_LIFETIME_S,
    ) -> batches.SignatureBatch:
        """See `AsyncClient.sign_batch`."""
        return self._run(self._client.sign_batch(key_id, body, timeout_s=timeout_s, lifetime_s=lifetime_s))

    def get_batch(self, key_id: str, batch_id: str, body: HashBatch) -> batches.SignatureBatch:
        """See `AsyncClient.get_batch`."""
        return self._run(self._client.get_batch(key_id, batch_id, body))

    def list_batches(self, key_id: str, *, limit: int = LISTED) -> tuple[batches.BatchSummary, ...]:
        """See `AsyncClient.list_batches`."""
        return self._run(self._client.list_batches(key_id, limit=limit))

    def get_signature(self, key_id: str, signature_id: str, body: SigningBody | None = None) -> models.Signature:
        """See `AsyncClient.get_signature`."""
        return self._run(self._client.get_signature(key_id, signature_id, body))

    def list_signatures(self, key_id: str, *, limit: int = LISTED) -> tuple[models.Signature, ...]:
        """See `AsyncClient.list_signatures`."""
        return self._run(self._client.list_signatures(key_id, limit=limit))

    def health(self) -> models.Health:
        """See `AsyncClient.health`."""
        return self._run(self._client.health())

    def list_signers(self) -> tuple[models.Signer, ...]:
        """See `AsyncClient.list_signers`."""
        return self._run(self._client.list_signers())

    def list_pools(self) -> tuple[models.Pool, ...]:
        """See `AsyncClient.list_pools`."""
        return self._run(self._client.list_pools())

    def pools(self, burst: int | None = None) -> models.PoolList:
        """See `AsyncClient.pools`."""
        return self._run(self._client.pools(burst))

    def coordinator(self) -> models.Coordinator:
        """See `AsyncClient.coordinator`."""
        return self._run(self._client.coordinator())

    def readiness(self) -> models.Readiness:
        """See `AsyncClient.readiness`."""
        return self._run(self._client.readiness())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

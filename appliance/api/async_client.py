"""The Python client: signs its requests, and believes nothing but certificates and signatures it has checked.

No public key, address or signature leaves this module unverified: a key's certificate against the pinned roster, a
signature under the certified (child) key over the hash that this client computed itself.
"""

from __future__ import annotations

import asyncio
import pathlib
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from appliance.api import batches, models
from appliance.api.approvals import ApprovalBody, ApprovalsWanted, approvable_path, read_approvable
from appliance.api.certificates import CertificateRefused, verify_key
from appliance.api.credentials import Credential
from appliance.api.failover import Transports, at_any, where_it_is
from appliance.api.jws import DEFAULT_LIFETIME_S, SIGNATURE_HEADER, ClientKey, new_jti, sign_request
from appliance.api.paging import all_pages
from appliance.api.paths import COORDINATOR_PATH, HEALTH_PATHS, POOLS_PATH, READY_PATH, SIGNERS_PATH
from appliance.api.results import CertifiedKey, ListedKey, require
from appliance.api.signatures import verify_signature, what_is_signed
from policies.errors import CallerError, Unavailable
from policies.requests import (
    KEYS_PATH,
    HashBatch,
    KeyCreation,
    SigningBody,
    signature_batches_path,
    signatures_path,
)
from policies.roster import Roster
from policies.signed_requests import APPROVE

if TYPE_CHECKING:
    from appliance.profile import Profile

MAX_REMEMBERED_KEYS = 256
LISTED = 1000
WAIT_TIMEOUT_S = 120.0
APPROVAL_LIFETIME_S = 24 * 3600
# Below the time-out of a request: what takes longer is asked for again.
POST_WAIT_S = 20
POLL_FIRST_S, POLL_MOST_S = 0.02, 1.0

A = TypeVar("A", bound=models.ApiStruct)
_UNDER_WAY = (str(models.SignatureState.PENDING), str(models.SignatureState.EXECUTING))

B = TypeVar("B", models.Signature, batches.SignatureBatch)


class AsyncClient:
    """An asynchronous client of one network. Use it as `async with`. Times are in seconds.

    `ca` is the pinned CA of the coordinator; `key` may be None for a client that only reads. `credential` is what it
    shows to read; a signed request needs none. `others`: further coordinators' URLs with their CAs, asked in turn where
    one does not answer or cannot do it now (503).
    """

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
        """Raises `CallerError` for files that cannot be used, and for a URL that is not https."""
        self.transports = Transports([(url, ca), *others], credential or Credential())
        self._roster = roster
        self._key = key
        self._clock = clock
        self._keys: OrderedDict[str, CertifiedKey] = OrderedDict()

    @classmethod
    def of(cls, profile: Profile) -> AsyncClient:
        """The client of a profile."""
        return cls(
            profile.api, profile.roster, profile.key, profile.ca, credential=profile.credential, others=profile.others
        )

    async def __aenter__(self) -> AsyncClient:
        self.transports.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self.transports.close()

    # --- keys -------------------------------------------------------------------------------------------

    @at_any
    async def create_key(self, label: str, external_id: str, *, timeout_s: float = WAIT_TIMEOUT_S) -> CertifiedKey:
        """A new key with the roster's `n` and `t`, once all signers certified it.

        Raises `Rejected`, `Failed`, `ApiError`, `CertificateRefused`, `Unavailable`. The same call again with the
        same `external_id` gives the same key. A lying coordinator can show an older key of the same `label`: keys that
        must not be taken for each other have labels of their own.
        """
        creation = KeyCreation(
            scheme="ECDSA",
            curve="secp256k1",
            signers=self._roster.n,
            tolerate=self._roster.tolerate,
            label=label,
            external_id=external_id,
        )
        asked = await self._post(KEYS_PATH, creation, models.Key)
        answer = await self._until(
            lambda: self._get(f"{KEYS_PATH}/{asked.request_id}", models.Key),
            asked,
            lambda key: key.status is not models.KeyState.PENDING,
            timeout_s,
        )
        key = self._certify(require(answer, models.KeyState.ACTIVE))
        if key.label != label:
            raise CertificateRefused(f"asked for a key with label {label}, was shown one with {key.label}")
        return key

    @at_any
    async def get_key(self, key_id: str) -> CertifiedKey:
        """The key, verified. Raises `ApiError`, `CertificateRefused`, and `Failed` where it is not active."""
        return await self._ask_for_key(key_id)

    @at_any
    async def list_keys(self, *, limit: int | None = None) -> tuple[ListedKey, ...]:
        """The first `limit` keys, or all of them, oldest first, each active one verified. Raises `ApiError`, also where
        there is no `limit` and the list seems to have no end (100,000 keys are not too many), `CertificateRefused`."""
        answers = await all_pages(partial(self._get, KEYS_PATH, models.KeyList), limit)
        return tuple(ListedKey(answer, self._certify_if_active(answer)) for answer in answers)

    # --- signatures -------------------------------------------------------------------------------------

    @at_any
    async def sign(
        self,
        key_id: str,
        body: SigningBody,
        *,
        timeout_s: float = WAIT_TIMEOUT_S,
        lifetime_s: int = DEFAULT_LIFETIME_S,
    ) -> models.Signature:
        """The finished signature over `body`, verified under the certified child key. `lifetime_s`: for how long the
        request may be carried out; up to 72 h where policies let it wait for approvals.

        Raises `Rejected` (which signer, why), `AwaitingApprovals`, `Failed`, `ApiError`, `CertificateRefused`,
        `Unavailable`.
        """
        key = await self._remembered(key_id)
        answer = await self._ended(signatures_path(key_id), body, models.Signature, timeout_s, lifetime_s)
        require(answer, models.SignatureState.SIGNED)
        verify_signature(answer.signature, key.public_key(body.derivation_path), what_is_signed(body))
        return answer

    @where_it_is
    async def approvals_wanted(self, key_id: str, request_id: str) -> ApprovalsWanted:
        """What an approver is to sign for the request (`sig_…` or `batch_…`), as the coordinator says. Raises
        `ApiError`, `Unavailable`."""
        return await self._get(f"{approvable_path(key_id, request_id)}/{request_id}/approvals", ApprovalsWanted)

    @where_it_is
    async def approve(
        self, key_id: str, request_id: str, body: bytes, *, lifetime_s: int = APPROVAL_LIFETIME_S
    ) -> models.Signature | batches.SignatureBatch:
        """Approve the request (`sig_…` or `batch_…`) whose body is `body`, exactly the bytes that were looked at: the
        coordinator can make it stand for nothing else. The request as it stands then.

        Raises `CallerError` where `body` is no such request, else as `get_signature`.
        """
        path = approvable_path(key_id, request_id)
        wanted = read_approvable(path, key_id, body)
        now_s = int(self._clock())
        approval = sign_request(
            self._signing_key(), self._roster.network, APPROVE, path, body,
            now_s=now_s, jti=new_jti(), lifetime_s=lifetime_s,
        )  # fmt: skip
        where, sent = f"{path}/{request_id}/approvals", ApprovalBody(approval)
        if isinstance(wanted, HashBatch):
            return await self._verified_batch(await self._post(where, sent, batches.SignatureBatch), key_id, wanted)
        return await self._verified(await self._post(where, sent, models.Signature), key_id, wanted)

    @where_it_is
    async def get_signature(self, key_id: str, signature_id: str, body: SigningBody | None = None) -> models.Signature:
        """A signing request as it stands. A signature in it is verified: over `body` under its path where `body`
        is given, else over the hash and under the path that the answer names. Raises as `sign`."""
        answer = await self._get(f"{signatures_path(key_id)}/{signature_id}", models.Signature)
        return await self._verified(answer, key_id, body)

    async def _verified(self, answer: models.Signature, key_id: str, body: SigningBody | None) -> models.Signature:
        if answer.signature is None:
            return answer
        key = await self._remembered(key_id)
        path = answer.derivation_path if body is None else body.derivation_path
        verify_signature(answer.signature, key.public_key(path), None if body is None else what_is_signed(body))
        return answer

    @at_any
    async def list_signatures(self, key_id: str, *, limit: int = LISTED) -> tuple[models.Signature, ...]:
        """The key's first `limit` signing requests, oldest first; each signature in them is verified under the path
        and over the hash that the answer names. Raises as `get_signature`."""
        key = await self._remembered(key_id)
        listed = await all_pages(partial(self._get, signatures_path(key_id), models.SignatureList), limit)
        for answer in listed:
            if answer.signature is not None:
                verify_signature(answer.signature, key.public_key(answer.derivation_path), None)
        return tuple(listed)

    # --- the network ------------------------------------------------------------------------------------

    @at_any
    async def list_signers(self) -> tuple[models.Signer, ...]:
        """The signers, who they are checked against the pinned roster; their state is the coordinator's word.

        Raises `ApiError`, `CertificateRefused`, `Unavailable`.
        """
        shown = (await self._get(SIGNERS_PATH, models.SignerList)).items
        pinned = [(entry.index, entry.name, entry.operator, entry.fingerprint) for entry in self._roster.signers]
        if [(entry.index, entry.name, entry.operator, entry.fingerprint) for entry in shown] != pinned:
            raise CertificateRefused("the signers shown are not those of your roster: compare roster.yaml")
        return shown

    @at_any
    async def list_pools(self) -> tuple[models.Pool, ...]:
        """The pools of presignatures, as the coordinator says. Raises `ApiError`, `Unavailable`."""
        return (await self._get(POOLS_PATH, models.PoolList)).items

    @at_any
    async def pools(self, burst: int | None = None) -> models.PoolList:
        """As `list_pools`, with what waits for them, and with marks recommended for a `burst` of signatures at once."""
        return await self._get(POOLS_PATH, models.PoolList, {} if burst is None else {"burst": str(burst)})

    @at_any
    async def coordinator(self) -> models.Coordinator:
        """What the coordinator says of itself. Raises `ApiError`, `Unavailable`."""
        return await self._get(COORDINATOR_PATH, models.Coordinator)

    @at_any
    async def readiness(self) -> models.Readiness:
        """Who can sign now. Raises `ApiError` with code `not-ready`, what is missing and what to do, where nobody can;
        `Unavailable`."""
        return await self.transports.current.exchange("GET", READY_PATH, models.Readiness, retried=False)

    @at_any
    async def health(self) -> models.Health:
        """What is there and what is missing, as the coordinator says. Raises `ApiError`, `Unavailable`."""
        return await self._get(HEALTH_PATHS[0], models.Health)

    @at_any
    async def sign_batch(
        self,
        key_id: str,
        body: HashBatch,
        *,
        timeout_s: float = WAIT_TIMEOUT_S,
        lifetime_s: int = DEFAULT_LIFETIME_S,
    ) -> batches.SignatureBatch:
        """The ended batch, every signature in it verified under its certified child key; it says of each hash that has
        none why (`PartlySigned`). `lifetime_s`, and what is raised: as `sign`."""
        key = await self._remembered(key_id)
        path = signature_batches_path(key_id)
        answer = await self._ended(path, body, batches.SignatureBatch, timeout_s, lifetime_s)
        await asyncio.to_thread(batches.verify_batch, answer, body, key.public_key)
        return answer

    @where_it_is
    async def get_batch(self, key_id: str, batch_id: str, body: HashBatch) -> batches.SignatureBatch:
        """The batch that was asked for with `body`, as it stands; each signature in it is verified under its certified
        child key. Raises as `get_signature`."""
        answer = await self._get(f"{signature_batches_path(key_id)}/{batch_id}", batches.SignatureBatch)
        return await self._verified_batch(answer, key_id, body)

    async def _verified_batch(
        self, answer: batches.SignatureBatch, key_id: str, body: HashBatch
    ) -> batches.SignatureBatch:
        if answer.results or answer.status in (batches.BatchState.SIGNED, batches.BatchState.PARTLY_SIGNED):
            key = await self._remembered(key_id)
            await asyncio.to_thread(batches.verify_batch, answer, body, key.public_key)
        return answer

    @at_any
    async def list_batches(self, key_id: str, *, limit: int = LISTED) -> tuple[batches.BatchSummary, ...]:
        """The key's first `limit` batches, oldest first, as the coordinator says: `get_batch` verifies one. Raises
        `ApiError`, `Unavailable`."""
        path = signature_batches_path(key_id)
        return tuple(await all_pages(partial(self._get, path, batches.SignatureBatchList), limit))

    # --- inside -----------------------------------------------------------------------------------------

    def _certify(self, answer: models.Key) -> CertifiedKey:
        key = CertifiedKey(verify_key(answer, self._roster), answer)
        self._keys[key.id] = key
        self._keys.move_to_end(key.id)
        while len(self._keys) > MAX_REMEMBERED_KEYS:
            self._keys.popitem(last=False)
        return key

    def _certify_if_active(self, answer: models.Key) -> CertifiedKey | None:
        if answer.status is models.KeyState.ACTIVE:
            return self._certify(answer)
        if answer.public_key is not None:
            raise CertificateRefused(f"the answer shows the public key of a key that is {answer.status}")
        return None

    async def _remembered(self, key_id: str) -> CertifiedKey:
        return self._keys.get(key_id) or await self._ask_for_key(key_id)

    async def _ask_for_key(self, key_id: str) -> CertifiedKey:
        answer = await self._get(f"{KEYS_PATH}/{key_id}", models.Key)
        key = self._certify(require(answer, models.KeyState.ACTIVE))
        if key.id != key_id:
            raise CertificateRefused(f"asked for {key_id}, was shown {key.id}")
        return key

    def _signing_key(self) -> ClientKey:
        if self._key is None:
            raise CallerError("this client has no key to sign requests with: give it one with a policy's client id")
        return self._key

    async def _post(self, path: str, body: msgspec.Struct, kind: type[A], *, lifetime_s: int = DEFAULT_LIFETIME_S) -> A:
        data = msgspec.json.encode(body)
        now_s = int(self._clock())
        jws = sign_request(
            self._signing_key(), self._roster.network, "POST", path, data,
            now_s=now_s, jti=new_jti(), lifetime_s=lifetime_s,
        )  # fmt: skip
        headers = {SIGNATURE_HEADER: jws, "content-type": "application/json"}
        params = {"wait": str(POST_WAIT_S)}
        return await self.transports.current.exchange("POST", path, kind, data=data, headers=headers, params=params)

    async def _get(self, path: str, kind: type[A], params: dict[str, str] | None = None) -> A:
        return await self.transports.current.exchange("GET", path, kind, params=params or {})

    async def _ended(
        self, path: str, body: SigningBody | HashBatch, kind: type[B], timeout_s: float, lifetime_s: int
    ) -> B:
        """What came of a request for signatures, or that it awaits approvals. Raises as `_until`."""
        asked = await self._post(path, body, kind, lifetime_s=lifetime_s)
        return await self._until(
            lambda: self._get(f"{path}/{asked.id}", kind),
            asked,
            lambda answer: str(answer.status) not in _UNDER_WAY,
            timeout_s,
        )

    async def _until(
        self, get: Callable[[], Coroutine[Any, Any, A]], answer: A, done: Callable[[A], bool], timeout_s: float
    ) -> A:
        """Ask again, at growing intervals, until `done`. Raises `Unavailable` after `timeout_s`."""
        loop = asyncio.get_running_loop()
        deadline_s, pause_s = loop.time() + timeout_s, POLL_FIRST_S
        while not done(answer):
            if loop.time() + pause_s > deadline_s:
                raise Unavailable(f"no result within {timeout_s:g} s", "it goes on: ask with the same externalId")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, POLL_MOST_S)
            answer = await get()
        return answer

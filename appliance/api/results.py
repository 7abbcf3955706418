"""What the client gives back: keys that are certified, and errors with their kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from appliance.api import addresses, models
from appliance.api.derivation import derive
from enclave import wire
from policies.errors import KeymootError, Unavailable
from policies.roster import describe_scheme

if TYPE_CHECKING:
    from appliance.api.batches import SignatureBatch

K = TypeVar("K", models.Key, models.Signature, "SignatureBatch")


class ApiError(KeymootError):
    """The API refused the request; `code` is stable, `status` the HTTP status. `retry_after_s`: when it is worth
    trying again, None where the answer did not say. `request_id` finds it in logs."""

    def __init__(
        self, status: int, code: str, detail: str, retry_after_s: int | None = None, request_id: str = ""
    ) -> None:
        super().__init__(f"{code}: {detail}" + (f" (request {request_id})" if request_id else ""))
        self.request_id = request_id
        self.status, self.code, self.detail, self.retry_after_s = status, code, detail, retry_after_s


class Unauthorized(ApiError):
    """401: no good credential for reading, or a signed request that the coordinator's list of clients does not bear
    out."""


class NotFound(ApiError):
    """404: there is no such thing, or not yet."""


class Conflict(ApiError):
    """409: another request has this external id."""


class TooMany(ApiError):
    """429: more than the coordinator's limits give one client, still so after asking again."""


class NotNow(ApiError):
    """503: this coordinator cannot do it now (a signer is away, its disk is full), still so after asking again."""


_BY_STATUS: dict[int, type[ApiError]] = {401: Unauthorized, 404: NotFound, 409: Conflict, 429: TooMany, 503: NotNow}


def api_error(status: int, code: str, detail: str, retry_after_s: int | None = None, request_id: str = "") -> ApiError:
    """The error of this status."""
    return _BY_STATUS.get(status, ApiError)(status, code, detail, retry_after_s, request_id)


class Rejected(KeymootError):
    """A signer's policy or gate said no. `signer` names it, `code` and `reason` are its words."""

    def __init__(self, signer: str, code: str, reason: str) -> None:
        super().__init__(f"rejected by signer {signer or 'unknown'}: {code}: {reason}")
        self.signer, self.code, self.reason = signer, code, reason


class Failed(KeymootError):
    """The request was not refused but did not succeed either; `code` and `reason` say why. Try it again."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"failed: {code}: {reason}")
        self.code, self.reason = code, reason


class AwaitingApprovals(Unavailable):
    """Nothing was refused: signers' policies want other clients to approve the request `id`; `reason` says how many.
    Once they have, the coordinator carries it out; the same call with the same external id then gives the result."""

    def __init__(self, request_id: str, key_id: str, reason: str) -> None:
        super().__init__(f"{request_id} waits for approvals: {reason}", f"keymoot approve {key_id} {request_id}")
        self.id, self.reason = request_id, reason


@dataclass(frozen=True)
class CertifiedKey:
    """A key that all signers of the pinned roster acknowledged. Made by the client alone, after verification."""

    certified: wire.Acknowledgement
    answer: models.Key

    @property
    def id(self) -> str:
        """The key's id."""
        return self.certified.key_id

    @property
    def label(self) -> str:
        """The label that policies match."""
        return self.certified.label

    @property
    def scheme_statement(self) -> str:
        """What the scheme means, in a sentence."""
        return describe_scheme(len(self.certified.public_shares), self.certified.tolerate)

    def public_key(self, path: Sequence[int] = ()) -> bytes:
        """The 33-byte compressed key at derivation path `path`; the key itself for an empty one."""
        return derive(self.certified.public_key, self.certified.chain_code, path)[0]

    def ethereum_address(self, path: Sequence[int] = ()) -> str:
        """The checksummed Ethereum address of the key at `path`."""
        return addresses.ethereum_address(self.public_key(path))

    def bitcoin_address(self, path: Sequence[int] = (), network: str = "mainnet") -> str:
        """The P2WPKH address of the key at `path` on `mainnet`, `testnet` or `regtest`."""
        return addresses.p2wpkh_address(self.public_key(path), network)


@dataclass(frozen=True)
class ListedKey:
    """One line of a listing: `certified` is None until the key is `Active`; before, nothing of it is shown."""

    answer: models.Key
    certified: CertifiedKey | None


def require(answer: K, *success: str) -> K:
    """`answer` if its status is one of `success`. Raises `Rejected`, `AwaitingApprovals` or `Failed`."""
    if answer.status in success:
        return answer
    reason = answer.reason or models.Reason(code=str(answer.status), message="no reason was given")
    if answer.status == "Rejected":
        raise Rejected(reason.signer, reason.code, reason.message)
    if not isinstance(answer, models.Key) and answer.status == models.SignatureState.AWAITING:
        raise AwaitingApprovals(answer.id, answer.key_id, reason.message)
    raise Failed(reason.code, reason.message)

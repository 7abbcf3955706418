"""Rows of the store as the API shows them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import msgspec
import structlog

from appliance.api.batches import BatchResult, BatchState, BatchSummary, SignatureBatch
from appliance.api.certificates import encode_acknowledgement
from appliance.api.models import (
    Certificate,
    Key,
    KeyState,
    Reason,
    Signature,
    SignatureState,
    SignatureValue,
)
from appliance.store.accepted import Accepted, RequestState, shown_external_id
from appliance.store.batches import BatchRow, BatchSummaryRow
from appliance.store.certificates import decode_certificate
from appliance.store.failures import Damaged
from appliance.store.keys import KeyRow
from appliance.store.signatures import ListedSignatureRow
from policies.requests import SigningBody
from policies.roster import Roster, describe_scheme

R = TypeVar("R")
S = TypeVar("S")

log = structlog.get_logger()


def show_all(rows: Iterable[R], show: Callable[[R], S]) -> tuple[S, ...]:
    """The rows that can be shown; of each other one the log says that it is left out."""
    shown = []
    for row in rows:
        try:
            shown.append(show(row))
        except Damaged as error:
            log.error("row-damaged", reason=str(error)[:512])
    return tuple(shown)


def show_key(row: KeyRow, roster: Roster) -> Key:
    """A key: what makes it usable only together with its certificate. Raises `Damaged`."""
    with _whole(row):
        return _show_key(row, roster)


def _show_key(row: KeyRow, roster: Roster) -> Key:
    shown = Key(
        request_id=row.id,
        status=KeyState(row.state),
        scheme="ECDSA",
        curve="secp256k1",
        signers=roster.n,
        tolerate=roster.tolerate,
        scheme_statement=describe_scheme(roster.n, roster.tolerate),
        label=row.label,
        external_id="" if row.learned else shown_external_id(row.external_id),
        created_at=_time(row.created_at_ms),
        reason=_reason(row),
    )
    if row.certificate is None:
        return shown
    certificate = decode_certificate(row.certificate)
    proven = certificate[0].acknowledgement
    return msgspec.structs.replace(
        shown,
        id=proven.key_id,
        public_key="0x" + proven.public_key.hex(),
        chain_code="0x" + proven.chain_code.hex(),
        certificate=Certificate(tuple(encode_acknowledgement(signed) for signed in certificate)),
    )


def show_signature(row: ListedSignatureRow) -> Signature:
    """A signing request and what came of it. Raises `Damaged`."""
    with _whole(row):
        return Signature(
            id=row.id,
            key_id=row.key_id,
            status=SignatureState(row.state),
            kind=row.kind,
            derivation_path=msgspec.json.decode(row.derivation_path, type=tuple[int, ...]),
            external_id=shown_external_id(row.external_id),
            created_at=_time(row.created_at_ms),
            signature=None if row.result is None else msgspec.json.decode(row.result, type=SignatureValue),
            reason=_reason(row),
        )


def show_signed(request: Accepted, key_id: str, body: SigningBody, value: SignatureValue) -> Signature:
    """As `show_signature` shows a new request that was signed."""
    return Signature(
        id=request.id,
        key_id=key_id,
        status=SignatureState.SIGNED,
        kind=type(body).__name__,
        derivation_path=body.derivation_path,
        external_id=request.external_id,
        created_at=_time(request.created_at_ms),
        signature=value,
    )


def show_batch(row: BatchRow) -> SignatureBatch:
    """A batch and what came of it. Raises `Damaged`."""
    summary = summarise_batch(row)
    with _whole(row):
        results = () if row.result is None else msgspec.json.decode(row.result, type=tuple[BatchResult, ...])
    return SignatureBatch(**msgspec.structs.asdict(summary), results=results)


def summarise_batch(row: BatchSummaryRow) -> BatchSummary:
    """A batch in a list. Raises `Damaged`."""
    with _whole(row):
        return BatchSummary(
            id=row.id,
            key_id=row.key_id,
            status=BatchState(row.state),
            count=row.count,
            external_id=shown_external_id(row.external_id),
            created_at=_time(row.created_at_ms),
            reason=_reason(row),
        )


@contextmanager
def _whole(row: RequestState) -> Iterator[None]:
    """What cannot be read in a row is `Damaged`: it was well when it was written."""
    try:
        yield
    except Damaged as error:
        raise Damaged(row.id, str(error.what)) from None
    except (msgspec.DecodeError, ValueError, OverflowError, OSError) as error:
        raise Damaged(row.id, str(error)) from None


def _reason(row: RequestState) -> Reason | None:
    return Reason(row.reason_code, row.reason_message, row.reason_signer) if row.reason_code else None


def _time(ms: int) -> str:
    second, rest_ms = divmod(ms, 1000)
    return f"{_second(second)}.{rest_ms:03d}Z"


@lru_cache(maxsize=16)
def _second(unix_s: int) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")

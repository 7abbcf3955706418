"""SPEC 0.4: nonces may be given long before they are named; each serves once, for its purpose and coordinator."""

from __future__ import annotations

import os

import nacl.bindings
import pytest

from enclave.errors import Refused
from enclave.members import MAX_OPEN_NONCES, NonceBook, OwnSession

A, B = "main", "other"


@pytest.fixture
def book() -> NonceBook:
    return NonceBook(own_session(), os.urandom)


def own_session() -> OwnSession:
    public, secret = nacl.bindings.crypto_sign_keypair()
    return OwnSession(1, os.urandom(32), public, secret)


def test_a_nonce_serves_once_however_old_it_is(book: NonceBook) -> None:
    early = book.issue(A, "presign")
    # A key generation asks for one each: none of them pushes out what is kept for the next batch.
    for _ in range(2 * MAX_OPEN_NONCES):
        book.issue(A, "keygen")
        book.issue(B, "presign")
    book.spend(A, early, "presign")
    with pytest.raises(Refused, match="unspent"):
        book.spend(A, early, "presign")


def test_of_too_many_of_one_purpose_the_oldest_is_refused(book: NonceBook) -> None:
    first, second = book.issue(A, "presign"), book.issue(A, "presign")
    for _ in range(MAX_OPEN_NONCES - 1):
        book.issue(A, "presign")
    with pytest.raises(Refused, match="unspent"):
        book.spend(A, first, "presign")
    book.spend(A, second, "presign")


@pytest.mark.parametrize(("coordinator", "purpose"), [(B, "presign"), (A, "keygen")])
def test_a_nonce_serves_no_other_coordinator_and_no_other_purpose(
    book: NonceBook, coordinator: str, purpose: str
) -> None:
    nonce = book.issue(A, "presign")
    with pytest.raises(Refused, match="unspent"):
        book.spend(coordinator, nonce, purpose)


def test_a_nonce_of_another_boot_is_refused(book: NonceBook) -> None:
    nonce = NonceBook(own_session(), os.urandom).issue(A, "presign")
    with pytest.raises(Refused, match="unspent"):
        book.spend(A, nonce, "presign")

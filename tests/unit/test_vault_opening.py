"""What the HSM unseals and nobody needs any more is wiped, whenever it arrives."""

from __future__ import annotations

import pytest

from enclave.errors import Bug, Refused
from enclave.hsm.errors import HsmAway
from enclave.secret import Secret
from enclave.shares import Vault
from enclave.tasks import Promise
from enclave.wire import Record

KEY_ID = "key_" + "0" * 32
RECORD = Record("key", KEY_ID, 3, b"sealed")


def vault(unsealing: Promise[object]) -> Vault:
    """A vault whose HSM answers with `unsealing`."""

    async def store(_: tuple[Record, ...]) -> None:
        raise AssertionError("nothing is stored here")

    return Vault("testnet", 1, lambda _: unsealing, lambda: ("ready", ""), store)


def is_wiped(secret: Secret) -> bool:
    return not any(secret.reveal())


@pytest.mark.parametrize("first", ["discarded", "unsealed"])
def test_a_discarded_opening_is_wiped(first: str) -> None:
    unsealing: Promise[object] = Promise()
    secret = Secret(b"\x07" * 32)
    opening = vault(unsealing).begin_to_open(RECORD, KEY_ID)
    steps = [opening.discard, lambda: unsealing.resolve(secret)]
    for step in steps if first == "discarded" else reversed(steps):
        assert not is_wiped(secret)
        step()
    assert is_wiped(secret)


def test_discarding_what_the_hsm_could_not_unseal_is_quiet() -> None:
    unsealing: Promise[object] = Promise()
    vault(unsealing).begin_to_open(RECORD, KEY_ID).discard()
    unsealing.reject(HsmAway("gone", "wait"))


def test_what_is_no_secret_is_a_defect() -> None:
    unsealing: Promise[object] = Promise()
    vault(unsealing).begin_to_open(RECORD, KEY_ID).discard()
    with pytest.raises(Bug):
        unsealing.resolve(b"\x07" * 32)


@pytest.mark.parametrize("record", [None, Record("prss", KEY_ID, 3, b""), Record("key", "key_" + "1" * 32, 3, b"")])
def test_another_record_is_not_taken_to_the_hsm(record: Record | None) -> None:
    with pytest.raises(Refused, match="no readable record"):
        vault(Promise()).begin_to_open(record, KEY_ID)

"""Keccak-256 in plain Python against the library that the enclave hashes with."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave.payloads import keccak256 as oracle
from policies.keccak import RATE_BYTES, keccak256


@settings(max_examples=40)
@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    assert keccak256(data) == oracle(data)


@pytest.mark.parametrize("length", [0, RATE_BYTES - 1, RATE_BYTES, RATE_BYTES + 1, 2 * RATE_BYTES - 1])
def test_around_a_whole_block(length: int) -> None:
    assert keccak256(bytes(length)) == oracle(bytes(length))


def test_the_selector_that_everybody_knows() -> None:
    assert keccak256(b"transfer(address,uint256)")[:4].hex() == "a9059cbb"

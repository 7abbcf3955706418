"""Combining shares: real ECDSA algebra, and every way in which it must refuse."""

from __future__ import annotations

import coincurve
import msgspec
import pytest

from appliance.coordinator.combine import ORDER, CombineFailed, combine, lagrange_at_zero
from enclave import wire
from tests.fakes.coordinator_side import ecdsa_share

H = bytes(range(32))
SECRET = 0xC0FFEE
KEY = coincurve.PrivateKey(SECRET.to_bytes(32, "big")).public_key.format()


def make_shares(committee: tuple[int, ...], seed: object = 1) -> dict[int, wire.ShareReport]:
    shares = {}
    for j in committee:
        s, point = ecdsa_share(SECRET, H, j, committee, seed)
        shares[j] = wire.ShareReport(bytes(16), j, point, s.to_bytes(32, "big"))
    return shares


@pytest.mark.parametrize("committee", [(1, 2, 3), (2, 3, 5), (1, 2, 3, 4, 5), (1, 3, 4, 6, 7, 8, 16)])
def test_shares_make_a_low_s_signature_that_recovers_the_key(committee: tuple[int, ...]) -> None:
    parities = set()
    for seed in range(12):
        value = combine(H, make_shares(committee, seed), KEY)
        rsv = bytes.fromhex(value.rsv[2:])
        assert int.from_bytes(rsv[32:64], "big") <= ORDER // 2
        assert coincurve.PublicKey.from_signature_and_message(rsv, H, hasher=None).format() == KEY
        assert coincurve.PublicKey(KEY).verify(bytes.fromhex(value.der[2:]), H, hasher=None)
        assert (value.r, value.s, value.recid) == ("0x" + rsv[:32].hex(), "0x" + rsv[32:64].hex(), rsv[64])
        assert value.public_key == "0x" + KEY.hex()
        parities.add(value.recid)
    assert parities == {0, 1}


def test_lagrange_coefficients_are_those_of_the_textbook() -> None:
    assert [lagrange_at_zero(j, (1, 2, 3)) for j in (1, 2, 3)] == [3, ORDER - 3, 1]


@pytest.mark.parametrize("member", [1, 2, 3])
def test_one_wrong_share_is_noticed(member: int) -> None:
    shares = make_shares((1, 2, 3))
    s = (int.from_bytes(shares[member].s, "big") + 1) % ORDER
    shares[member] = msgspec.structs.replace(shares[member], s=s.to_bytes(32, "big"))
    with pytest.raises(CombineFailed, match="does not verify"):
        combine(H, shares, KEY)


def test_another_key_is_noticed() -> None:
    other = coincurve.PrivateKey((SECRET + 1).to_bytes(32, "big")).public_key.format()
    with pytest.raises(CombineFailed, match="does not verify"):
        combine(H, make_shares((1, 2, 3)), other)


def test_another_message_is_noticed() -> None:
    with pytest.raises(CombineFailed, match="does not verify"):
        combine(bytes(31) + b"\1", make_shares((1, 2, 3)), KEY)


def test_a_zero_s_is_refused() -> None:
    shares = {j: msgspec.structs.replace(share, s=bytes(32)) for j, share in make_shares((1, 2, 3)).items()}
    with pytest.raises(CombineFailed, match="r or s is 0"):
        combine(H, shares, KEY)


def test_two_nonce_points_are_refused() -> None:
    shares = make_shares((1, 2, 3)) | {2: make_shares((1, 2, 3), seed=2)[2]}
    with pytest.raises(CombineFailed, match="different nonce points"):
        combine(H, shares, KEY)


def test_a_point_off_the_curve_is_refused() -> None:
    bad = b"\2" + b"\xff" * 32
    shares = {j: msgspec.structs.replace(share, r_point=bad) for j, share in make_shares((1, 2, 3)).items()}
    with pytest.raises(CombineFailed, match="not on the curve"):
        combine(H, shares, KEY)


def test_a_share_not_below_the_order_is_refused() -> None:
    shares = make_shares((1, 2, 3))
    shares[1] = msgspec.structs.replace(shares[1], s=ORDER.to_bytes(32, "big"))
    with pytest.raises(CombineFailed, match="not below the group order"):
        combine(H, shares, KEY)


def test_a_share_under_anothers_index_is_refused() -> None:
    shares = make_shares((1, 2, 3))
    shares[1] = msgspec.structs.replace(shares[1], index=2)
    with pytest.raises(CombineFailed, match="signer 1 gave the share of signer 2"):
        combine(H, shares, KEY)

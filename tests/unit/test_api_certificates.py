"""A certificate passes only if all signers of the pinned roster acknowledge this very key."""

from __future__ import annotations

import coincurve
import msgspec
import pytest

from appliance.api.certificates import CertificateRefused, verify_certificate, verify_key
from enclave import wire
from policies.roster import Roster
from tests.fakes.certificates import Dealer

replace = msgspec.structs.replace
OTHER_POINT = coincurve.PrivateKey(bytes(31) + b"\x07").public_key.format()
OFF_CURVE = b"\x02" + bytes(31) + b"\x05"  # x = 5 has no y on secp256k1


@pytest.mark.parametrize(("n", "t"), [(3, 1), (5, 1), (5, 2), (7, 3)])
def test_a_full_certificate_passes_in_any_order(n: int, t: int) -> None:
    dealer = Dealer.make(n, t)
    assert verify_certificate(list(reversed(dealer.certificate())), dealer.roster) == dealer.acknowledgement()


def test_missing_repeated_and_foreign_acknowledgements() -> None:
    dealer, stranger = Dealer.make(), Dealer.make(seed=2)
    acks = dealer.certificate()
    with pytest.raises(CertificateRefused, match="2 acknowledgements, the roster has 3"):
        verify_certificate(acks[:2], dealer.roster)
    with pytest.raises(CertificateRefused, match="4 acknowledgements"):
        verify_certificate([*acks, acks[0]], dealer.roster)
    with pytest.raises(CertificateRefused, match="not one of each"):
        verify_certificate([acks[0], acks[1], acks[1]], dealer.roster)
    foreign = stranger.sign(replace(dealer.acknowledgement(), index=3))
    with pytest.raises(CertificateRefused, match="signer-3 is not signed by its HSM identity key"):
        verify_certificate([acks[0], acks[1], foreign], dealer.roster)
    four = Dealer.make(n=4)
    with pytest.raises(CertificateRefused, match="not one of each"):
        verify_certificate([acks[0], acks[1], four.certificate()[3]], dealer.roster)


def test_one_signer_that_says_something_else() -> None:
    dealer = Dealer.make()
    acks = dealer.certificate()
    acks[2] = dealer.sign(replace(acks[2].acknowledgement, label="other"))
    with pytest.raises(CertificateRefused, match="signer-3 does not acknowledge what signer 1 does"):
        verify_certificate(acks, dealer.roster)


def test_an_altered_acknowledgement_breaks_its_signature() -> None:
    dealer = Dealer.make()
    acks = [
        wire.SignedAcknowledgement(replace(a.acknowledgement, public_key=OTHER_POINT), a.signature)
        for a in dealer.certificate()
    ]
    with pytest.raises(CertificateRefused, match="signer-1 is not signed"):
        verify_certificate(acks, dealer.roster)
    zero = [wire.SignedAcknowledgement(a.acknowledgement, bytes(64)) for a in dealer.certificate()]
    with pytest.raises(CertificateRefused, match="signer-1 is not signed"):
        verify_certificate(zero, dealer.roster)


def test_terms_of_another_network_roster_or_t() -> None:
    dealer = Dealer.make(5, 1)
    for change, message in [
        ({"network": "other"}, "belongs to network other"),
        ({"roster_digest": bytes(32)}, "another roster"),
        ({"tolerate": 2}, "tolerates 2, the roster says 1"),
        ({"public_shares": dealer.acknowledgement().public_shares[:4]}, "4 public shares for 5"),
    ]:
        acks = dealer.certificate(lambda ack, change=change: replace(ack, **change))
        with pytest.raises(CertificateRefused, match=message):
            verify_certificate(acks, dealer.roster)


def test_the_pinned_roster_counts_not_the_one_shown() -> None:
    dealer, other = Dealer.make(), Dealer.make()
    with pytest.raises(CertificateRefused, match="not signed by its HSM identity key"):
        verify_certificate(other.certificate(), dealer.roster)
    renamed = Roster(
        version=1,
        network="test",
        tolerate=1,
        signers=(replace(dealer.roster.signers[0], operator="Somebody"), *dealer.roster.signers[1:]),
    )
    with pytest.raises(CertificateRefused, match="another roster"):
        verify_certificate(dealer.certificate(), renamed)


def test_points_that_all_signers_signed_but_that_are_no_key() -> None:
    dealer = Dealer.make(5, 1)
    shares = dealer.acknowledgement().public_shares
    for change, message in [
        ({"public_key": OFF_CURVE}, "not on secp256k1"),
        ({"public_shares": (*shares[:4], OFF_CURVE)}, "not on secp256k1"),
        ({"public_key": OTHER_POINT}, "do not determine the public key"),
        ({"public_shares": (*shares[:4], OTHER_POINT)}, "share of signer 5 is not on the key's polynomial"),
        ({"public_shares": (shares[1], shares[0], *shares[2:])}, "do not determine the public key"),
    ]:
        acks = dealer.certificate(lambda ack, change=change: replace(ack, **change))
        with pytest.raises(CertificateRefused, match=message):
            verify_certificate(acks, dealer.roster)


@pytest.mark.parametrize(("n", "t"), [(3, 1), (5, 2), (5, 1)])
def test_shares_of_a_degree_above_t(n: int, t: int) -> None:
    dealer = Dealer.make(n, t, degree=t + 1)
    with pytest.raises(CertificateRefused, match="do not determine the public key"):
        verify_certificate(dealer.certificate(), dealer.roster)


def test_an_answer_that_says_something_else_than_its_certificate() -> None:
    dealer = Dealer.make()
    answer = dealer.key_answer()
    assert verify_key(answer, dealer.roster) == dealer.acknowledgement()
    for change, message in [
        ({"public_key": "0x" + OTHER_POINT.hex()}, "publicKey"),
        ({"chain_code": "0x" + bytes(32).hex()}, "chainCode"),
        ({"label": "other"}, "label"),
        ({"id": "key_" + "cd" * 16}, "id"),
        ({"tolerate": 2}, "tolerate"),
        ({"signers": 5}, "signers"),
        ({"public_key": None}, "publicKey"),
        ({"certificate": None}, "no certificate"),
    ]:
        with pytest.raises(CertificateRefused, match=message):
            verify_key(replace(answer, **change), dealer.roster)


@pytest.mark.parametrize("text", ["", "zz", "00", "93" * 5000])
def test_acknowledgements_that_cannot_be_parsed(text: str) -> None:
    dealer = Dealer.make()
    answer = dealer.key_answer()
    assert answer.certificate is not None
    acks = (text, *answer.certificate.acknowledgements[1:])
    broken = replace(answer, certificate=replace(answer.certificate, acknowledgements=acks))
    with pytest.raises(CertificateRefused, match=r"acknowledgement (cannot be parsed|is too long)"):
        verify_key(broken, dealer.roster)

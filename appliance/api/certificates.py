"""Key certificates: why a client can trust a public key whatever the coordinator says (SPEC 2.4).

A certificate is the acknowledgements of all `n` signers of the *pinned* roster, each signed by its HSM.
Nothing of a key is shown, and no address is made of it, before `verify_certificate` has passed.
"""

from __future__ import annotations

from collections.abc import Sequence

import coincurve
import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from appliance.api.derivation import SECP256K1_ORDER
from appliance.api.models import Key
from enclave import wire
from policies.errors import CallerError, KeymootError
from policies.roster import Roster, RosterSigner

MAX_ACKNOWLEDGEMENT_HEX = 2 * 4096


COMPARE = "Compare `keymoot roster show` with every operator and with the coordinator: one of the files is another."


class CertificateRefused(KeymootError):
    """A key's certificate does not prove that all signers of the pinned roster hold this key."""


def verify_certificate(acks: Sequence[wire.SignedAcknowledgement], roster: Roster) -> wire.Acknowledgement:
    """The acknowledgement that all `n` signers of `roster` signed alike (the one of index 1).

    Raises `CertificateRefused`: a signer missing, twice or foreign; a wrong signature; two that differ;
    another network, roster or `t`; a point off the curve; public shares that do not belong to the public key.
    """
    if len(acks) != roster.n:
        raise CertificateRefused(f"{len(acks)} acknowledgements, the roster has {roster.n} signers")
    by_index = {ack.acknowledgement.index: ack for ack in acks}
    if set(by_index) != set(roster.indices):
        raise CertificateRefused("the acknowledgements are not one of each signer of the roster")
    first = by_index[1].acknowledgement
    for signer in roster.signers:
        ack = by_index[signer.index]
        if msgspec.structs.replace(ack.acknowledgement, index=1) != first:
            raise CertificateRefused(f"signer {signer.name} does not acknowledge what signer 1 does")
        _verify_signature(ack, signer)
    _verify_terms(first, roster)
    _verify_shares(first)
    return first


def verify_key(key: Key, roster: Roster) -> wire.Acknowledgement:
    """What the certificate in the answer `key` proves, after a check that the answer says nothing else.

    Raises `CertificateRefused`, also where there is no certificate or its hex is malformed.
    """
    if key.certificate is None:
        raise CertificateRefused("the answer holds no certificate")
    proven = verify_certificate([_parse(text) for text in key.certificate.acknowledgements], roster)
    said = {
        "id": (key.id, proven.key_id),
        "publicKey": (key.public_key, "0x" + proven.public_key.hex()),
        "chainCode": (key.chain_code, "0x" + proven.chain_code.hex()),
        "label": (key.label, proven.label),
        "curve": (key.curve, proven.curve),
        "signers": (key.signers, roster.n),
        "tolerate": (key.tolerate, proven.tolerate),
    }
    for field, (claimed, certified) in said.items():
        if claimed != certified:
            raise CertificateRefused(f"the answer's {field} is {claimed}, the certificate's is {certified}")
    return proven


def encode_acknowledgement(ack: wire.SignedAcknowledgement) -> str:
    """`ack` as it stands in `models.Certificate`: hex of its canonical wire encoding."""
    return wire.encode(ack).hex()


def _parse(text: str) -> wire.SignedAcknowledgement:
    if len(text) > MAX_ACKNOWLEDGEMENT_HEX:
        raise CertificateRefused("an acknowledgement is too long")
    try:
        return wire.decode(bytes.fromhex(text.removeprefix("0x")), wire.SignedAcknowledgement)
    except (ValueError, CallerError) as error:
        raise CertificateRefused(f"an acknowledgement cannot be parsed: {error}") from None


def _verify_signature(ack: wire.SignedAcknowledgement, signer: RosterSigner) -> None:
    """ECDSA P-256 over the acknowledgement's digest, by the identity key that the roster pins."""
    r, s = int.from_bytes(ack.signature[:32], "big"), int.from_bytes(ack.signature[32:], "big")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), signer.identity_point)
        key.verify(
            utils.encode_dss_signature(r, s),
            ack.acknowledgement.digest(),
            ec.ECDSA(utils.Prehashed(hashes.SHA256())),
        )
    except (InvalidSignature, ValueError):
        raise CertificateRefused(
            f"the acknowledgement of signer {signer.name} is not signed by its HSM identity key"
        ) from None


def _verify_terms(proven: wire.Acknowledgement, roster: Roster) -> None:
    if proven.network != roster.network:
        raise CertificateRefused(f"the key belongs to network {proven.network}, not to {roster.network}")
    if proven.roster_digest != roster.digest():
        raise CertificateRefused("the key was made under another roster than the pinned one")
    if proven.tolerate != roster.tolerate:
        raise CertificateRefused(f"the key tolerates {proven.tolerate}, the roster says {roster.tolerate}")
    if len(proven.public_shares) != roster.n:
        raise CertificateRefused(f"{len(proven.public_shares)} public shares for {roster.n} signers")


def _verify_shares(proven: wire.Acknowledgement) -> None:
    """All `X_j` (at `j`) and the public key (at 0) lie on one polynomial of degree at most `t`."""
    points = {j: _point(share) for j, share in enumerate(proven.public_shares, start=1)}
    base = list(range(1, proven.tolerate + 2))
    expected = {0: _point(proven.public_key)} | {j: points[j] for j in points if j not in base}
    for at, point in expected.items():
        if _interpolate({j: points[j] for j in base}, at) != point:
            raise CertificateRefused(
                "the public shares do not determine the public key"
                if at == 0
                else f"the public share of signer {at} is not on the key's polynomial"
            )


def _point(data: bytes) -> coincurve.PublicKey:
    try:
        return coincurve.PublicKey(data)
    except ValueError:
        raise CertificateRefused("a point of the certificate is not on secp256k1") from None


def _interpolate(points: dict[int, coincurve.PublicKey], at: int) -> coincurve.PublicKey | None:
    """The value at `at` of the polynomial through `points`; None for the identity."""
    terms = [point.multiply(_lagrange(points, j, at).to_bytes(32, "big")) for j, point in points.items()]
    try:
        return coincurve.PublicKey.combine_keys(terms)
    except ValueError:
        return None


def _lagrange(points: dict[int, coincurve.PublicKey], j: int, at: int) -> int:
    """The Lagrange coefficient of `j` at `at`, never 0 since `at` is no node."""
    numerator = denominator = 1
    for i in points:
        if i != j:
            numerator = numerator * (at - i) % SECP256K1_ORDER
            denominator = denominator * (j - i) % SECP256K1_ORDER
    return numerator * pow(denominator, -1, SECP256K1_ORDER) % SECP256K1_ORDER

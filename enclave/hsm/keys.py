"""The two keys on the token: making, finding, and refusing those that could leave it.

Modules ignore templates, and some wrap what they call non-extractable. So attributes are read back, and
wrapping the key is tried for real.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pkcs11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import exceptions as p11
from pkcs11.util.ec import encode_named_curve_parameters

from enclave.hsm.errors import HsmMisconfigured, KeyExposed, KeyMissing
from enclave.hsm.module import hsm_call
from policies.roster import P256_POINT_BYTES

DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
SEALING_KEY_BITS = 256

# A key handle. python-pkcs11 makes its class at run time from what the key can do, so no static type fits.
Handle = Any

_WRAPPINGS = (
    (Mechanism.AES_KEY_WRAP, None),
    (Mechanism.AES_KEY_WRAP_PAD, None),
    (Mechanism.AES_CBC_PAD, bytes(16)),
    (Mechanism.AES_CBC, bytes(16)),
    (Mechanism.AES_ECB, None),
    (Mechanism.AES_GCM, GCMParams(bytes(12))),
)


class ProfileName(StrEnum):
    """How a sealing key is used; recorded in every sealed record."""

    GCM = "gcm"
    HMAC_KDF = "hmac-kdf"


_PROFILE_OF_TYPE = {
    KeyType.AES: ProfileName.GCM,
    KeyType.GENERIC_SECRET: ProfileName.HMAC_KDF,
    KeyType.SHA256_HMAC: ProfileName.HMAC_KDF,
}


@dataclass(frozen=True)
class Identity:
    """The signer's P-256 identity key: a handle, and the 65-byte uncompressed point."""

    private: Handle
    point: bytes

    def sign(self, digest32: bytes) -> bytes:
        """ECDSA over a 32-byte digest: 64 bytes, r‖s. Raises the module's errors."""
        # The mechanism is named because the library's default hashes once more, with SHA-512.
        return bytes(self.private.sign(digest32, mechanism=Mechanism.ECDSA))


def make_sealing_key(session: pkcs11.Session, label: str, profile: ProfileName, *, store: bool = True) -> Handle:
    """A new sealing key that can do what its profile needs and nothing else. Raises the module's errors."""
    if profile is ProfileName.GCM:
        kind, uses = KeyType.AES, MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT
    else:
        kind, uses = KeyType.GENERIC_SECRET, MechanismFlag.SIGN | MechanismFlag.VERIFY
    return session.generate_key(
        kind,
        SEALING_KEY_BITS,
        id=label.encode(),
        label=label,
        store=store,
        capabilities=uses,
        template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True},
    )


def find_sealing_key(session: pkcs11.Session, label: str, *, accept_export: bool = False) -> tuple[Handle, ProfileName]:
    """The sealing key `label`, checked, and the profile its type is for. `accept_export`: as in `refuse_exposed`.

    Raises `KeyMissing`, `KeyExposed`, `HsmMisconfigured`, `HsmAway`.
    """
    key = _find(session, ObjectClass.SECRET_KEY, label)
    with hsm_call("tell a key's type"):
        profile = _PROFILE_OF_TYPE.get(key.key_type)
    if profile is None:
        raise HsmMisconfigured(f"key {label!r} is neither AES nor an HMAC key: choose another label")
    refuse_exposed(session, key, label, accept_export=accept_export)
    return key, profile


def make_identity(session: pkcs11.Session, label: str) -> None:
    """A new P-256 identity key pair on the token. Raises the module's errors."""
    parameters = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
    )
    parameters.generate_keypair(
        id=label.encode(),
        label=label,
        store=True,
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True},
    )


def find_identity(session: pkcs11.Session, label: str, *, accept_export: bool = False) -> Identity:
    """The identity key `label`, checked: it cannot leave, and the public point is the private key's.

    Raises `KeyMissing`, `KeyExposed`, `HsmMisconfigured`, `HsmAway`.
    """
    private = _find(session, ObjectClass.PRIVATE_KEY, label)
    public = _find(session, ObjectClass.PUBLIC_KEY, label)
    with hsm_call("read the identity key's public point"):
        identity = Identity(private, decode_point(public[Attribute.EC_POINT]))
    refuse_exposed(session, private, label, accept_export=accept_export)
    check_pair(identity, label)
    return identity


def decode_point(attribute: bytes) -> bytes:
    """`CKA_EC_POINT` as a 65-byte uncompressed P-256 point: most modules wrap it in a DER OCTET STRING.

    Raises `HsmMisconfigured`.
    """
    point = attribute
    if len(attribute) == P256_POINT_BYTES + 2 and attribute[:2] == bytes((0x04, P256_POINT_BYTES)):
        point = attribute[2:]
    try:
        if len(point) != P256_POINT_BYTES:
            raise ValueError("length")
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise HsmMisconfigured("the identity key is not on P-256: choose another identity_key_label") from None
    return point


def refuse_exposed(session: pkcs11.Session, key: Handle, label: str, *, accept_export: bool = False) -> None:
    """Refuse `key` unless the module says it cannot leave *and*, but with `accept_export`, it does not when we try.

    Raises `KeyExposed`, `HsmAway`.
    """
    if read_attribute(key, Attribute.SENSITIVE) is not True or read_attribute(key, Attribute.EXTRACTABLE) is not False:
        raise KeyExposed(f"key {label!r} is not sensitive and non-extractable: provision under another label")
    # Some modules answer with nothing in place of an error.
    if read_attribute(key, Attribute.VALUE) not in (None, b""):
        raise KeyExposed(f"the module shows the value of key {label!r}: it cannot be used")
    if not accept_export:
        refuse_wrappable(session, key, label)


def refuse_wrappable(session: pkcs11.Session, key: Handle, label: str) -> None:
    """Raises `KeyExposed` if the module wraps `key`."""
    exported = exporting_mechanisms(session, key)
    if exported:
        raise KeyExposed(
            f"the module exports key {label!r} with {exported[0]}, though it is non-extractable: use another module, "
            "or set hsm.accept_key_export if the PIN alone may guard the keys"
        )


def exporting_mechanisms(session: pkcs11.Session, key: Handle) -> list[str]:
    """Try to wrap `key` under a throw-away AES key in every way we know: the mechanisms that did."""
    try:
        wrapping: Handle = session.generate_key(KeyType.AES, 256, store=False, capabilities=MechanismFlag.WRAP)
    except p11.PKCS11Error:
        return []  # The module makes no wrapping keys: nothing to try.
    worked = []
    try:
        for mechanism, parameter in _WRAPPINGS:
            with contextlib.suppress(p11.PKCS11Error):
                wrapping.wrap_key(key, mechanism=mechanism, mechanism_param=parameter)
                worked.append(mechanism.name)
    finally:
        with contextlib.suppress(p11.PKCS11Error):
            wrapping.destroy()
    return worked


def exists(session: pkcs11.Session, object_class: ObjectClass, label: str) -> bool:
    """Whether the token holds at least one such object. Raises `HsmAway`."""
    with hsm_call("search for keys"):
        found = list(session.get_objects({Attribute.CLASS: object_class, Attribute.LABEL: label}))
    return bool(found)


def _find(session: pkcs11.Session, object_class: ObjectClass, label: str) -> Handle:
    with hsm_call("search for keys"):
        # All of them at once: a search left open blocks the session.
        found = list(session.get_objects({Attribute.CLASS: object_class, Attribute.LABEL: label}))
    what = f"{object_class.name.lower().replace('_', ' ')} {label!r}"
    if not found:
        raise KeyMissing(f"no {what} on the token: run `keymoot enclave provision`, or correct the label")
    if len(found) > 1:
        raise HsmMisconfigured(f"{len(found)} objects are {what}: remove those that are not Keymoot's")
    return found[0]


def read_attribute(key: Handle, attribute: Attribute) -> object:
    """The attribute, or None where the module does not tell."""
    try:
        return key[attribute]
    except p11.PKCS11Error:
        return None


def check_pair(identity: Identity, label: str) -> None:
    """A fresh signature verifies under the public point. Raises `HsmMisconfigured`, `HsmAway`."""
    digest = os.urandom(DIGEST_BYTES)
    with hsm_call("sign with the identity key"):
        signature = identity.sign(digest)
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), identity.point)
    try:
        if len(signature) != SIGNATURE_BYTES:
            raise InvalidSignature
        encoded = utils.encode_dss_signature(
            int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        )
        public.verify(encoded, digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except InvalidSignature:
        raise HsmMisconfigured(
            f"public and private key {label!r} do not belong together: provision under another label"
        ) from None

"""Trying a module's operations for real, on keys that live no longer than the trial.

A module that makes no session keys (a TPM) is asked with the configured keys of its token, where they exist.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import msgspec
import pkcs11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import exceptions as p11
from pkcs11.util.ec import encode_named_curve_parameters

from enclave.errors import KeymootError
from enclave.hsm.config import HsmConfig
from enclave.hsm.errors import HsmAway, HsmMisconfigured
from enclave.hsm.keys import (
    DIGEST_BYTES,
    Handle,
    Identity,
    ProfileName,
    check_pair,
    decode_point,
    exporting_mechanisms,
    make_sealing_key,
    read_attribute,
)
from enclave.hsm.module import describe, hsm_call
from enclave.hsm.profiles import GcmProfile, HmacKdfProfile, SealingProfile, WrappedKey, self_test
from enclave.hsm.records import Binding, RecordContext

T = TypeVar("T")

ROUNDS: Final = 50
MOST_S: Final = 0.5
LABEL: Final = "keymoot-check"
_BINDING: Final = Binding(RecordContext("check", 0, "check", "", 0, 0), "", "", "")
_DATA: Final = bytes(range(32))
_ED25519_POINT_BYTES: Final = 32
# The curve's name as a PrintableString, which is what modules of PKCS#11 2.40 with Ed25519 take.
_ED25519_PARAMETERS: Final = b"\x13\x0cedwards25519"

# The names under which the operations are reported.
GCM, HMAC, ECDSA = "AES-256-GCM", "HMAC-SHA256", "ECDSA P-256"
COUNTER, SECRET, EXPORT = "seal counter", "keys stay secret", "keys cannot leave"


class Operation(msgspec.Struct, frozen=True):
    """One operation: whether it works, the median time of a call in microseconds, and what to know about it."""

    name: str
    works: bool
    detail: str
    median_us: float | None = None


def try_operations(config: HsmConfig, session: pkcs11.Session) -> tuple[Operation, ...]:
    """Everything, in the order in which it is shown. Raises nothing of the module's: what fails is told."""
    return (
        _sealing(config, session, GCM, ProfileName.GCM),
        _sealing(config, session, HMAC, ProfileName.HMAC_KDF),
        _try("AES key wrap", lambda: _key_wrap(session)),
        _try(ECDSA, lambda: _ecdsa(config, session)),
        _try("Ed25519", lambda: _ed25519(session)),
        _try(COUNTER, lambda: _data_object(session)),
        _try(SECRET, lambda: _attributes(config, session)),
        _try(EXPORT, lambda: _export(config, session)),
    )


# --- the operations: each returns what to know about it and its median time, or raises ---


def _sealing(config: HsmConfig, session: pkcs11.Session, name: str, profile: ProfileName) -> Operation:
    def operation() -> tuple[str, float | None]:
        with _secret_key(config, session, profile) as (key, origin):
            used: SealingProfile = GcmProfile(key, lambda: None) if profile is ProfileName.GCM else HmacKdfProfile(key)
            self_test(used)
            nonces: list[WrappedKey] = []
            seal_us = _median_us(lambda: nonces.append(used.wrap(_DATA, _BINDING)))
            unseal_us = _median_us(lambda: used.unwrap(nonces[0], _BINDING))
        if len({wrapped.salt for wrapped in nonces}) != len(nonces):
            raise HsmMisconfigured("it used one nonce twice")
        return (
            f"seals and unseals {origin}, refuses altered data, context and nonce; unseal {unseal_us:.0f} µs",
            seal_us,
        )

    return _try(name, operation)


def _key_wrap(session: pkcs11.Session) -> tuple[str, float | None]:
    """RFC 3394: what is unwrapped is wrapped to the same bytes again; altered bytes are refused."""
    uses = MechanismFlag.WRAP | MechanismFlag.UNWRAP
    template = {Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True}
    with (
        _passing(session.generate_key(KeyType.AES, 256, label=LABEL, store=False, capabilities=uses)) as wrapping,
        _passing(session.generate_key(KeyType.AES, 256, label=LABEL, store=False, template=template)) as key,
    ):

        def wrap(which: Handle) -> bytes:
            return bytes(wrapping.wrap_key(which, mechanism=Mechanism.AES_KEY_WRAP))

        def unwrap(data: bytes) -> Handle:
            return wrapping.unwrap_key(
                ObjectClass.SECRET_KEY,
                KeyType.AES,
                data,
                mechanism=Mechanism.AES_KEY_WRAP,
                label=LABEL,
                store=False,
                template=template,
            )

        wrapped = wrap(key)
        with _passing(unwrap(wrapped)) as again:
            if wrap(again) != wrapped:
                raise HsmMisconfigured("it unwraps another key than it wrapped")
        with contextlib.suppress(p11.PKCS11Error), _passing(unwrap(bytes((wrapped[0] ^ 1, *wrapped[1:])))):
            raise HsmMisconfigured("it unwraps altered data")
        return "wraps and unwraps, refuses altered data (not needed)", _median_us(lambda: wrap(key))


def _ecdsa(config: HsmConfig, session: pkcs11.Session) -> tuple[str, float | None]:
    """Signatures verify with another library."""
    with _identity(config, session) as (identity, origin):
        check_pair(identity, LABEL)
        return f"signs {origin}, verified", _median_us(lambda: identity.sign(os.urandom(DIGEST_BYTES)))


def _ed25519(session: pkcs11.Session) -> tuple[str, float | None]:
    parameters = session.create_domain_parameters(
        KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: _ED25519_PARAMETERS}, local=True
    )
    public, private = parameters.generate_keypair(mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, label=LABEL, store=False)
    with _passing(public), _passing(private) as key:
        point = bytes(public[Attribute.EC_POINT])[-_ED25519_POINT_BYTES:]
        signature = key.sign(_DATA, mechanism=Mechanism.EDDSA)
        ed25519.Ed25519PublicKey.from_public_bytes(point).verify(signature, _DATA)
        return "signs, verified (not needed)", _median_us(lambda: key.sign(_DATA, mechanism=Mechanism.EDDSA))


def _data_object(session: pkcs11.Session) -> tuple[str, float | None]:
    template = {
        Attribute.CLASS: ObjectClass.DATA,
        Attribute.TOKEN: False,
        Attribute.PRIVATE: True,
        Attribute.LABEL: LABEL,
        Attribute.VALUE: _DATA,
    }
    with _passing(session.create_object(template)) as stored:
        if bytes(stored[Attribute.VALUE]) != _DATA:
            raise HsmMisconfigured("it reads back another value than was written")
    return "a data object is written and read back", None


def _attributes(config: HsmConfig, session: pkcs11.Session) -> tuple[str, float | None]:
    """SENSITIVE and EXTRACTABLE as asked for, and no value shown."""
    with _any_key(config, session) as (key, origin):
        if read_attribute(key, Attribute.SENSITIVE) is not True:
            raise HsmMisconfigured("it does not say that a sensitive key is sensitive")
        if read_attribute(key, Attribute.EXTRACTABLE) is not False:
            raise HsmMisconfigured("it does not say that a non-extractable key is non-extractable")
        if read_attribute(key, Attribute.VALUE) not in (None, b""):
            raise HsmMisconfigured("it shows the value of a sensitive key")
    return f"sensitive, non-extractable, value not shown ({origin.removeprefix('with ')})", None


def _export(config: HsmConfig, session: pkcs11.Session) -> tuple[str, float | None]:
    with _any_key(config, session) as (key, _):
        exported = exporting_mechanisms(session, key)
    if exported:
        raise HsmMisconfigured(f"it exports a non-extractable key with {', '.join(exported)}")
    return "a non-extractable key is not wrapped", None


# --- keys to try with ---


@contextlib.contextmanager
def _secret_key(config: HsmConfig, session: pkcs11.Session, profile: ProfileName) -> Iterator[tuple[Handle, str]]:
    """A throw-away key for `profile`, or the token's own sealing key if that is for it."""
    made: Handle | None = None
    try:
        made = make_sealing_key(session, LABEL, profile, store=False)
    except p11.PKCS11Error as error:
        label = config.sealing_key_label
        own = _own(session, ObjectClass.SECRET_KEY, label)
        wanted = (KeyType.AES,) if profile is ProfileName.GCM else (KeyType.GENERIC_SECRET, KeyType.SHA256_HMAC)
        if own is None or own.key_type not in wanted:
            raise HsmMisconfigured(
                f"it makes no such session key ({describe(error)}), and the token has no such key {label!r}"
            ) from error
    if made is None:
        yield own, f"with key {label!r}"
    else:
        with _passing(made) as key:
            yield key, "with a session key"


@contextlib.contextmanager
def _any_key(config: HsmConfig, session: pkcs11.Session) -> Iterator[tuple[Handle, str]]:
    """A key of the profile that the module makes keys for, GCM first."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(_secret_key(config, session, ProfileName.GCM))
        except HsmMisconfigured:
            found = stack.enter_context(_secret_key(config, session, ProfileName.HMAC_KDF))
        yield found


@contextlib.contextmanager
def _identity(config: HsmConfig, session: pkcs11.Session) -> Iterator[tuple[Identity, str]]:
    parameters = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
    )
    hidden = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True}
    public: Handle
    private: Handle
    made: tuple[Handle, Handle] | None = None
    try:
        made = parameters.generate_keypair(
            label=LABEL, store=False, capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY, private_template=hidden
        )
    except p11.PKCS11Error as error:
        label = config.identity_key_label
        public = _own(session, ObjectClass.PUBLIC_KEY, label)
        private = _own(session, ObjectClass.PRIVATE_KEY, label)
        if public is None or private is None:
            raise HsmMisconfigured(
                f"it makes no session key ({describe(error)}), and no key {label!r} exists"
            ) from error
    if made is None:
        yield Identity(private, decode_point(public[Attribute.EC_POINT])), f"with key {label!r}"
    else:
        with _passing(made[0]) as public, _passing(made[1]) as private:
            yield Identity(private, decode_point(public[Attribute.EC_POINT])), "with a session key"


def _own(session: pkcs11.Session, object_class: ObjectClass, label: str) -> Handle | None:
    with hsm_call("search for keys"):
        # All of them at once: a search left open blocks the session.
        found = list(session.get_objects({Attribute.CLASS: object_class, Attribute.LABEL: label}))
    return found[0] if found else None


@contextlib.contextmanager
def _passing(made: Handle) -> Iterator[Handle]:
    """Destroys the object at the end."""
    try:
        yield made
    finally:
        with contextlib.suppress(p11.PKCS11Error):
            made.destroy()


# --- trying and timing ---


def _try(name: str, operation: Callable[[], tuple[str, float | None]]) -> Operation:
    try:
        detail, median_us = operation()
    except HsmAway as error:
        cause = error.__cause__
        return Operation(name, False, _words(cause) if isinstance(cause, p11.PKCS11Error) else str(error))
    except KeymootError as error:
        return Operation(name, False, str(error))
    except p11.PKCS11Error as error:
        return Operation(name, False, _words(error))
    except InvalidSignature:
        return Operation(name, False, "its signature does not verify")
    return Operation(name, True, detail, median_us)


def _words(error: p11.PKCS11Error) -> str:
    # The bare class is what python-pkcs11 raises by itself, where an answer makes no sense.
    return "its answer makes no sense" if type(error) is p11.PKCS11Error else describe(error)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The result and the time in microseconds."""
    start_ns = time.perf_counter_ns()
    made = call()
    return made, (time.perf_counter_ns() - start_ns) / 1000


def _median_us(call: Callable[[], object]) -> float:
    """Of `ROUNDS` calls, or as many as fit into `MOST_S`."""
    times: list[float] = []
    deadline_s = time.monotonic() + MOST_S
    while len(times) < ROUNDS and (not times or time.monotonic() < deadline_s):
        times.append(timed(call)[1])
    return statistics.median(times)

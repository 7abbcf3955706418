"""The HSM as the enclave uses it: an identity that signs, and sealing. Used on the HSM thread alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pkcs11 import ObjectClass
from pkcs11 import exceptions as p11

from enclave.hsm.config import HsmConfig
from enclave.hsm.counter import create_counter
from enclave.hsm.errors import HsmAway, HsmMisconfigured, SealBroken
from enclave.hsm.keys import (
    DIGEST_BYTES,
    SIGNATURE_BYTES,
    Identity,
    ProfileName,
    exists,
    find_identity,
    make_identity,
    make_sealing_key,
)
from enclave.hsm.module import AWAY_REMEDY, Module, describe, hsm_call, open_module
from enclave.hsm.profiles import (
    Canary,
    SealingProfile,
    WrappedKey,
    choose_profile,
    open_profile,
    self_test,
)
from enclave.hsm.records import (
    RECORD_FORMAT,
    Binding,
    RecordContext,
    SealedRecord,
    broken,
    new_data_key,
    parse_record,
    seal_payload,
    serialize_record,
    unseal_payload,
)
from enclave.secret import Secret
from policies.errors import Bug, CallerError
from policies.roster import identity_fingerprint

_CANNOT = (
    p11.FunctionNotSupported,
    p11.GeneralError,
    p11.MechanismInvalid,
    p11.AttributeTypeInvalid,
    p11.AttributeValueInvalid,
    p11.TemplateInconsistent,
)

Observe = Callable[[str, int], None]


@dataclass(frozen=True)
class SealingKey:
    """One sealing key of the token and how it is used."""

    label: str
    profile: SealingProfile


class Hsm:
    """An open module with checked keys, for signer `signer` of `network`. Synchronous; one thread only.

    Every method but `close` raises `HsmAway` when the module, token or session is gone: close it then and
    open another one.
    """

    def __init__(
        self,
        module: Module,
        owner: tuple[str, int],
        identity: Identity,
        sealing: SealingKey,
        canary: Canary,
        retired: tuple[SealingKey, ...] = (),
        observe: Observe = lambda *_: None,
    ) -> None:
        """`observe(operation, nanoseconds)` is told of each call that went well: `seal`, `unseal`, `sign`, `check`."""
        self._module = module
        self._network, self._signer = owner
        self._identity = identity
        self._fingerprint = identity_fingerprint(identity.point)
        self._sealing = sealing
        self._canary = canary
        self._keys = {key.label: key for key in (*retired, sealing)}
        self._observe = observe

    @property
    def identity_point(self) -> bytes:
        """The identity key's 65-byte uncompressed P-256 point."""
        return self._identity.point

    @property
    def profile(self) -> str:
        """How new records are sealed: `gcm` or `hmac-kdf`."""
        return self._sealing.profile.name.value

    def sign(self, digest32: bytes) -> bytes:
        """ECDSA P-256 by the identity key over a 32-byte digest: 64 bytes, r‖s. Raises `HsmAway`."""
        if len(digest32) != DIGEST_BYTES:
            raise Bug(f"the identity key signs {DIGEST_BYTES}-byte digests, not {len(digest32)} bytes")
        started_ns = time.perf_counter_ns()
        with hsm_call("sign with the identity key"):
            signature = self._identity.sign(digest32)
        self._observe("sign", time.perf_counter_ns() - started_ns)
        if len(signature) != SIGNATURE_BYTES:
            raise HsmMisconfigured(f"the module's ECDSA gives {len(signature)} bytes, not {SIGNATURE_BYTES}")
        return signature

    def seal(self, context: RecordContext, plaintext: Secret | bytes) -> bytes:
        """A sealed record of `plaintext` (at most 60 KiB), bound to `context`. One HSM call.

        Raises `CallerError`, `SealLimitReached`, `HsmAway`.
        """
        if (context.network, context.signer) != (self._network, self._signer):
            raise CallerError("this HSM seals records of its own network and signer alone")
        key = self._sealing
        binding = self._binding(context, key)
        data_key = new_data_key()
        payload = seal_payload(data_key, binding, plaintext)
        started_ns = time.perf_counter_ns()
        with hsm_call("seal"):
            key.profile.count_seal()
            wrapped = key.profile.wrap(data_key, binding)
        self._observe("seal", time.perf_counter_ns() - started_ns)
        return serialize_record(
            SealedRecord(RECORD_FORMAT, self.profile, key.label, wrapped.salt, wrapped.sealed, payload)
        )

    def unseal(self, context: RecordContext, sealed: bytes) -> Secret:
        """The plaintext of a record that was sealed here as `context`. One HSM call.

        Raises `SealBroken` for a record that is altered or is not `context`'s, `HsmAway`.
        """
        record = parse_record(sealed, context)
        key = self._key_of(record, context)
        binding = self._binding(context, key)
        data_key = self._unwrap(key, WrappedKey(record.salt, record.sealed_key), binding)
        return unseal_payload(data_key, binding, record.payload)

    def rewrap(self, context: RecordContext, sealed: bytes) -> bytes:
        """The record with its share-encryption key sealed by the present sealing key; the payload is not opened. The
        same bytes where it is already. Three HSM calls: the new seal is tried before anything relies on it.

        Raises `SealBroken`, `SealLimitReached`, `HsmAway`, `HsmMisconfigured`.
        """
        record = parse_record(sealed, context)
        old, new = self._key_of(record, context), self._sealing
        if old.label == new.label:
            return sealed
        data_key = self._unwrap(old, WrappedKey(record.salt, record.sealed_key), self._binding(context, old))
        binding = self._binding(context, new)
        with hsm_call("seal"):
            new.profile.count_seal()
            wrapped = new.profile.wrap(data_key, binding)
        if self._unwrap(new, wrapped, binding) != data_key:
            raise HsmMisconfigured(f"sealing key {new.label!r} does not unseal what it has sealed")
        return serialize_record(
            SealedRecord(RECORD_FORMAT, self.profile, new.label, wrapped.salt, wrapped.sealed, record.payload)
        )

    def _key_of(self, record: SealedRecord, context: RecordContext) -> SealingKey:
        key = self._keys.get(record.key_label)
        if key is None or record.profile != key.profile.name:
            raise SealBroken(
                f"sealed record {context.kind}/{context.name} needs sealing key {record.key_label!r} in "
                f"profile {record.profile}: name that key in hsm.retired_key_labels if it is yours"
            )
        return key

    def healthy(self) -> None:
        """Ask the HSM to unseal something known: one call. Raises `HsmAway`."""
        started_ns = time.perf_counter_ns()
        self._canary.check(self._sealing.profile)
        self._observe("check", time.perf_counter_ns() - started_ns)

    def close(self) -> None:
        """Log out and finalize the module. Never fails."""
        self._module.close()

    def _unwrap(self, key: SealingKey, wrapped: WrappedKey, binding: Binding) -> bytes:
        started_ns = time.perf_counter_ns()
        try:
            unwrapped = key.profile.unwrap(wrapped, binding)
            self._observe("unseal", time.perf_counter_ns() - started_ns)
            return unwrapped
        except p11.PKCS11Error as error:
            # A module has one and the same error for an altered record and for its own faults. What was
            # sealed at the start tells them apart: if that no longer unseals either, this raises `HsmAway`.
            self.healthy()
            if key.profile.name is not ProfileName.GCM:
                raise HsmAway(f"the HSM cannot unseal: {describe(error)}", AWAY_REMEDY) from error
            raise broken(binding) from None

    def _binding(self, context: RecordContext, key: SealingKey) -> Binding:
        return Binding(context, self._fingerprint, key.profile.name, key.label)


@dataclass(frozen=True)
class Provisioned:
    """What operators put into the roster: the 65-byte identity point, and how records are sealed."""

    identity_point: bytes
    profile: str

    @property
    def fingerprint(self) -> str:
        """What operators compare out of band."""
        return identity_fingerprint(self.identity_point)


def open_hsm(
    config: HsmConfig,
    network: str,
    signer: int,
    pause: Callable[[float], None] = time.sleep,
    observe: Observe = lambda *_: None,
) -> Hsm:
    """Open the module, check both keys, test that sealing works and that altered records are refused.

    `observe`: see `Hsm`. `pause(seconds)` is called between attempts. Raises `HsmAway` or `HsmMisconfigured`, with what
    to do.
    """
    module = open_module(config, pause)
    try:
        identity = find_identity(module.session, config.identity_key_label, accept_export=config.accept_key_export)
        sealing = _open_key(module, config, config.sealing_key_label)
        canary = self_test(sealing.profile)
        retired = tuple(_open_key(module, config, label) for label in config.retired_key_labels)
    except BaseException:
        module.close()
        raise
    return Hsm(module, (network, signer), identity, sealing, canary, retired, observe)


def provision(
    config: HsmConfig,
    profile: ProfileName | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Provisioned:
    """Make what is missing of the identity and the sealing key, then check both as `open_hsm` does.

    `profile` overrides the self-test's choice for a new sealing key. Raises `HsmAway`, `HsmMisconfigured`.
    """
    module = open_module(config, pause)
    try:
        session = module.session
        if not exists(session, ObjectClass.PRIVATE_KEY, config.identity_key_label):
            with _making("identity key"):
                make_identity(session, config.identity_key_label)
        if not exists(session, ObjectClass.SECRET_KEY, config.sealing_key_label):
            _make_sealing_key(module, config.sealing_key_label, profile)
        identity = find_identity(session, config.identity_key_label, accept_export=config.accept_key_export)
        sealing = _open_key(module, config, config.sealing_key_label)
        self_test(sealing.profile)
    finally:
        module.close()
    return Provisioned(identity.point, sealing.profile.name.value)


def _make_sealing_key(module: Module, label: str, wanted: ProfileName | None) -> None:
    profile = wanted or choose_profile(module.session)
    if profile is ProfileName.GCM:
        try:
            # Before the key: a key without a count is never used.
            create_counter(module.session, label)
        except p11.PKCS11Error as error:
            if wanted is not None:
                raise HsmMisconfigured(f"the token cannot hold a seal counter: {describe(error)}") from error
            profile = ProfileName.HMAC_KDF
    with _making("sealing key"):
        make_sealing_key(module.session, label, profile)


@contextlib.contextmanager
def _making(what: str) -> Iterator[None]:
    """Tells a module that makes no such keys through PKCS#11 from one that is away."""
    try:
        with hsm_call(f"make the {what}"):
            yield
    except HsmAway as error:
        if isinstance(error.__cause__, _CANNOT):
            raise HsmMisconfigured(
                f"the module makes no {what} through PKCS#11 ({describe(error.__cause__)}): make it with the module's "
                "own tool under the configured label, then provision again (for a TPM: enclave/hsm/README.md)"
            ) from error
        raise


def _open_key(module: Module, config: HsmConfig, label: str) -> SealingKey:
    return SealingKey(label, open_profile(module.session, label, accept_export=config.accept_key_export))

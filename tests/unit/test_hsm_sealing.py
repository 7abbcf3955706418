"""Sealing and signing on a real SoftHSM, in both profiles."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator

import msgspec
import pkcs11
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from pkcs11 import Attribute, ObjectClass
from pkcs11 import exceptions as p11

from enclave.hsm import Hsm, HsmAway, RecordContext, SealBroken, open_hsm, provision
from enclave.hsm.counter import BLOCK, SealCounter
from enclave.hsm.errors import HsmMisconfigured, SealLimitReached
from enclave.hsm.keys import ProfileName
from enclave.hsm.module import open_module
from enclave.hsm.profiles import GcmProfile, WrappedKey, self_test
from enclave.hsm.records import MAX_PLAINTEXT_BYTES, Binding, SealedRecord
from enclave.secret import Secret
from enclave.wire import decode, encode
from policies.errors import Bug, CallerError
from tests.fakes.softhsm import SoftToken

CONTEXT = RecordContext("net", 2, "key", "key_" + "0" * 32, epoch=3, version=4)
PLAINTEXT = b"a share that nobody sees"


@pytest.fixture(params=list(ProfileName))
def profile(request: pytest.FixtureRequest) -> ProfileName:
    chosen: ProfileName = request.param
    return chosen


@pytest.fixture
def hsm(token: SoftToken, profile: ProfileName) -> Iterator[Hsm]:
    provision(token.config, profile)
    opened = open_hsm(token.config, "net", 2)
    yield opened
    opened.close()


def test_round_trip(hsm: Hsm, profile: ProfileName) -> None:
    assert hsm.profile == profile
    for plaintext in (b"", b"x", PLAINTEXT, os.urandom(MAX_PLAINTEXT_BYTES)):
        with hsm.unseal(CONTEXT, hsm.seal(CONTEXT, Secret(plaintext))) as secret:
            assert secret.reveal() == plaintext


def test_sealed_record_shows_neither_payload_nor_repeats(hsm: Hsm) -> None:
    first, second = hsm.seal(CONTEXT, PLAINTEXT), hsm.seal(CONTEXT, PLAINTEXT)
    one, two = decode(first, SealedRecord), decode(second, SealedRecord)
    assert PLAINTEXT not in first
    assert (one.salt, one.sealed_key, one.payload) != (two.salt, two.sealed_key, two.payload)
    assert len({one.salt, two.salt}) == len({one.sealed_key, two.sealed_key}) == len({one.payload, two.payload}) == 2


OTHER_VALUES = [
    ("network", "other"),
    ("signer", 1),
    ("kind", "prss"),
    ("name", "key_" + "1" * 32),
    ("epoch", 2),
    ("version", 3),
]


@pytest.mark.parametrize(("field", "value"), OTHER_VALUES)
def test_another_context_is_refused(hsm: Hsm, field: str, value: object) -> None:
    sealed = hsm.seal(CONTEXT, PLAINTEXT)
    with pytest.raises(SealBroken):
        hsm.unseal(msgspec.structs.replace(CONTEXT, **{field: value}), sealed)
    assert hsm.unseal(CONTEXT, sealed).reveal() == PLAINTEXT


def test_another_identity_is_refused(hsm: Hsm, token: SoftToken, profile: ProfileName) -> None:
    sealed = hsm.seal(CONTEXT, PLAINTEXT)
    hsm.close()
    config = msgspec.structs.replace(token.config, identity_key_label="other-identity")
    provision(config, profile)
    other = open_hsm(config, "net", 2)
    with pytest.raises(SealBroken):
        other.unseal(CONTEXT, sealed)
    other.close()


def test_another_sealing_key_under_the_same_label_is_refused(hsm: Hsm, token: SoftToken, profile: ProfileName) -> None:
    sealed = hsm.seal(CONTEXT, PLAINTEXT)
    hsm._module.session.get_key(object_class=ObjectClass.SECRET_KEY, label=token.config.sealing_key_label).destroy()
    hsm.close()
    provision(token.config, profile)
    other = open_hsm(token.config, "net", 2)
    with pytest.raises(SealBroken):
        other.unseal(CONTEXT, sealed)
    other.close()


def test_every_altered_byte_is_refused(hsm: Hsm) -> None:
    sealed = hsm.seal(CONTEXT, PLAINTEXT)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 0x01
        with pytest.raises(SealBroken):
            hsm.unseal(CONTEXT, bytes(altered))
    assert hsm.unseal(CONTEXT, sealed).reveal() == PLAINTEXT


def test_cut_and_extended_records_are_refused(hsm: Hsm) -> None:
    sealed = hsm.seal(CONTEXT, PLAINTEXT)
    for cut in range(len(sealed)):
        with pytest.raises(SealBroken):
            hsm.unseal(CONTEXT, sealed[:cut])
    with pytest.raises(SealBroken):
        hsm.unseal(CONTEXT, sealed + b"\0")


ALTERATIONS: dict[str, Callable[[SealedRecord, SealedRecord], dict[str, object]]] = {
    "salt of another": lambda mine, other: {"salt": other.salt},
    "salt too long": lambda mine, other: {"salt": (mine.salt + bytes(32))[:31]},
    "sealed key of another": lambda mine, other: {"salt": other.salt, "sealed_key": other.sealed_key},
    "payload of another": lambda mine, other: {"payload": other.payload},
    "the other profile": lambda mine, other: {"profile": "gcm" if mine.profile != "gcm" else "hmac-kdf"},
    "another key label": lambda mine, other: {"key_label": "keymoot-identity"},
    "empty payload": lambda mine, other: {"payload": bytes(16)},
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_recombined_records_are_refused(hsm: Hsm, alteration: str) -> None:
    mine = decode(hsm.seal(CONTEXT, PLAINTEXT), SealedRecord)
    other = decode(hsm.seal(CONTEXT, PLAINTEXT), SealedRecord)
    altered = msgspec.structs.replace(mine, **ALTERATIONS[alteration](mine, other))
    with pytest.raises(SealBroken):
        hsm.unseal(CONTEXT, encode(altered))


def test_every_field_is_bound() -> None:
    binding = Binding(CONTEXT, "fingerprint", "gcm", "label")
    how = [msgspec.structs.replace(binding, profile="hmac-kdf"), msgspec.structs.replace(binding, key_label="other")]
    what = [
        msgspec.structs.replace(binding, fingerprint="other"),
        *(
            msgspec.structs.replace(binding, context=msgspec.structs.replace(CONTEXT, **{field: value}))
            for field, value in OTHER_VALUES
        ),
    ]
    assert len({each.key_aad() for each in (binding, *how, *what)}) == 1 + len(how) + len(what)
    # A new HSM key seals the share-encryption key anew and leaves the payload alone.
    assert {each.payload_aad() for each in how} == {binding.payload_aad()}
    assert len({each.payload_aad() for each in (binding, *what)}) == 1 + len(what)
    assert binding.payload_aad() != binding.key_aad()


def test_sealing_is_for_the_own_network_and_signer(hsm: Hsm) -> None:
    for context in (msgspec.structs.replace(CONTEXT, network="other"), msgspec.structs.replace(CONTEXT, signer=1)):
        with pytest.raises(CallerError, match="own network and signer"):
            hsm.seal(context, PLAINTEXT)


def test_plaintext_is_bounded(hsm: Hsm) -> None:
    with pytest.raises(CallerError, match="at most 61440 bytes"):
        hsm.seal(CONTEXT, bytes(MAX_PLAINTEXT_BYTES + 1))


@pytest.mark.parametrize("number", [-1, 2**63])
def test_context_numbers_are_bounded(number: int) -> None:
    with pytest.raises(CallerError):
        msgspec.structs.replace(CONTEXT, version=number)


def test_records_and_identity_survive_reopening(hsm: Hsm, token: SoftToken) -> None:
    sealed, point = hsm.seal(CONTEXT, PLAINTEXT), hsm.identity_point
    hsm.close()
    again = open_hsm(token.config, "net", 2)
    assert again.unseal(CONTEXT, sealed).reveal() == PLAINTEXT
    assert again.identity_point == point
    again.close()


def test_sign(hsm: Hsm) -> None:
    digest = os.urandom(32)
    signature = hsm.sign(digest)
    assert len(signature) == 64
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), hsm.identity_point)
    public.verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    with pytest.raises(Bug):
        hsm.sign(digest[:31])


def test_healthy_and_nothing_secret_in_repr(hsm: Hsm, token: SoftToken) -> None:
    hsm.healthy()
    shown = repr(hsm) + repr(vars(hsm)) + repr(hsm.unseal(CONTEXT, hsm.seal(CONTEXT, PLAINTEXT)))
    assert token.user_pin not in shown
    assert PLAINTEXT.decode() not in shown
    assert repr(hsm._canary.data_key)[2:-1] not in shown


def test_token_gone_is_not_a_broken_record(hsm: Hsm, token: SoftToken) -> None:
    sealed = hsm.seal(CONTEXT, PLAINTEXT)
    altered = sealed[:-1] + bytes((sealed[-1] ^ 1,))
    token.take_away()
    for record in (sealed, altered):
        with pytest.raises(HsmAway):
            hsm.unseal(CONTEXT, record)
    for call in (lambda: hsm.sign(bytes(32)), lambda: hsm.seal(CONTEXT, PLAINTEXT), hsm.healthy):
        with pytest.raises(HsmAway):
            call()
    token.bring_back()


def test_a_retired_key_still_unseals(token: SoftToken, profile: ProfileName) -> None:
    provision(token.config, profile)
    first = open_hsm(token.config, "net", 2)
    sealed = first.seal(CONTEXT, PLAINTEXT)
    first.close()
    rotated = msgspec.structs.replace(token.config, sealing_key_label="keymoot-seal-2")
    provision(rotated)
    without = open_hsm(rotated, "net", 2)
    with pytest.raises(SealBroken, match="retired_key_labels"):
        without.unseal(CONTEXT, sealed)
    without.close()
    retiring = msgspec.structs.replace(rotated, retired_key_labels=(token.config.sealing_key_label,))
    both = open_hsm(retiring, "net", 2)
    assert both.unseal(CONTEXT, sealed).reveal() == PLAINTEXT
    assert decode(both.seal(CONTEXT, PLAINTEXT), SealedRecord).key_label == "keymoot-seal-2"
    both.close()


def stored_count(hsm: Hsm) -> list[int]:
    found = list(hsm._module.session.get_objects({Attribute.CLASS: ObjectClass.DATA}))
    return [int.from_bytes(each[Attribute.VALUE], "big") for each in found]


def test_gcm_seals_are_counted_on_the_token_in_blocks(token: SoftToken) -> None:
    assert provision(token.config).profile == "gcm"
    hsm = open_hsm(token.config, "net", 2)
    assert stored_count(hsm) == [0]
    for _ in range(BLOCK):
        hsm.seal(CONTEXT, b"")
    assert stored_count(hsm) == [BLOCK]
    hsm.seal(CONTEXT, b"")
    assert stored_count(hsm) == [2 * BLOCK]
    hsm.close()
    again = open_hsm(token.config, "net", 2)
    again.seal(CONTEXT, b"")
    assert stored_count(again) == [3 * BLOCK]
    again.close()


def test_worn_out_gcm_key_unseals_only(token: SoftToken) -> None:
    provision(token.config, ProfileName.GCM)
    hsm = open_hsm(token.config, "net", 2)
    label = token.config.sealing_key_label
    hsm._sealing.profile._take = SealCounter(hsm._module.session, label, limit=2).take  # type: ignore[attr-defined]
    sealed = [hsm.seal(CONTEXT, PLAINTEXT) for _ in range(2)]
    with pytest.raises(SealLimitReached, match="set a new hsm"):
        hsm.seal(CONTEXT, PLAINTEXT)
    assert hsm.unseal(CONTEXT, sealed[1]).reveal() == PLAINTEXT
    hsm.close()


def test_worn_out_gcm_key_stays_so_after_a_restart(token: SoftToken) -> None:
    provision(token.config, ProfileName.GCM)
    module = open_module(token.config)
    SealCounter(module.session, token.config.sealing_key_label, limit=BLOCK).take()
    # The rest of the lease is lost with the process; nothing is left under this limit.
    again = SealCounter(module.session, token.config.sealing_key_label, limit=BLOCK)
    with pytest.raises(SealLimitReached):
        again.take()
    module.close()


def test_counters_that_share_a_token_count_together(token: SoftToken) -> None:
    provision(token.config, ProfileName.GCM)
    module = open_module(token.config)
    first, second = (SealCounter(module.session, token.config.sealing_key_label, 2 * BLOCK) for _ in range(2))
    for _ in range(BLOCK):
        first.take()
        second.take()
    for counter in (first, second):
        with pytest.raises(SealLimitReached):
            counter.take()
    module.close()


def test_gcm_key_without_its_count_is_refused(token: SoftToken) -> None:
    provision(token.config, ProfileName.GCM)
    module = open_module(token.config)
    for counter in list(module.session.get_objects({Attribute.CLASS: ObjectClass.DATA})):
        counter.destroy()
    module.close()
    with pytest.raises(HsmMisconfigured, match="no seal counter"):
        open_hsm(token.config, "net", 2)


class CbcLikeKey:
    """A module that encrypts and decrypts, and does not notice alterations."""

    def encrypt(self, data: bytes, **_: object) -> bytes:
        return data + bytes(16)

    def decrypt(self, data: bytes, **_: object) -> bytes:
        return data[:32]


class NoGcmKey:
    """A module that lists GCM and has none."""

    def encrypt(self, data: bytes, **_: object) -> bytes:
        raise p11.MechanismInvalid


class OwnNonceKey:
    """An HSM that encrypts under a nonce of its own choice and writes it over ours."""

    def __init__(self, key: pkcs11.SecretKey) -> None:
        self.key = key

    def encrypt(self, data: bytes, *, mechanism_param: pkcs11.GCMParams, **more: object) -> bytes:
        ctypes.memmove(id(mechanism_param.nonce) + bytes.__basicsize__ - 1, os.urandom(12), 12)
        return self.key.encrypt(data, mechanism_param=mechanism_param, **more)  # type: ignore[attr-defined,no-any-return]

    def decrypt(self, data: bytes, **more: object) -> bytes:
        return self.key.decrypt(data, **more)  # type: ignore[attr-defined,no-any-return]


def test_self_test_refuses_a_module_that_accepts_alterations() -> None:
    with pytest.raises(HsmMisconfigured, match="accepts altered data"):
        self_test(GcmProfile(CbcLikeKey(), lambda: None))


def test_self_test_refuses_a_module_that_cannot_encrypt() -> None:
    with pytest.raises(HsmAway, match="MechanismInvalid"):
        self_test(GcmProfile(NoGcmKey(), lambda: None))


def test_nonce_is_read_back(token: SoftToken) -> None:
    provision(token.config, ProfileName.GCM)
    hsm = open_hsm(token.config, "net", 2)
    real = hsm._sealing.profile._key  # type: ignore[attr-defined]
    self_test(GcmProfile(OwnNonceKey(real), lambda: None))
    hsm.close()


def test_wrapped_key_repr_is_ciphertext_alone() -> None:
    assert repr(WrappedKey(b"s", b"c")) == "WrappedKey(salt=b's', sealed=b'c')"

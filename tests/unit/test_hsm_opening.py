"""Opening and provisioning a real SoftHSM: what is made, what is checked, refused, and how it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pkcs11
import pytest
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from enclave.hsm import HsmAway, HsmConfig, HsmMisconfigured, open_hsm, provision
from enclave.hsm.errors import KeyExposed, KeyMissing, PinRefused, TokenMissing
from enclave.hsm.keys import ProfileName, decode_point, refuse_exposed, refuse_wrappable
from enclave.hsm.module import START_ATTEMPTS, Module, open_module
from policies.errors import CallerError, Unavailable
from policies.roster import identity_fingerprint
from tests.fakes.softhsm import SoftToken


def changed(token: SoftToken, **fields: object) -> HsmConfig:
    return msgspec.structs.replace(token.config, **fields)


class Pauses:
    """Stands in for `time.sleep`, and may do something at the first pause."""

    def __init__(self, first: Callable[[], None] | None = None) -> None:
        self.taken: list[float] = []
        self.first = first

    def __call__(self, seconds: float) -> None:
        if self.first is not None and not self.taken:
            self.first()
        self.taken.append(seconds)


def test_provisioning_makes_keys_once(token: SoftToken) -> None:
    first = provision(token.config)
    assert first == provision(token.config)
    assert first.profile == "gcm"
    assert first.fingerprint == identity_fingerprint(first.identity_point)
    hsm = open_hsm(token.config, "net", 1)
    assert hsm.identity_point == first.identity_point
    assert decode_point(hsm.identity_point) == hsm.identity_point
    hsm.close()


def test_keys_can_do_what_they_need_and_cannot_leave(token: SoftToken) -> None:
    provision(token.config)
    provision(changed(token, sealing_key_label="other"), ProfileName.HMAC_KDF)
    module = open_module(token.config)
    keys: list[pkcs11.Key] = [
        *module.session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY}),
        *module.session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}),
    ]
    uses = (
        Attribute.ENCRYPT,
        Attribute.DECRYPT,
        Attribute.SIGN,
        Attribute.WRAP,
        Attribute.UNWRAP,
        Attribute.DERIVE,
    )
    found = {key.label: [use.name for use in uses if _true(key, use)] for key in keys}
    assert found == {
        "keymoot-seal-1": ["ENCRYPT", "DECRYPT"],
        "other": ["SIGN"],
        "keymoot-identity": ["SIGN"],
    }
    for key in keys:
        for attribute in (
            Attribute.SENSITIVE,
            Attribute.ALWAYS_SENSITIVE,
            Attribute.NEVER_EXTRACTABLE,
            Attribute.TOKEN,
        ):
            assert key[attribute] is True, (key.label, attribute)
        assert key[Attribute.EXTRACTABLE] is False
    module.close()


def _true(key: pkcs11.Key, attribute: Attribute) -> bool:
    try:
        return bool(key[attribute])
    except pkcs11.exceptions.AttributeTypeInvalid:
        return False


def test_wrong_pin_is_refused_at_once_and_not_shown(token: SoftToken) -> None:
    token.write_pin("pin-wrong-4711")
    pauses = Pauses()
    with pytest.raises(PinRefused, match="correct it there") as caught:
        open_hsm(token.config, "net", 1, pauses)
    assert pauses.taken == []
    assert isinstance(caught.value, CallerError)
    assert "4711" not in repr(caught.value)
    assert token.user_pin not in repr(caught.value)
    # A failed login leaves its session open: only finalizing gets rid of it.
    assert not pkcs11._loaded[token.config.lib].initialized
    token.write_pin(token.user_pin)
    open_module(token.config).close()


def test_missing_token_is_tried_again_then_told(token: SoftToken) -> None:
    pauses = Pauses()
    with pytest.raises(TokenMissing, match=r"no token 'nowhere'.*hsm\.token_label") as caught:
        open_hsm(changed(token, token_label="nowhere"), "net", 1, pauses)
    assert len(pauses.taken) == START_ATTEMPTS - 1
    assert isinstance(caught.value, Unavailable)


def test_token_directory_missing_is_away(token: SoftToken) -> None:
    token.take_away()
    with pytest.raises(HsmAway, match="does not initialize: GeneralError"):
        open_hsm(token.config, "net", 1, Pauses())
    token.bring_back()


def test_a_passing_fault_at_start_is_survived(token: SoftToken) -> None:
    provision(token.config)
    token.take_away()
    pauses = Pauses(first=token.bring_back)
    open_hsm(token.config, "net", 1, pauses).close()
    assert pauses.taken == [0.05]


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_missing_or_damaged_library(token: SoftToken, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "lib.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HsmMisconfigured, match="cannot load the PKCS#11 library"):
        open_hsm(changed(token, lib=str(path)), "net", 1, Pauses())


def test_keys_missing(token: SoftToken) -> None:
    with pytest.raises(KeyMissing, match=r"no private key 'keymoot-identity'.*provision"):
        open_hsm(token.config, "net", 1)
    provision(token.config)
    with pytest.raises(KeyMissing, match="no secret key 'absent'"):
        open_hsm(changed(token, sealing_key_label="absent"), "net", 1)


def make_aes(module: Module, label: str, template: dict[Attribute, object]) -> pkcs11.SecretKey:
    return module.session.generate_key(
        KeyType.AES,
        256,
        label=label,
        store=True,
        capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
        template=template,
    )


@pytest.mark.parametrize(
    "template",
    [
        {Attribute.EXTRACTABLE: True},
        {Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: False},
        {Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True},
    ],
    ids=["extractable", "not sensitive", "neither"],
)
def test_exposed_sealing_key_is_refused(token: SoftToken, template: dict[Attribute, object]) -> None:
    provision(token.config)
    module = open_module(token.config)
    make_aes(module, "by-hand", template)
    module.close()
    config = changed(token, sealing_key_label="by-hand")
    for attempt in (lambda: open_hsm(config, "net", 1), lambda: provision(config)):
        with pytest.raises(KeyExposed, match="'by-hand' is not sensitive and non-extractable"):
            attempt()


def test_exposed_identity_key_is_refused(token: SoftToken) -> None:
    provision(token.config)
    module = open_module(token.config)
    parameters = module.session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
    )
    parameters.generate_keypair(label="by-hand", store=True, private_template={Attribute.EXTRACTABLE: True})
    module.close()
    with pytest.raises(KeyExposed, match="'by-hand'"):
        open_hsm(changed(token, identity_key_label="by-hand"), "net", 1)


class LyingKey(pkcs11.Key):
    """A key that claims it cannot leave, in front of one that can."""

    def __init__(self, key: pkcs11.SecretKey) -> None:
        self.key = key

    @property
    def handle(self) -> int:
        return self.key.handle

    def __getitem__(self, attribute: Attribute) -> object:
        claims = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
        return claims[attribute] if attribute in claims else self.key[attribute]


def test_readable_value_is_refused_whatever_the_attributes_say(token: SoftToken) -> None:
    module = open_module(token.config)
    key = make_aes(module, "by-hand", {Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True})
    with pytest.raises(KeyExposed, match="shows the value"):
        refuse_exposed(module.session, LyingKey(key), "by-hand")
    module.close()


def test_key_that_wraps_is_refused(token: SoftToken) -> None:
    module = open_module(token.config)
    key = make_aes(module, "by-hand", {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True})
    with pytest.raises(KeyExposed, match="exports key 'by-hand' with AES_KEY_WRAP"):
        refuse_wrappable(module.session, key, "by-hand")
    with pytest.raises(KeyExposed, match="exports key 'by-hand' with AES_KEY_WRAP"):
        refuse_exposed(module.session, LyingKey(key), "by-hand")
    # No throw-away wrapping key stays behind.
    assert len(list(module.session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY}))) == 1
    module.close()


def test_two_keys_with_one_label_are_refused(token: SoftToken) -> None:
    provision(token.config)
    module = open_module(token.config)
    make_aes(module, token.config.sealing_key_label, {})
    module.close()
    with pytest.raises(HsmMisconfigured, match="2 objects are secret key 'keymoot-seal-1'"):
        open_hsm(token.config, "net", 1)


def test_identity_on_another_curve_is_refused(token: SoftToken) -> None:
    provision(token.config)
    module = open_module(token.config)
    parameters = module.session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp384r1")}, local=True
    )
    parameters.generate_keypair(label="p384", store=True)
    module.close()
    with pytest.raises(HsmMisconfigured, match="not on P-256"):
        open_hsm(changed(token, identity_key_label="p384"), "net", 1)


def test_point_with_and_without_its_der_wrapping(token: SoftToken) -> None:
    point = provision(token.config).identity_point
    assert decode_point(b"\x04\x41" + point) == point
    assert decode_point(point) == point
    for wrong in (
        b"",
        point[:-1],
        point + b"\0",
        b"\x04\x40" + point,
        b"\x04\x41" + point[:-1] + b"\0\0",
        b"\4" + bytes(64),
    ):
        with pytest.raises(HsmMisconfigured):
            decode_point(wrong)

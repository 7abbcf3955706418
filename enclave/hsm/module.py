"""Opening a PKCS#11 module: one library, one token found by its label, one login session for life.

Everything here and in the session is used by one thread only (two threads crash or hang some modules), and by
a process that loaded the module itself, never by one that inherited it through a fork.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pkcs11
from pkcs11 import TokenFlag
from pkcs11 import exceptions as p11

from enclave.hsm.config import HsmConfig, read_pin
from enclave.hsm.errors import HsmAway, HsmMisconfigured, PinRefused, TokenMissing
from enclave.hsm.library import load_library

if TYPE_CHECKING:
    from pkcs11._pkcs11 import lib as Library

START_ATTEMPTS = 5
START_PAUSE_S = 0.05
AWAY_REMEDY = "check the HSM and its connection; it is set up again without a restart"

_PIN_ERRORS = (p11.PinIncorrect, p11.PinInvalid, p11.PinLenRange)


class Module:
    """A loaded module with its login session. `close` it before another one is opened in this process."""

    def __init__(self, library: Library, session: pkcs11.Session) -> None:
        self.library = library
        self.session = session

    def close(self) -> None:
        """Log out and finalize the module, so that the next opening starts afresh. Never fails."""
        with contextlib.suppress(p11.PKCS11Error):
            self.session.close()
        with contextlib.suppress(p11.PKCS11Error):
            self.library.finalize()

    def __repr__(self) -> str:
        return f"Module({self.library.so})"


def open_module(config: HsmConfig, pause: Callable[[float], None] = time.sleep) -> Module:
    """Load, find the token, log in. What may be a passing fault is tried `START_ATTEMPTS` times (0.75 s).

    Raises `HsmAway` (`TokenMissing`), or `HsmMisconfigured` (`PinRefused`) at once.
    """
    for attempt in range(START_ATTEMPTS - 1):
        try:
            return _open_once(config)
        except HsmAway:
            pause(START_PAUSE_S * 2**attempt)
    return _open_once(config)


def _open_once(config: HsmConfig) -> Module:
    pin = read_pin(config.pin)
    library = load_library(config)
    try:
        return Module(library, log_in(library, config, pin))
    except BaseException:
        # A failed login leaves its session open inside the module; finalizing closes it.
        with contextlib.suppress(p11.PKCS11Error):
            library.finalize()
        raise


def log_in(library: Library, config: HsmConfig, pin: str) -> pkcs11.Session:
    """A read-write session on the configured token. Raises `HsmAway` (`TokenMissing`), `HsmMisconfigured`."""
    token = config.token
    try:
        found = _find_token(library, config)
        _check_tries(found, config)
        session: pkcs11.Session = found.open(rw=True, user_pin=pin)
        return session
    except p11.NoSuchToken as error:
        setting = "hsm.token_label" if config.slot is None else "hsm.slot"
        raise TokenMissing(f"there is no {token}", f"start or attach the HSM, or correct {setting}") from error
    except p11.MultipleTokensReturned as error:
        raise HsmMisconfigured(
            f"several tokens have the label {config.token_label!r}: give them distinct labels, or set hsm.slot"
        ) from error
    except _PIN_ERRORS as error:
        raise PinRefused(
            f"{token} refused the PIN from {config.pin}: correct it there "
            "(this one is not tried again, as tokens lock after a few wrong PINs)"
        ) from error
    except (p11.PinLocked, p11.PinExpired, p11.UserPinNotInitialized) as error:
        raise PinRefused(
            f"{token} has no usable user PIN ({describe(error)}): set one with the security officer's PIN, "
            f"then write {config.pin} anew"
        ) from error
    except p11.PKCS11Error as error:
        raise HsmAway(f"{token} cannot be opened: {describe(error)}", AWAY_REMEDY) from error


def _check_tries(token: pkcs11.Token, config: HsmConfig) -> None:
    """A start after a start with a wrong PIN must not use up the last try. Raises `PinRefused`, without a login."""
    if TokenFlag.USER_PIN_LOCKED in token.flags:
        raise PinRefused(
            f"{config.token} is locked after wrong PINs: unlock it with the security officer's PIN, "
            f"then write {config.pin} anew"
        )
    if TokenFlag.USER_PIN_FINAL_TRY in token.flags:
        raise PinRefused(
            f"{config.token} locks at the next wrong PIN, so this one is not tried: log in once with the HSM's own "
            f"tool and the right PIN, then write {config.pin} anew"
        )


def _find_token(library: Library, config: HsmConfig) -> pkcs11.Token:
    if config.slot is None:
        return library.get_token(token_label=config.token_label)
    for slot in library.get_slots():
        if slot.slot_id == config.slot:
            with contextlib.suppress(p11.TokenNotPresent, p11.TokenNotRecognised):
                return slot.get_token()
    raise p11.NoSuchToken


@contextlib.contextmanager
def hsm_call(what: str) -> Iterator[None]:
    """Turn any error of the module inside the block into `HsmAway`.

    Our calls have fixed sizes and checked keys, so no input of a caller explains an error: setting up again
    is right for all of them. The one exception, a refused decryption, is judged where it happens.
    """
    try:
        yield
    except p11.PKCS11Error as error:
        raise HsmAway(f"the HSM cannot {what}: {describe(error)}", AWAY_REMEDY) from error


def describe(error: p11.PKCS11Error) -> str:
    """The name of a PKCS#11 error, and nothing it carries."""
    return type(error).__name__

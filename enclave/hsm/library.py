"""Loading a PKCS#11 library and initializing it, with or without arguments.

python-pkcs11 calls `C_Initialize(NULL)`, which most modules take. NSS wants its database named in the arguments, and
some modules want `CKF_OS_LOCKING_OK`: for those, `init_args` is set, and the same library is initialized and
finalized through its function list.
"""

from __future__ import annotations

import ctypes
from typing import Self

import pkcs11
from pkcs11 import exceptions as p11
from pkcs11._pkcs11 import lib as Library

from enclave.hsm.config import HsmConfig
from enclave.hsm.errors import HsmAway, HsmMisconfigured

_OK = 0
_OS_LOCKING_OK = 2
# Places in CK_FUNCTION_LIST, which begins with the version, padded to a pointer.
_INITIALIZE, _FINALIZE = 1, 2
_Function = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)


class _InitializeArguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS with one more pointer, as NSS reads it: others see the string as `pReserved`."""

    _fields_ = (
        ("create_mutex", ctypes.c_void_p),
        ("destroy_mutex", ctypes.c_void_p),
        ("lock_mutex", ctypes.c_void_p),
        ("unlock_mutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("parameters", ctypes.c_char_p),
        ("reserved", ctypes.c_void_p),
    )


class LibraryWithArguments(Library):
    """A library initialized with `CKF_OS_LOCKING_OK` and, unless it is empty, a string of arguments."""

    _arguments: str
    _path: str

    def __new__(cls, path: str, arguments: str) -> Self:
        # The base class takes the path alone, and initializes in `__init__`: all must be known before.
        self = super().__new__(cls, path)  # type: ignore[call-arg]
        self._path, self._arguments = path, arguments
        return self

    def __init__(self, path: str, arguments: str) -> None:  # noqa: ARG002
        super().__init__(path)

    def initialize(self) -> None:
        """Raises `PKCS11Error`, as the base class does."""
        parameters = self._arguments.encode() if self._arguments else None
        arguments = _InitializeArguments(flags=_OS_LOCKING_OK, parameters=parameters)
        self._call(_INITIALIZE, ctypes.addressof(arguments))

    def finalize(self) -> None:
        """Raises `PKCS11Error`, as the base class does."""
        self._call(_FINALIZE, None)

    def _call(self, place: int, argument: int | None) -> None:
        functions = ctypes.POINTER(ctypes.c_void_p)()
        if ctypes.CDLL(self._path).C_GetFunctionList(ctypes.byref(functions)) != _OK:
            raise p11.FunctionFailed
        address = functions[place]
        if address is None:
            raise p11.FunctionNotSupported
        result = _Function(address)(argument)
        if result != _OK:
            raise p11.FunctionFailed(f"0x{result:x}")


def load_library(config: HsmConfig) -> Library:
    """The loaded, initialized library. Raises `HsmMisconfigured` where it cannot be loaded, `HsmAway`."""
    path = config.lib
    try:
        if config.init_args is not None:
            return LibraryWithArguments(path, config.init_args)
        return pkcs11.lib(path)
    except p11.PKCS11Error as error:
        if "while loading" in str(error):
            raise HsmMisconfigured(
                f"cannot load the PKCS#11 library {path}: correct hsm.lib or install it; where it is there, the unit "
                "must allow its directory (ExecPaths=)"
            ) from error
        raise HsmAway(
            f"the PKCS#11 library {path} does not initialize: {type(error).__name__}",
            "check the library's own configuration and that its token directory or server is reachable",
        ) from error

"""The PKCS#11 modules that are installed on this machine, and the tokens that one of them shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from appliance.enrolment import run_enclave_tool
from policies.errors import Unavailable

# What each vendor's package calls its module; patterns below /.
KNOWN = {
    "SoftHSM": (
        "usr/lib/softhsm/libsofthsm2.so",
        "usr/lib/*/softhsm/libsofthsm2.so",
        "usr/lib64/*/libsofthsm2.so",
    ),
    "YubiHSM": ("usr/lib/*/pkcs11/yubihsm_pkcs11.so", "usr/lib/*/yubihsm_pkcs11.so"),
    "TPM 2.0": ("usr/lib/*/pkcs11/libtpm2_pkcs11.so*", "usr/lib/*/libtpm2_pkcs11.so.*"),
    "opencryptoki": ("usr/lib/*/opencryptoki/libopencryptoki.so", "usr/lib/opencryptoki/libopencryptoki.so"),
    "OpenSC": ("usr/lib/*/opensc-pkcs11.so",),
    "Thales Luna": ("usr/safenet/lunaclient/lib/libCryptoki2_64.so",),
    "Entrust nShield": ("opt/nfast/toolkits/pkcs11/libcknfast.so",),
    "Utimaco": ("opt/utimaco/p11/libcs_pkcs11_R3.so", "usr/lib/utimaco/libcs_pkcs11_R3.so"),
    "AWS CloudHSM": ("opt/cloudhsm/lib/libcloudhsm_pkcs11.so",),
    "p11-kit remote": ("usr/lib/*/pkcs11/p11-kit-client.so",),
}
TOKENS_TIMEOUT_S = 20.0


class Token(msgspec.Struct, frozen=True):
    """A token that a module shows, before anybody has logged in."""

    slot: int
    label: str
    manufacturer: str
    model: str
    serial: str


def installed(root: Path = Path("/")) -> list[tuple[str, str]]:
    """Vendor and path of the modules found, a file once."""
    found: dict[Path, tuple[str, str]] = {}
    for vendor, patterns in KNOWN.items():
        for pattern in patterns:
            for path in sorted(root.glob(pattern)):
                found.setdefault(path.resolve(), (vendor, str(path)))
    return list(found.values())


def tokens(lib: str, init_args: str | None = None) -> list[Token]:
    """The tokens of a module, asked in a fresh interpreter. Raises `CallerError` and `Unavailable` with its words."""
    section = {"lib": lib, "pin": "file:none", "slot": 0} | ({} if init_args is None else {"init_args": init_args})
    command = [sys.executable, "-I", "-m", "enclave", "hsm-tokens", "--hsm", json.dumps(section)]
    try:
        return msgspec.json.decode(run_enclave_tool(command, timeout_s=TOKENS_TIMEOUT_S), type=list[Token])
    except msgspec.DecodeError as error:
        raise Unavailable(f"`enclave hsm-tokens` answered something unexpected: {error}", "report it") from None

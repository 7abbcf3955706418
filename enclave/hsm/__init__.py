"""The enclave's HSM: keys that never leave it, sealed records, and the one thread that talks to it."""

from enclave.hsm.config import HsmConfig
from enclave.hsm.errors import HsmAway, HsmBusy, HsmMisconfigured, SealBroken
from enclave.hsm.hsm import Hsm, Provisioned, open_hsm, provision
from enclave.hsm.records import RecordContext
from enclave.hsm.thread import HsmThread

__all__ = [
    "Hsm",
    "HsmAway",
    "HsmBusy",
    "HsmConfig",
    "HsmMisconfigured",
    "HsmThread",
    "Provisioned",
    "RecordContext",
    "SealBroken",
    "open_hsm",
    "provision",
]

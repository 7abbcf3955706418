"""`keymoot demo`: the whole appliance on loopback, with real processes, HSM tokens, TLS and gates."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from rich.console import Console

from appliance.api.client import CertifiedKey, Client, Rejected
from appliance.api.models import SignatureValue
from appliance.cli import demo_inputs as inputs
from appliance.cli.output import show_json
from appliance.localnet import LocalNet
from policies.errors import Bug, CallerError, KeymootError
from policies.requests import BitcoinBip143Preimage, EthereumTransaction, Hash
from policies.roster import describe_scheme

SIGNERS, TOLERATE = 3, 1
REFUSING_SIGNER = 2
CHILD_PATH = (0, 5)

T = TypeVar("T")


def run(*, as_json: bool = False) -> None:
    """Show everything, then print `DEMO OK`, or all steps as JSON. Raises `KeymootError` where something is not as it
    must be."""
    try:
        import eth_account  # noqa: F401
    except ModuleNotFoundError:
        raise CallerError("the demo needs eth-account: pip install 'keymoot[demo]'") from None
    # With JSON what people read goes to standard error.
    steps = _Steps(Console(highlight=False, stderr=as_json))
    with _stopped_by_sigterm():
        network = LocalNet(SIGNERS, TOLERATE, refuse={REFUSING_SIGNER: (inputs.REFUSED_DESTINATION,)})
        try:
            _show(network, steps)
        except KeymootError:
            for process in network.processes.values():
                if process.log.exists():
                    steps.console.print(f"  {process.name}: {process.last_words()}", markup=False)
            raise
        finally:
            with steps.step("stopping every process, removing every file"):
                network.close()
    seconds = time.monotonic() - steps.started_s
    steps.console.print(f"{seconds:.1f} s in all")
    steps.console.print("DEMO OK")
    if as_json:
        show_json({"ok": True, "seconds": round(seconds, 1), "steps": steps.done})


def _show(network: LocalNet, steps: _Steps) -> None:
    steps.say(f"Keymoot on this machine: {describe_scheme(SIGNERS, TOLERATE)}.")
    steps.do("making a SoftHSM token, keys and certificates for every signer", network.write)
    for signer in network.roster.signers:
        steps.say(f"    {signer.name}  {signer.fingerprint}")
    steps.do("starting 3 enclaves, 3 signers, 3 gates and a coordinator", network.start)
    with network.client() as client:
        key = steps.do("creating a key: no process ever holds it", lambda: client.create_key("demo/first", "demo-key"))
        steps.say(f"    {key.id}, certified by all {SIGNERS} HSMs")
        steps.say(f"    {key.ethereum_address()}  {key.bitcoin_address()}")
        steps.do("filling the pool of presignatures", lambda: network.wait_for_pool(1))
        _sign_ethereum(client, key, steps)
        _sign_bitcoin(client, key, steps)
        _sign_child(client, key, steps)
        _be_refused(client, key, steps)


def _sign_ethereum(client: Client, key: CertifiedKey, steps: _Steps) -> None:
    body = EthereumTransaction(inputs.unsigned_transaction(inputs.DESTINATION), "demo-ethereum")
    value = steps.do("signing an EIP-1559 transaction", lambda: _value(client, key, body))
    sender = inputs.recovered_sender(inputs.DESTINATION, value)
    _require(sender == key.ethereum_address(), "eth-account recovers the key's address as sender")
    steps.say(f"    eth-account: sent by {sender}, which is the key's address")


def _sign_bitcoin(client: Client, key: CertifiedKey, steps: _Steps) -> None:
    body = BitcoinBip143Preimage("0x" + inputs.BIP143_PREIMAGE.hex(), "demo-bitcoin")
    value = steps.do("signing the input of BIP-143's example", lambda: _value(client, key, body))
    _require(value.hash == "0x" + inputs.BIP143_SIGHASH, "the enclaves compute BIP-143's signature hash")
    _require(inputs.openssl_verifies(key.public_key(), value, inputs.BIP143_PREIMAGE), "OpenSSL verifies")
    _require(inputs.libsecp256k1_verifies(key.public_key(), value), "libsecp256k1 verifies")
    steps.say(f"    OpenSSL and libsecp256k1: a signature over {inputs.BIP143_SIGHASH[:16]}… under the key")


def _sign_child(client: Client, key: CertifiedKey, steps: _Steps) -> None:
    body = Hash("0x" + inputs.BIP143_SIGHASH, "demo-child", CHILD_PATH)
    value = steps.do("signing a bare hash with the child key m/0/5", lambda: _value(client, key, body))
    _require(inputs.libsecp256k1_verifies(key.public_key(CHILD_PATH), value), "libsecp256k1 verifies the child's")
    steps.say(f"    libsecp256k1: valid under the BIP-32 child {key.public_key(CHILD_PATH).hex()[:16]}…")


def _be_refused(client: Client, key: CertifiedKey, steps: _Steps) -> None:
    body = EthereumTransaction(inputs.unsigned_transaction(inputs.REFUSED_DESTINATION), "demo-refused")

    def refused() -> Rejected:
        try:
            client.sign(key.id, body)
        except Rejected as rejected:
            return rejected
        raise Bug("the gate's refusal was not heeded")

    rejected = steps.do(f"asking for a payment that the gate of signer-{REFUSING_SIGNER} refuses", refused)
    _require(rejected.signer == f"signer-{REFUSING_SIGNER}", "the refusal names the signer")
    steps.say(f"    rejected by {rejected.signer}: {rejected.reason}")


def _value(
    client: Client, key: CertifiedKey, body: EthereumTransaction | BitcoinBip143Preimage | Hash
) -> SignatureValue:
    value = client.sign(key.id, body).signature
    if value is None:
        raise Bug("a signed request without a signature")
    return value


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Bug(f"this should hold and does not: {what}")


class _Steps:
    """Prints each step with the time it took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.done: list[dict[str, object]] = []
        self.started_s = time.monotonic()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def do(self, title: str, work: Callable[[], T]) -> T:
        """The result of `work`, under a title with its time."""
        with self.step(title):
            return work()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A title, with a spinner while it goes on and the time at its end."""
        started_s = time.monotonic()
        with self.console.status(title):
            yield
        seconds = time.monotonic() - started_s
        self.say(f"{seconds:6.2f} s  {title}")
        self.done.append({"step": title, "seconds": round(seconds, 2)})


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, so that nothing is left behind."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

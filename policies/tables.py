"""Tables of requests and of what a policy must say to each: they stand beside a policy, and are run as its tests."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from policies.addresses import parse_address
from policies.amounts import SATOSHI, WEI, Amount, parse_amount
from policies.clients import Name
from policies.constraints import SIGHASH_TYPES, SighashType
from policies.erc20 import Erc20Call, Erc20Method, encode_call
from policies.limits import Anomaly
from policies.mistakes import Mistake
from policies.payloads import rlp
from policies.requests import Path

MAX_CASES = 1024
MONDAY_NOON = "2026-01-05T12:00:00Z"

Text = Annotated[str, msgspec.Meta(max_length=256)]
Destination = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,77}:0x[0-9a-f]{40}$(?!\n)")]
Hex = Annotated[str, msgspec.Meta(pattern=r"^0x([0-9a-f]{2})*$(?!\n)", max_length=100_000)]


class Erc20Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call of an ERC-20 token; `amount` in its smallest unit. `sender` belongs to `transferFrom`."""

    method: Erc20Method
    recipient: Text
    amount: Annotated[int, msgspec.Meta(ge=0)]
    sender: Text | None = None

    def data(self) -> bytes:
        """The call's bytes."""
        sender = None if self.sender is None else parse_address(self.sender)
        return encode_call(Erc20Call(self.method, sender, parse_address(self.recipient), self.amount))


class EthereumSample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A transaction (EIP-1559). `to` left out creates a contract; `data`, or a call as `erc20`."""

    chain: Annotated[int, msgspec.Meta(ge=0)]
    to: Text | None = None
    value: Amount = 0
    data: Hex = "0x"
    erc20: Erc20Sample | None = None
    gas_limit: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 100_000
    max_fee_per_gas: Amount = "30 gwei"

    def __post_init__(self) -> None:
        if self.erc20 is not None and self.data != "0x":
            raise Mistake("either `data` or `erc20`", "data")
        try:
            self.encode()
        except ValueError as error:
            raise Mistake(str(error)) from None

    def encode(self) -> bytes:
        """The unsigned transaction's bytes."""
        fee = parse_amount(self.max_fee_per_gas, WEI)
        to = b"" if self.to is None else parse_address(self.to)
        data = bytes.fromhex(self.data[2:]) if self.erc20 is None else self.erc20.data()
        numbers = (self.chain, 0, min(fee, 10**9), fee, self.gas_limit)
        value = rlp.of_integer(parse_amount(self.value, WEI))
        fields: list[rlp.Item] = [*(rlp.of_integer(number) for number in numbers), to, value, data, []]
        return b"\x02" + rlp.encode(fields)


class BitcoinSample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input of `amount` (BIP-143), signed for with `sighash`. The rest of it is made up."""

    amount: Amount
    sighash: SighashType = SighashType.ALL

    def __post_init__(self) -> None:
        try:
            self.encode()
        except (ValueError, OverflowError) as error:
            raise Mistake(str(error), "amount") from None

    def encode(self) -> bytes:
        """The preimage's bytes."""
        number = next(number for number, name in SIGHASH_TYPES.items() if name is self.sighash)
        anyone, base = bool(number & 0x80), number & 0x7F
        some, zero = b"\x11" * 32, bytes(32)
        prevouts, sequences = zero if anyone else some, zero if anyone or base != 1 else some
        script = b"\x19\x76\xa9\x14" + b"\x22" * 20 + b"\x88\xac"
        amount = parse_amount(self.amount, SATOSHI).to_bytes(8, "little")
        head = (2).to_bytes(4, "little") + prevouts + sequences + some + bytes(4) + script
        return head + amount + b"\xff" * 4 + (zero if base == 2 else some) + bytes(4) + number.to_bytes(4, "little")


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request and what must become of it: `permitted_by` a rule, or `refused_by` a code such as
    `policy/destination`.

    What is asked for is one of `ethereum`, `bitcoin`, `body` (a body of the API, as an integrator sends it), or
    `create_key: true` for a key with the label. `at`: when, in UTC. `used`, `seen`, `observed`: what was counted
    before. A counter is named by its limit, window in seconds and what it counts apart, client before label:
    `payouts 3600s client=desk label=treasury/eth`; a destination as `1:0x…`, chain and address in lower case.
    """

    name: Text
    client: Text
    label: Text
    permitted_by: Name | None = None
    refused_by: Text | None = None
    ethereum: EthereumSample | None = None
    bitcoin: BitcoinSample | None = None
    body: dict[str, Any] | None = None
    create_key: bool = False
    path: Path = ()
    approvers: tuple[Name, ...] = ()
    at: Text | None = None
    used: dict[str, int] = {}
    seen: tuple[Destination, ...] = ()
    observed: tuple[Anomaly, ...] = ()

    def __post_init__(self) -> None:
        if (self.permitted_by is None) == (self.refused_by is None):
            raise Mistake("a case says either `permitted_by` or `refused_by`")
        asked = (self.ethereum is not None, self.bitcoin is not None, self.body is not None, self.create_key)
        if sum(asked) != 1:
            raise Mistake("a case asks for one of `ethereum`, `bitcoin`, `body` and `create_key`")
        if self.path and (self.create_key or "derivationPath" in (self.body or {})):
            raise Mistake("a new key has no `path`, and a body says its own or has it said here", "path")

    def request_body(self) -> bytes:
        """The body that an integrator would send for it."""
        if self.create_key:
            fixed = {"scheme": "ECDSA", "curve": "secp256k1", "signers": 3, "tolerate": 1, "externalId": "sample"}
            return msgspec.json.encode({**fixed, "label": self.label})
        path = {"externalId": "sample", "derivationPath": self.path}
        if self.ethereum is not None:
            shown = "0x" + self.ethereum.encode().hex()
            return msgspec.json.encode({"kind": "EthereumTransaction", "transaction": shown, **path})
        if self.bitcoin is not None:
            shown = "0x" + self.bitcoin.encode().hex()
            return msgspec.json.encode({"kind": "BitcoinBip143Preimage", "preimage": shown, **path})
        said = {"derivationPath": self.path} if self.path else {}
        return msgspec.json.encode({"externalId": "sample", **said, **(self.body or {})})


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. `policy`: the policy's file, seen from this one. `at`: when, where a case does not say."""

    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    policy: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    cases: Annotated[tuple[Case, ...], msgspec.Meta(min_length=1, max_length=MAX_CASES)]
    at: Text = MONDAY_NOON

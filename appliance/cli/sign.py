"""`keymoot sign hash|batch|message|ethereum|typed-data|bitcoin`.

A signature is verified here, under the certified key, before it is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from appliance.cli import printable
from appliance.cli.client import DEFAULT_PROFILE, ProfileOption, TokenOption, open_client
from appliance.cli.files import read_whole
from appliance.cli.keys import ExternalIdOption, PathOption, checked_key_id, new_external_id, parse_path
from appliance.cli.output import Json, show_fields, show_json, working
from policies.errors import Bug, CallerError
from policies.json_strict import parse_json
from policies.requests import HashBatch, MessageHash, SigningBody

MAX_FILE_BYTES = 256 * 1024

app = typer.Typer(help="Sign hashes, a message, an Ethereum transaction or a Bitcoin input.", no_args_is_help=True)

ApprovalsOption = Annotated[
    int, typer.Option("--approvals-within", metavar="HOURS", min=0, max=72, help="How long it may wait for approvals.")
]
Access = tuple[Path, Path | None]
Fields = dict[str, object]
KeyArgument = Annotated[str, typer.Argument(help="The key's id (key_…).")]


def _command(name: str, purpose: str, argument: Any, fields: Callable[[str], Fields]) -> None:
    """A command that signs what its `argument` says; `fields` makes the request's own fields of that."""

    @app.command(name, help=purpose)
    def sign_one(
        key_id: KeyArgument,
        what: str = argument,
        path: PathOption = "m",
        external_id: ExternalIdOption = "",
        within: ApprovalsOption = 0,
        profile: ProfileOption = DEFAULT_PROFILE,
        token: TokenOption = None,
        as_json: Json = False,
    ) -> None:
        _sign((profile, token), key_id, fields(what), path, external_id, as_json, within)


_command(
    "hash",
    "Sign a bare 32-byte hash: nobody but you knows what it stands for.",
    typer.Argument(metavar="HASH", help="32 bytes of hex. Signed blindly, if policies allow."),
    lambda text: {"kind": "Hash", "hash": _hex(text)},
)


@app.command("batch")
def sign_batch(
    key_id: KeyArgument,
    file: Annotated[
        str, typer.Argument(help="A hash on each line, 32 bytes of hex; a path after it overrides --path.")
    ],
    path: PathOption = "m",
    external_id: ExternalIdOption = "",
    within: ApprovalsOption = 0,
    profile: ProfileOption = DEFAULT_PROFILE,
    token: TokenOption = None,
    as_json: Json = False,
) -> None:
    """Sign up to 1,000 bare hashes under one decision. Ends with 1 where some of them have no signature."""
    body = _batch(_read(file), path, external_id or new_external_id())
    with open_client(profile, token) as client, working(f"Signing {len(body.hashes)} hashes…"):
        answer = client.sign_batch(checked_key_id(key_id), body, lifetime_s=_lifetime_s(within))
    failed = sum(result.signature is None for result in answer.results)
    if as_json:
        show_json(answer)
    else:
        for text, result in zip(body.hashes, answer.results, strict=True):
            why = f"no signature: {result.reason.message}" if result.reason else "no signature"
            typer.echo(printable(f"{text} {result.signature.rsv if result.signature else why}"))
        signed = len(answer.results) - failed
        typer.echo(
            f"{printable(answer.id)}: {signed} signatures, each verified under the certified key; {failed} failed."
        )
    if failed:
        raise typer.Exit(1)


@app.command("message")
def sign_message(
    key_id: KeyArgument,
    message: Annotated[str, typer.Argument(help="The text, or @FILE with the bytes.")],
    hash_name: Annotated[MessageHash, typer.Option("--hash", help="How it is hashed.")] = MessageHash.EIP_191,
    path: PathOption = "m",
    external_id: ExternalIdOption = "",
    within: ApprovalsOption = 0,
    profile: ProfileOption = DEFAULT_PROFILE,
    token: TokenOption = None,
    as_json: Json = False,
) -> None:
    """Sign a message, which every enclave hashes itself."""
    data = _read(message[1:]) if message.startswith("@") else message.encode()
    fields: Fields = {"kind": "Message", "message": "0x" + data.hex(), "hash": hash_name.value}
    _sign((profile, token), key_id, fields, path, external_id, as_json, within)


_command(
    "typed-data",
    "Sign typed data of EIP-712, which every enclave checks and hashes itself.",
    typer.Argument(metavar="DOCUMENT", help="EIP-712 document: JSON, or @FILE with it."),
    lambda text: {"kind": "Eip712TypedData", "typedData": _document(text)},
)
_command(
    "ethereum",
    "Sign a legacy (EIP-155), EIP-2930 or EIP-1559 transaction, which every enclave parses and hashes itself.",
    typer.Argument(metavar="TRANSACTION", help="Unsigned transaction: hex, or @FILE with it."),
    lambda text: {"kind": "EthereumTransaction", "transaction": _hex(text)},
)
_command(
    "bitcoin",
    "Sign one segwit input, from its BIP-143 preimage, which every enclave parses and hashes itself.",
    typer.Argument(metavar="PREIMAGE", help="BIP-143 preimage of one input: hex, or @FILE with it."),
    lambda text: {"kind": "BitcoinBip143Preimage", "preimage": _hex(text)},
)


def _sign(
    access: Access,
    key_id: str,
    fields: Fields,
    path: str,
    external_id: str,
    as_json: bool,
    wait_h: int,
) -> None:
    body = _body({**fields, "externalId": external_id or new_external_id(), "derivationPath": parse_path(path)})
    with open_client(*access) as client, working("Policies and gates are asked…"):
        answer = client.sign(checked_key_id(key_id), body, lifetime_s=_lifetime_s(wait_h))
    if as_json:
        show_json(answer)
        return
    value = answer.signature
    if value is None:
        raise Bug("the client returns no answer that is Signed without a signature")
    names = ("public_key", "hash", "r", "s", "recid", "der", "rsv")
    show_fields({"signature": answer.id, **{name: str(getattr(value, name)) for name in names}})
    typer.echo("Verified under the certified key, over the hash computed here.")


def _lifetime_s(wait_h: int) -> int:
    from appliance.api.jws import DEFAULT_LIFETIME_S

    return wait_h * 3600 if wait_h else DEFAULT_LIFETIME_S


def _body(fields: Fields) -> SigningBody:
    try:
        body: SigningBody = msgspec.convert(fields, SigningBody)
        return body
    except msgspec.ValidationError as error:
        raise CallerError(f"not a signing request: {error}") from None


def _batch(data: bytes, default_path: str, external_id: str) -> HashBatch:
    """The batch that a file's lines describe; empty ones do not count. Raises `CallerError`."""
    hashes: list[str] = []
    paths: list[tuple[int, ...]] = []
    for number, line in enumerate(data.decode("ascii", "replace").splitlines(), 1):
        words = line.split()
        if len(words) > 2:
            raise CallerError(f"line {number}: write a hash, and a path after it where it needs another one")
        if words:
            try:
                hashes.append(_hex(words[0]))
            except CallerError as error:
                raise CallerError(f"line {number}: {error}") from None
            paths.append(tuple(parse_path(words[1] if len(words) > 1 else default_path)))
    fields = {"kind": "HashBatch", "hashes": hashes, "externalId": external_id, "derivationPaths": paths}
    if len(set(paths)) == 1:
        fields["derivationPaths"] = paths[:1]
    try:
        return msgspec.convert(fields, HashBatch)
    except msgspec.ValidationError as error:
        raise CallerError(f"not a batch: {error}") from None


def _read(name: str) -> bytes:
    return read_whole(Path(name), MAX_FILE_BYTES)


def _document(text: str) -> object:
    """The JSON `text`, or that in the file `@FILE`. Raises `CallerError`, also where two parsers could differ on it."""
    data = _read(text[1:]) if text.startswith("@") else text.encode("utf-8", "surrogateescape")
    try:
        document = parse_json(data)
        msgspec.json.encode(document)  # what cannot be sent is none
    except ValueError as error:
        raise CallerError(f"the document cannot be used: {error}") from None
    return document


def _hex(text: str) -> str:
    """`text`, or the content of the file `@FILE`, as lower-case hex with 0x. Raises `CallerError`."""
    if text.startswith("@"):
        try:
            text = _read(text[1:]).decode("ascii")
        except UnicodeDecodeError:
            raise CallerError(f"{text[1:]} holds something else than hex") from None
    digits = text.strip().removeprefix("0x").lower()
    if not digits or len(digits) % 2 or not set(digits) <= set("0123456789abcdef"):
        raise CallerError("not hex: write an even number of hex digits, with or without 0x, or @FILE")
    return "0x" + digits

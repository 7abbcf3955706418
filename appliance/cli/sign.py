"""`keymoot sign hash|ethereum|bitcoin`. A signature is verified here, under the certified key, before it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from appliance.cli.client import DEFAULT_PROFILE, ProfileOption, open_client
from appliance.cli.keys import ExternalIdOption, PathOption, new_external_id, parse_path
from appliance.cli.output import Json, show_fields, show_json
from policies.errors import CallerError
from policies.requests import BitcoinBip143Preimage, EthereumTransaction, Hash

if TYPE_CHECKING:
    from policies.requests import SigningBody

MAX_HEX_FILE_BYTES = 256 * 1024

app = typer.Typer(help="Sign a hash, an Ethereum transaction or a Bitcoin input.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(help="The key's id (key_…).")]


@app.command("hash")
def sign_hash(
    key_id: KeyArgument,
    digest: Annotated[str, typer.Argument(metavar="HASH", help="32 bytes of hex. Signed blindly, if policies allow.")],
    path: PathOption = "m",
    external_id: ExternalIdOption = "",
    profile: ProfileOption = DEFAULT_PROFILE,
    as_json: Json = False,
) -> None:
    """Sign a bare 32-byte hash: nobody but you knows what it stands for."""
    _sign(profile, key_id, {"kind": "Hash", "hash": _hex(digest)}, path, external_id, as_json)


@app.command("ethereum")
def sign_ethereum(
    key_id: KeyArgument,
    transaction: Annotated[str, typer.Argument(help="Unsigned EIP-1559 transaction: hex (0x02…), or @FILE with it.")],
    path: PathOption = "m",
    external_id: ExternalIdOption = "",
    profile: ProfileOption = DEFAULT_PROFILE,
    as_json: Json = False,
) -> None:
    """Sign an EIP-1559 transaction, which every enclave parses and hashes itself."""
    fields = {"kind": "EthereumTransaction", "transaction": _hex(transaction)}
    _sign(profile, key_id, fields, path, external_id, as_json)


@app.command("bitcoin")
def sign_bitcoin(
    key_id: KeyArgument,
    preimage: Annotated[str, typer.Argument(help="BIP-143 preimage of one input: hex, or @FILE with it.")],
    path: PathOption = "m",
    external_id: ExternalIdOption = "",
    profile: ProfileOption = DEFAULT_PROFILE,
    as_json: Json = False,
) -> None:
    """Sign one segwit input, from its BIP-143 preimage, which every enclave parses and hashes itself."""
    fields = {"kind": "BitcoinBip143Preimage", "preimage": _hex(preimage)}
    _sign(profile, key_id, fields, path, external_id, as_json)


def _sign(profile: Path, key_id: str, fields: dict[str, str], path: str, external_id: str, as_json: bool) -> None:
    body = _body({**fields, "externalId": external_id or new_external_id(), "derivationPath": parse_path(path)})
    with open_client(profile) as client:
        answer = client.sign(key_id, body)
    if as_json:
        show_json(answer)
        return
    value = answer.signature
    if value is None:  # the client never returns one without, once it is Signed
        raise CallerError("the answer holds no signature")
    names = ("public_key", "hash", "r", "s", "recid", "der", "rsv")
    show_fields({"signature": answer.id, **{name: str(getattr(value, name)) for name in names}})
    typer.echo("Verified under the certified key, over the hash computed here.")


def _body(fields: dict[str, object]) -> SigningBody:
    try:
        return msgspec.convert(fields, Hash | EthereumTransaction | BitcoinBip143Preimage)
    except msgspec.ValidationError as error:
        raise CallerError(f"not a signing request: {error}") from None


def _hex(text: str) -> str:
    """`text`, or the content of the file `@FILE`, as lower-case hex with 0x. Raises `CallerError`."""
    if text.startswith("@"):
        try:
            with Path(text[1:]).open("rb") as file:
                text = file.read(MAX_HEX_FILE_BYTES).decode("ascii")
        except OSError as error:
            raise CallerError(f"cannot read {text[1:]}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise CallerError(f"{text[1:]} holds something else than hex") from None
    digits = text.strip().removeprefix("0x").lower()
    if not digits or len(digits) % 2 or not set(digits) <= set("0123456789abcdef"):
        raise CallerError("not hex: write an even number of hex digits, with or without 0x, or @FILE")
    return "0x" + digits

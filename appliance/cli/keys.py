"""`keymoot keys create|list|show`. Nothing of a key is shown before its certificate has been verified."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import printable
from appliance.cli.client import DEFAULT_PROFILE, ProfileOption, TokenOption, open_client
from appliance.cli.output import Json, show_fields, show_json, working
from policies.errors import CallerError
from policies.requests import KEY_ID_PATTERN, LABEL_PATTERN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.api.client import CertifiedKey, ListedKey

EXTERNAL_ID_BYTES = 8
MAX_STEPS, MAX_INDEX = 10, 2**31 - 1

app = typer.Typer(help="Keys: create, list, show. All are verified against the pinned roster.", no_args_is_help=True)

ExternalIdOption = Annotated[
    str, typer.Option(help="Makes the request repeatable: the same id gives the same result. Random by default.")
]
PathOption = Annotated[str, typer.Option("--path", help="A child key: BIP-32 path such as m/0/5 (not hardened).")]


@app.command("create")
def create(
    label: Annotated[str, typer.Option(help="The key's label, which policies match; it never changes.")],
    external_id: ExternalIdOption = "",
    profile: ProfileOption = DEFAULT_PROFILE,
    token: TokenOption = None,
    as_json: Json = False,
) -> None:
    """Create a key with the network's scheme; all signers must be online."""
    if not re.match(LABEL_PATTERN, label):
        raise CallerError(f"--label {label}: letters, digits and . _ / -, beginning with one of the first two")
    with open_client(profile, token) as client, working("All signers are making the key…"):
        key = client.create_key(label, external_id or new_external_id())
    _show(key, (), as_json)


@app.command("list")
def list_keys(
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many; all by default.")] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    token: TokenOption = None,
    as_json: Json = False,
) -> None:
    """List keys, oldest first."""
    with open_client(profile, token) as client, working("Reading and verifying the keys…"):
        listed = client.list_keys(limit=limit)
    if as_json:
        show_json([_line(one) for one in listed])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("label", "status", "id", "ethereum address"):
        table.add_column(heading, overflow="fold")
    for one in listed:
        fields = _line(one)
        table.add_row(*(Text(printable(fields.get(name, ""))) for name in ("label", "status", "id", "ethereum")))
    Console().print(table)


@app.command("show")
def show(
    key_id: Annotated[str, typer.Argument(help="The key's id (key_…).")],
    path: PathOption = "m",
    profile: ProfileOption = DEFAULT_PROFILE,
    token: TokenOption = None,
    as_json: Json = False,
) -> None:
    """Show a key, or one of its children: scheme, public key, addresses."""
    steps = parse_path(path)
    with open_client(profile, token) as client, working("Reading and verifying the key…"):
        key = client.get_key(checked_key_id(key_id))
    _show(key, steps, as_json)


def new_external_id() -> str:
    """A random name for a request that nobody will repeat."""
    return f"cli-{secrets.token_hex(EXTERNAL_ID_BYTES)}"


def parse_path(text: str) -> tuple[int, ...]:
    """The indices of a BIP-32 path such as `m/0/5`. Raises `CallerError`, also for hardened steps."""
    head, *steps = text.split("/")
    if head != "m" or not all(step.isascii() and step.isdigit() for step in steps):
        raise CallerError(f"{text} is not a path such as m or m/0/5: only non-hardened steps are possible")
    if len(steps) > MAX_STEPS or any(len(step) > 10 or int(step) > MAX_INDEX for step in steps):
        raise CallerError(f"{text}: a path has at most {MAX_STEPS} steps of 0 to {MAX_INDEX}")
    return tuple(int(step) for step in steps)


def checked_key_id(text: str) -> str:
    """`text` where it can be a key's id. Raises `CallerError`."""
    if not re.match(KEY_ID_PATTERN, text):
        raise CallerError(f"{text} is not a key's id (key_ and 32 hex digits): see `keymoot keys list`")
    return text


def _show(key: CertifiedKey, path: Sequence[int], as_json: bool) -> None:
    fields = {
        "id": key.id,
        "label": key.label,
        "scheme": key.scheme_statement,
        "path": "/".join(["m", *map(str, path)]),
        "public key": "0x" + key.public_key(path).hex(),
        "ethereum": key.ethereum_address(path),
        "bitcoin": key.bitcoin_address(path),
    }
    if as_json:
        show_json({name.replace(" ", "_"): value for name, value in fields.items()})
        return
    show_fields(fields)
    signers = len(key.certified.public_shares)
    typer.echo(f"Certificate verified: all {signers} signers of the pinned roster acknowledged this key in their HSMs.")


def _line(one: ListedKey) -> dict[str, str]:
    line = {"label": one.answer.label, "status": str(one.answer.status)}
    if one.certified is None:
        return line
    return {**line, "id": one.certified.id, "ethereum": one.certified.ethereum_address()}

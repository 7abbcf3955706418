"""`keymoot approve`: another client's request for a signature or a batch, looked at and approved with one's own key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from appliance.cli import printable
from appliance.cli.client import DEFAULT_PROFILE, ProfileOption, TokenOption, open_client
from appliance.cli.keys import checked_key_id
from appliance.cli.output import Json, show_fields, show_json, working
from policies.errors import CallerError, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.api.approvals import ApprovalsWanted
    from policies.requests import HashBatch, SigningBody

DEFAULT_HOURS, MAX_HOURS = 24, 72


def approve(
    key_id: Annotated[str, typer.Argument(help="The key's id (key_…).")],
    request_id: Annotated[
        str, typer.Argument(metavar="REQUEST", help="The id of a signing request (sig_…) or a batch (batch_…).")
    ],
    hours: Annotated[int, typer.Option(help="For how long the approval counts.", min=1, max=MAX_HOURS)] = DEFAULT_HOURS,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: whoever calls this has looked at it.")] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    token: TokenOption = None,
    as_json: Json = False,
) -> None:
    """Approve a request that a policy wants approved (`approvals` in its rule).

    It is shown first, as read here: what you sign is what you were shown, whatever the coordinator says. It is carried
    out once there are enough.
    """
    with open_client(profile, token) as client:
        with working("The coordinator is asked…"):
            wanted = client.approvals_wanted(checked_key_id(key_id), request_id)
        fields = describe(wanted, key_id)
        if not (as_json and yes):
            # Nobody is asked about what is not shown.
            show_fields(fields, err=as_json)
        if not yes:
            typer.confirm("Approve this?", abort=True, err=True)
        with working("The signers are asked…"):
            answer = client.approve(key_id, request_id, wanted.body.encode(), lifetime_s=hours * 3600)
    if as_json:
        show_json(answer)
        return
    reason = f": {answer.reason.message}" if answer.reason is not None else ""
    typer.echo(printable(f"Approved. The request is {answer.status}{reason}"))


def describe(wanted: ApprovalsWanted, key_id: str) -> dict[str, str]:
    """The request in words, from its body alone. Raises `CallerError` where it cannot be read, or is of another key."""
    from appliance.api.approvals import read_approvable
    from policies.requests import HashBatch

    try:
        body = read_approvable(wanted.path, key_id, wanted.body.encode())
    except UnicodeEncodeError:
        raise CallerError("the request cannot be read: no UTF-8") from None
    fields = _describe_batch(body, key_id) if isinstance(body, HashBatch) else _describe_single(body, key_id)
    fields = {"requester": wanted.requester, "expires": wanted.expires, **fields}
    return fields | {"approved by": ", ".join(wanted.approved_by) or "nobody yet"}


def _describe_single(body: SigningBody, key_id: str) -> dict[str, str]:
    from policies.decoded import MessageDecoded
    from policies.gate_messages import show_decoded
    from policies.keccak import keccak256
    from policies.payloads import decode_payload

    try:
        payload = decode_payload(body, keccak256)
    except Refused as refusal:
        raise CallerError(f"the request cannot be read: {refusal.reason}") from None
    fields = {"kind": payload.kind.value, "key": f"{key_id} {_path(body.derivation_path)}"}
    fields |= {"external id": body.external_id, "hash": payload.h.hex()}
    decoded: Any = None if payload.decoded is None else show_decoded(payload.decoded)
    if not isinstance(decoded, dict):
        return fields | {"content": "not known: a bare hash"}
    # None of them takes another's place.
    fields |= {f"- {name}": value if isinstance(value, str) else _text(value) for name, value in decoded.items()}
    if isinstance(payload.decoded, MessageDecoded) and (text := _as_text(payload.decoded.message)) is not None:
        fields["- message as text"] = text
    return fields


def _describe_batch(body: HashBatch, key_id: str) -> dict[str, str]:
    """All of its hashes: what is approved is every one of them."""
    fields = {"kind": "HashBatch", "key": key_id, "external id": body.external_id}
    fields |= {"content": f"not known: {len(body.hashes)} bare hashes"}
    items = zip(body.hashes, body.paths(), strict=True)
    return fields | {f"- {number}": f"{h[2:]} {_path(path)}" for number, (h, path) in enumerate(items, 1)}


def _path(path: Sequence[int]) -> str:
    return "/".join(("m", *map(str, path)))


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _as_text(message: bytes) -> str | None:
    """The message as a JSON string, where a terminal shows exactly that; else None, and its hex has to do."""
    try:
        text = _text(message.decode("utf-8"))
    except UnicodeDecodeError:
        return None
    return text if message and printable(text) == text else None

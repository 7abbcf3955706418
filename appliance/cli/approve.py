"""`keymoot approve`: another client's signing request, looked at and approved with one's own key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from appliance.cli import printable
from appliance.cli.client import DEFAULT_PROFILE, ProfileOption, TokenOption, open_client
from appliance.cli.keys import checked_key_id
from appliance.cli.output import Json, show_fields, show_json, working
from policies.errors import CallerError, Refused
from policies.requests import SigningBody

if TYPE_CHECKING:
    from appliance.api.models import ApprovalsWanted

DEFAULT_HOURS, MAX_HOURS = 24, 72


def approve(
    key_id: Annotated[str, typer.Argument(help="The key's id (key_…).")],
    signature_id: Annotated[str, typer.Argument(help="The signing request's id (sig_…).")],
    hours: Annotated[int, typer.Option(help="For how long the approval counts.", min=1, max=MAX_HOURS)] = DEFAULT_HOURS,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: whoever calls this has looked at it.")] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    token: TokenOption = None,
    as_json: Json = False,
) -> None:
    """Approve a signing request that a policy wants approved (`approvals` in its rule). It is shown first, as read
    here: what you sign is what you were shown, whatever the coordinator says. It is carried out once there are enough.
    """
    with open_client(profile, token) as client:
        wanted = client.approvals_wanted(checked_key_id(key_id), signature_id)
        fields = describe(wanted, key_id)
        if not as_json:
            show_fields(fields)
        if not yes:
            typer.confirm("Approve this?", abort=True, err=True)
        with working("The signers are asked…"):
            answer = client.approve(key_id, signature_id, wanted.body.encode(), lifetime_s=hours * 3600)
    if as_json:
        show_json(answer)
        return
    reason = f": {answer.reason.message}" if answer.reason is not None else ""
    typer.echo(printable(f"Approved. The request is {answer.status}{reason}"))


def describe(wanted: ApprovalsWanted, key_id: str) -> dict[str, str]:
    """The request in words, from its body alone. Raises `CallerError` where it cannot be read, or is of another key."""
    from policies.decoded import MessageDecoded
    from policies.gate_messages import show_decoded
    from policies.keccak import keccak256
    from policies.payloads import decode_payload
    from policies.requests import signatures_path
    from policies.signed_requests import parse_strictly

    if wanted.path != signatures_path(key_id):
        raise CallerError(f"the request is for {wanted.path}, not for {key_id}")
    try:
        body: SigningBody = parse_strictly(wanted.body.encode(), SigningBody, "body")  # type: ignore[arg-type]
        payload = decode_payload(body, keccak256)
    except (Refused, UnicodeEncodeError) as error:
        told = error.reason if isinstance(error, Refused) else "no UTF-8"
        raise CallerError(f"the request cannot be read: {told}") from None
    path = "/".join(("m", *map(str, body.derivation_path)))
    fields = {"requester": wanted.requester, "kind": payload.kind.value, "key": f"{key_id} {path}"}
    fields |= {"external id": body.external_id, "hash": payload.h.hex(), "expires": wanted.expires}
    decoded: Any = None if payload.decoded is None else show_decoded(payload.decoded)
    if isinstance(decoded, dict):
        # None of them takes another's place.
        fields |= {f"- {name}": value if isinstance(value, str) else _text(value) for name, value in decoded.items()}
        if isinstance(payload.decoded, MessageDecoded) and (text := _as_text(payload.decoded.message)) is not None:
            fields["- message as text"] = text
    else:
        fields["content"] = "not known: a bare hash"
    return fields | {"approved by": ", ".join(wanted.approved_by) or "nobody yet"}


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _as_text(message: bytes) -> str | None:
    """The message as a JSON string, where a terminal shows exactly that; else None, and its hex has to do."""
    try:
        text = _text(message.decode("utf-8"))
    except UnicodeDecodeError:
        return None
    return text if message and printable(text) == text else None

"""`keymoot freeze|unfreeze|operator-key`: the emergency stop of one signer, by orders that its operators sign."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from appliance.cli import printable
from appliance.cli.files import read_whole
from appliance.cli.names import identified
from appliance.cli.output import Json, report, show_json, working
from policies.errors import CallerError, Refused, Unavailable
from policies.stop_orders import EVERYTHING, MAX_ORDER_S, StopOrder

if TYPE_CHECKING:
    from appliance.signer.status import StopAnswer

FREEZE_S, UNFREEZE_S = 600, MAX_ORDER_S
MAX_ORDER_BYTES = 300 * 1024
ANOTHER = "name another file by --order for a new one"
STOP_THE_ENCLAVE = "stop the enclave itself if it must not sign: systemctl stop keymoot-enclave"

DirectoryArgument = Annotated[
    Path | None, typer.Argument(help="The signer's directory on its host: the order goes to its enclave.")
]
OperatorOption = Annotated[str, typer.Option("--operator", help="Who signs: an id of the policy's operators.")]
KeyOption = Annotated[Path | None, typer.Option("--key", help="The operator's private key (`keymoot operator-key`).")]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", help="A pattern of labels, such as hot/*; everything if left out.")
]
ReasonOption = Annotated[str, typer.Option(help="Why: shown wherever the freeze is.")]
OrderOption = Annotated[
    Path | None, typer.Option("--order", help="A file with the order, for several operators to sign, or to send later.")
]
NetworkOption = Annotated[str, typer.Option(help="The network, where no DIRECTORY is given.")]
SignerOption = Annotated[str, typer.Option(help="The signer, where no DIRECTORY is given.")]


class SignerNames(msgspec.Struct, frozen=True):
    """What enclave.yaml says of whose it is; the rest is the enclave's to read."""

    network: str
    signer: str


def _command(action: Literal["freeze", "unfreeze"], purpose: str) -> Callable[..., None]:
    """The command of one kind of order; both take the same. `purpose`: its help."""

    def order_it(
        directory: DirectoryArgument = None,
        operator: OperatorOption = "",
        key: KeyOption = None,
        label: LabelOption = None,
        reason: ReasonOption = "",
        order: OrderOption = None,
        network: NetworkOption = "",
        signer: SignerOption = "",
        as_json: Json = False,
    ) -> None:
        _run(action, directory, (operator, key), label, reason, order, (network, signer), as_json)

    order_it.__doc__ = purpose
    return order_it


freeze = _command(
    "freeze",
    """Stop a signer: no signature and no new key, for everything or for some labels. One operator's key is enough.

    With DIRECTORY the order is carried out now, whether or not a coordinator can be reached; without, it is written to
    the file of --order, which whoever is on the signer's host sends: keymoot freeze DIRECTORY --order FILE.
    """,
)
unfreeze = _command(
    "unfreeze",
    """End a freeze.

    It takes as many operators as the signer's policy says: each adds a signature to the file of --order, and one of
    them sends it. Who adds one may say again what is ordered: another order is not signed. It is refused where somebody
    froze the signer again meanwhile.
    """,
)


def operator_key(
    name: Annotated[str, typer.Argument(help="The operator's id.")],
    out: Annotated[Path | None, typer.Option(help="The file of the private key; NAME.key if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Make an operator's key, and print what policy.yaml must say of it."""
    from appliance.api.jws import base64url, generate_client_key, save_client_key

    identified(name, "NAME")
    made, file = generate_client_key(name), out or Path(f"{name}.key")
    save_client_key(made, file)
    public = base64url(made.public_bytes)
    if as_json:
        show_json({"file": str(file), "id": name, "alg": made.algorithm, "public_key": public})
        return
    typer.echo(f"The private key is in {file}. For policy.yaml of each signer, under operators:, keys:")
    typer.echo("")
    typer.echo(f"    - {{id: {name}, alg: {made.algorithm}, public_key: {public}}}")


def _run(
    action: Literal["freeze", "unfreeze"],
    directory: Path | None,
    who: tuple[str, Path | None],
    labels: list[str] | None,
    reason: str,
    file: Path | None,
    target: tuple[str, str],
    as_json: bool,
) -> None:
    from appliance import pki
    from appliance.api.jws import load_client_key
    from appliance.api.stop import countersign, parse_order, sign_order

    if directory is None and file is None:
        raise CallerError("name the signer's DIRECTORY to send the order, or a file for it by --order")
    signatures: tuple[str, ...] = ()
    if file is not None and file.exists():
        signatures = tuple(read_whole(file, MAX_ORDER_BYTES).decode("ascii", "replace").split())
    operator, path = who
    if signatures:
        _check_wanted(file, parse_order(signatures)[0].order, action, (labels, reason, target))
    if path is not None:
        key = load_client_key(path, operator or path.stem)
        if signatures:
            _check_lasts(file, parse_order(signatures)[0].order)
            signatures = countersign(key, signatures)
        else:
            signatures = (sign_order(key, _order(action, directory, target, labels, reason)),)
        if file is not None:
            pki.replace(file, "".join(text + "\n" for text in signatures).encode())
    if not signatures:
        raise CallerError("sign the order: --operator ID --key FILE")
    parts = parse_order(signatures)
    ordered, names = parts[0].order, [part.header.kid for part in parts]
    shown = {"signer": ordered.signer, "labels": " ".join(ordered.labels), "signed_by": ", ".join(names)}
    if directory is None:
        steps = ("Pass the file on for another signature, or send it:", f"keymoot {action} DIRECTORY --order {file}")
        report(as_json, f"The order to {action} is in {file}.", shown, steps)
        return
    with working("The signer is told…"):
        answer = _send(directory, signatures, action)
    frozen = ", ".join(one.pattern for one in answer.frozen) or "nothing"
    done = f"{printable(ordered.signer)} has carried the order to {action} out. Frozen now: {printable(frozen)}."
    report(as_json, done, {**shown, "frozen": [one.pattern for one in answer.frozen]}, ())


def _check_lasts(file: Path | None, order: StopOrder) -> None:
    """Of one that is only sent, the enclave's clock decides. Raises `CallerError`."""
    if order.expires <= time.time():
        raise CallerError(f"the order in {file} has expired: {ANOTHER}")


def _check_wanted(
    file: Path | None,
    order: StopOrder,
    action: Literal["freeze", "unfreeze"],
    wanted: tuple[list[str] | None, str, tuple[str, str]],
) -> None:
    """Nobody signs or sends another order than he means, because a file of that name was there. `wanted`: labels,
    reason and target, as far as they were said. Raises `CallerError`."""
    if order.action != action:
        raise CallerError(f"{file} holds an order to {order.action}: {ANOTHER}")
    labels, reason, (network, signer) = wanted
    for option, said, held in (
        ("--network", network, order.network),
        ("--signer", signer, order.signer),
        ("--label", " ".join(sorted(labels or ())), " ".join(sorted(order.labels))),
        ("--reason", reason, order.reason),
    ):
        if said not in ("", held):
            raise CallerError(f"{file} holds an order with {option} {printable(held) or 'left out'}: {ANOTHER}")


def _order(
    action: Literal["freeze", "unfreeze"],
    directory: Path | None,
    target: tuple[str, str],
    labels: list[str] | None,
    reason: str,
) -> StopOrder:
    """Raises `CallerError`."""
    from policies.load import load_yaml

    network, signer = target
    if directory is not None:
        names = load_yaml(directory / "enclave.yaml", SignerNames)
        network, signer = names.network, names.signer
    if not network or not signer:
        raise CallerError("say for whom the order is: DIRECTORY, or --network and --signer")
    now_s = time.time()
    fields: dict[str, object] = {
        "network": network,
        "signer": signer,
        "action": action,
        "labels": tuple(labels or (EVERYTHING,)),
    }
    fields |= {"serial": int(now_s * 1000), "reason": reason}
    fields["expires"] = int(now_s) + (FREEZE_S if action == "freeze" else UNFREEZE_S)
    try:
        return msgspec.convert(fields, StopOrder)
    except msgspec.ValidationError as error:
        raise CallerError(f"not an order: {error}") from None


def _send(directory: Path, signatures: tuple[str, ...], action: str) -> StopAnswer:
    """Raises `Refused`; `Unavailable` where nothing is known to have been done."""
    from appliance.checkup.probe import read_socket
    from appliance.signer.config import load_config
    from appliance.signer.status import StopAnswer, StopRequest

    path = load_config(directory / "signer.yaml").status_socket
    if path is None:
        raise CallerError(f"{directory / 'signer.yaml'} names no status_socket: nobody can be told")
    try:
        said = read_socket(path, say=msgspec.json.encode(StopRequest(signatures)))
        answer = msgspec.json.decode(said, type=StopAnswer)
    except (OSError, msgspec.DecodeError) as error:
        why = getattr(error, "strerror", None) or "no answer"
        raise Unavailable(f"NOT known to be carried out: the signer at {path}: {why}", STOP_THE_ENCLAVE) from None
    if answer.refused:
        raise Refused(action, answer.refused)
    return answer

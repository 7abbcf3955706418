"""`keymoot bench presign|online|load|wan|policy|gate`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import msgspec
import typer

from appliance.cli.output import Json, show_fields, show_json, working
from policies.errors import CallerError
from policies.requests import MAX_HASHES

MAX_BATCH = 16_384
MAX_RUNS = 5
MAX_CLIENTS = 1024
MAX_SECONDS = 3600
MAX_DELAY_MS = 1000
MAX_REPEAT = 100_000
MAX_KEYS = 1_000_000

app = typer.Typer(help="Measure on this machine, with real processes on loopback.", no_args_is_help=True)

Told = Callable[[str], None]
Signers = Annotated[int, typer.Option(help="Signers in the network (n).")]
Tolerate = Annotated[int, typer.Option(help="How many may be corrupted (t).")]


@app.command("presign")
def presign(
    signers: Signers = 3,
    tolerate: Tolerate = 1,
    batch: Annotated[int, typer.Option(help="Presignatures in the batch.")] = 10_000,
    runs: Annotated[int, typer.Option(help="Batches whose median is shown.")] = 3,
    curve: Annotated[bool, typer.Option("--curve", help="Batches of 1, 10, … 10,000 instead.")] = False,
    as_json: Json = False,
) -> None:
    """Measure batches of presignatures: CPU and bytes of one signer for each, step by step."""
    _check_scheme(signers, tolerate)
    if not 1 <= batch <= MAX_BATCH or not 1 <= runs <= MAX_RUNS:
        raise CallerError(f"--batch is 1 to {MAX_BATCH}, --runs 1 to {MAX_RUNS}")
    from appliance.bench import presign as measure

    def run(told: Told) -> msgspec.Struct:
        if curve:
            return measure.curve(signers, tolerate, told)
        return measure.run(signers, tolerate, batch, runs, told)

    _measure(run, as_json)


@app.command("online")
def online(
    signers: Signers = 3,
    tolerate: Tolerate = 1,
    signatures: Annotated[int, typer.Option(help="How many hashes to sign.")] = 1000,
    concurrency: Annotated[int, typer.Option(help="How many at a time.")] = 8,
    as_json: Json = False,
) -> None:
    """Measure the online step in the enclave and whole signing requests."""
    _check_scheme(signers, tolerate)
    if signatures < 1 or concurrency < 1:
        raise CallerError("--signatures and --concurrency must be at least 1")
    from appliance.bench.online import run

    _measure(partial(run, signers, tolerate, signatures, concurrency), as_json)


@app.command("load")
def load(
    signers: Signers = 3,
    tolerate: Tolerate = 1,
    clients: Annotated[int, typer.Option(help="Clients in a closed loop.")] = 16,
    seconds: Annotated[float, typer.Option(help="How long to sign.")] = 10.0,
    hashes: Annotated[int, typer.Option(help="Hashes in each batch call; 0 for single requests.")] = 0,
    keys: Annotated[int, typer.Option(help="Keys in each store: 64 are signed with, the others copies.")] = 1,
    refill: Annotated[bool, typer.Option("--refill", help="Make batches of 10,000 presignatures meanwhile.")] = False,
    as_json: Json = False,
) -> None:
    """Measure what the network carries: signatures a second, times, CPU by process."""
    _check_scheme(signers, tolerate)
    if not 1 <= clients <= MAX_CLIENTS or not 0 < seconds <= MAX_SECONDS or not 0 <= hashes <= MAX_HASHES:
        raise CallerError(
            f"--clients is 1 to {MAX_CLIENTS}, --seconds at most {MAX_SECONDS}, --hashes 0 to {MAX_HASHES}"
        )
    if not 1 <= keys <= MAX_KEYS:
        raise CallerError(f"--keys is 1 to {MAX_KEYS}")
    from appliance.bench.load import run

    _measure(partial(run, signers, tolerate, clients, seconds, hashes, keys, refill), as_json)


@app.command("wan")
def wan(
    signers: Signers = 3,
    tolerate: Tolerate = 1,
    delay_ms: Annotated[float, typer.Option(help="From each signer to the coordinator, one way.")] = 50.0,
    as_json: Json = False,
) -> None:
    """Measure with signers far from the coordinator: presigning, key generation, a signature."""
    _check_scheme(signers, tolerate)
    if not 0 < delay_ms <= MAX_DELAY_MS:
        raise CallerError(f"--delay-ms is more than 0 and at most {MAX_DELAY_MS}")
    from appliance.bench.wan import run

    _measure(partial(run, signers, tolerate, delay_ms), as_json)


@app.command("policy")
def policy(
    rules: Annotated[int, typer.Option(help="Rules, the last of which permits.")] = 50,
    destinations: Annotated[int, typer.Option(help="Addresses that each rule names.")] = 200,
    repeat: Annotated[int, typer.Option(help="Decisions in each round.")] = 200,
    as_json: Json = False,
) -> None:
    """Measure a decision: reading an EIP-1559 transfer, and putting it to a policy."""
    from policies.addresses import MAX_PLACES
    from policies.model import MAX_RULES

    if not 1 <= rules <= MAX_RULES or not 1 <= destinations <= MAX_PLACES or not 1 <= repeat <= MAX_REPEAT:
        raise CallerError(f"--rules is 1 to {MAX_RULES}, --destinations to {MAX_PLACES}, --repeat to {MAX_REPEAT}")
    from appliance.bench.policy import run

    _measure(lambda _: run(rules, destinations, repeat), as_json)


@app.command("gate")
def gate(
    clients: Annotated[int, typer.Option(help="Clients in a closed loop.")] = 8,
    seconds: Annotated[float, typer.Option(help="How long to sign.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Measure what a gate call costs: CPU of a signer and an enclave that ask, against those of one that does not."""
    if not 1 <= clients <= MAX_CLIENTS or not 0 < seconds <= MAX_SECONDS:
        raise CallerError(f"--clients is 1 to {MAX_CLIENTS}, --seconds at most {MAX_SECONDS}")
    from appliance.bench.gate import run

    _measure(partial(run, clients, seconds), as_json)


def _check_scheme(signers: int, tolerate: int) -> None:
    if tolerate < 1 or not 2 * tolerate + 1 <= signers <= 16:
        raise CallerError(f"{signers} signers cannot tolerate {tolerate}: 2·t+1 must be online, of at most 16")


def _measure(run: Callable[[Told], msgspec.Struct], as_json: bool) -> None:
    """`run` is told how to say what it is at."""
    with working("starting") as told:
        result = run(told)
    _show(result, as_json)


def _show(result: msgspec.Struct, as_json: bool) -> None:
    if as_json:
        show_json(result)
        return
    shown: dict[str, str] = {}
    for name in result.__struct_fields__:
        match getattr(result, name):
            case dict(parts):
                shown |= {f"{name} {part}": str(value) for part, value in parts.items()}
            case tuple(values) if values and isinstance(values[0], msgspec.Struct):
                for number, value in enumerate(values):
                    told = (f"{field} {getattr(value, field)}" for field in value.__struct_fields__)
                    shown[f"{name} {number + 1}"] = ", ".join(told)
            case value:
                shown[name] = str(value)
    show_fields(shown)

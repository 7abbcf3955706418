"""The enclave's commands, run by a fresh interpreter: `python -I -m enclave run|provision|…`."""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from enclave.config import EnclaveConfig, load_config, load_enclave_file
from enclave.confine import keep_memory_private, why_unfiltered
from enclave.errors import CallerError, KeymootError, Malformed, Refused, Unavailable
from enclave.evidence import MAX_EVIDENCE_BYTES, verify_evidence
from enclave.gate_secrets import finish_rotation, rotate_gate_secrets, seal_gate_secrets
from enclave.hsm import Hsm, HsmConfig, open_hsm, provision
from enclave.hsm.check import check_module, list_tokens
from enclave.rewrap import rewrap
from enclave.run import run_enclave
from enclave.serve import WorkerGone
from policies.load import load_yaml
from policies.roster import Roster, identity_fingerprint

EXIT_OK, EXIT_FAILED, EXIT_CALLER, EXIT_UNAVAILABLE = 0, 1, 2, 3
MAX_SECRETS_BYTES = 16 * 1024


def main(arguments: list[str]) -> int:
    """Parse, run, and turn our errors into one line and an exit code: 2 the caller's, 3 something is away."""
    parser = argparse.ArgumentParser(prog="python -m enclave", description=__doc__)
    commands = {"run": _run, "provision": _provision, "describe": _describe}
    sealing = {
        "seal-gate-secret": _seal_gate_secret,
        "rotate-gate-secret": _rotate_gate_secret,
        "finish-gate-rotation": _finish_gate_rotation,
        "rewrap": _rewrap,
    }
    parser.add_argument("command", choices=[*commands, *sealing, "hsm-check", "hsm-tokens", "verify-evidence"])
    parser.add_argument("--config", type=Path, help="enclave.yaml")
    parser.add_argument("--hsm", help="hsm-check without a configuration: its hsm section, as JSON")
    parser.add_argument("--gate-secrets", type=Path, help="the gate's sealed secrets, in place of those of --config")
    parser.add_argument("--evidence", type=Path, help="verify-evidence: the file")
    parser.add_argument("--roster", type=Path, help="verify-evidence: roster.yaml")
    options = parser.parse_args(arguments)
    keep_memory_private()
    try:
        if options.command == "hsm-check":
            _hsm_check(options.config, options.hsm)
        elif options.command == "hsm-tokens":
            sys.stdout.write(msgspec.json.encode(list_tokens(_hsm_section(options.hsm))).decode() + "\n")
        elif options.command == "verify-evidence":
            _verify_evidence(options.evidence, options.roster)
        elif options.config is None:
            parser.error("--config is missing")
        elif options.command in sealing:
            sealing[options.command](_sealing_config(options.config, options.gate_secrets))
        else:
            commands[options.command](options.config)
    except Unavailable as error:
        return _fail(str(error), EXIT_UNAVAILABLE)
    except CallerError as error:
        return _fail(str(error), EXIT_CALLER)
    except (KeymootError, WorkerGone) as error:
        return _fail(f"{type(error).__name__}: {error}", EXIT_FAILED)
    return EXIT_OK


def _run(path: Path) -> None:
    run_enclave(load_config(path), lambda: load_config(path))


def _provision(path: Path) -> None:
    """Make or find the HSM's keys and print the public identity as one JSON object."""
    _, hsm = load_enclave_file(path)
    made = provision(hsm)
    shown = {
        "identity_key": base64.b64encode(made.identity_point).decode(),
        "fingerprint": identity_fingerprint(made.identity_point),
        "profile": made.profile,
    }
    sys.stdout.write(msgspec.json.encode(shown).decode() + "\n")


def _describe(path: Path) -> None:
    """Load everything that `run` would load, the HSM aside, and print what it says as one JSON object."""
    config = load_config(path)
    shown = {
        "network": config.file.network,
        "signer": config.file.signer,
        "index": config.index,
        "fingerprint": config.roster.signer(config.index).fingerprint,
        "roster_digest": config.roster.digest().hex(),
        "policy_digest": config.policy.digest().hex(),
        "gate_mode": config.file.gate.mode,
        "gate_secrets": config.gate_secrets.is_file(),
        "socket": str(config.socket.resolve()),
        "token": config.hsm.token,
        "accept_key_export": config.hsm.accept_key_export,
        "unfiltered": why_unfiltered(),
    }
    sys.stdout.write(msgspec.json.encode(shown).decode() + "\n")


def _sealing_config(path: Path, gate_secrets: Path | None) -> EnclaveConfig:
    config = load_config(path)
    return config if gate_secrets is None else replace(config, gate_secrets=gate_secrets)


def _seal_gate_secret(config: EnclaveConfig) -> None:
    """Read the secrets from standard input and write the sealed file that the configuration names."""
    secrets = _read_secrets()
    _change_gate_secrets(config, lambda hsm: seal_gate_secrets(hsm, *_gate_place(config), secrets))


def _rotate_gate_secret(config: EnclaveConfig) -> None:
    """Read new secrets from standard input; the present ones stay in use beside them."""
    secrets = _read_secrets()
    _change_gate_secrets(config, lambda hsm: rotate_gate_secrets(hsm, *_gate_place(config), secrets))


def _finish_gate_rotation(config: EnclaveConfig) -> None:
    """Retire the older secrets."""
    _change_gate_secrets(config, lambda hsm: finish_rotation(hsm, *_gate_place(config)))


def _read_secrets() -> bytes:
    secrets = sys.stdin.buffer.read(MAX_SECRETS_BYTES + 1)
    if len(secrets) > MAX_SECRETS_BYTES:
        raise CallerError(f"the gate's secrets exceed {MAX_SECRETS_BYTES} bytes")
    return secrets


def _gate_place(config: EnclaveConfig) -> tuple[str, int, Path]:
    return config.file.network, config.index, config.gate_secrets


def _change_gate_secrets(config: EnclaveConfig, change: Callable[[Hsm], None]) -> None:
    hsm = open_hsm(config.hsm, config.file.network, config.index)
    try:
        change(hsm)
    finally:
        hsm.close()


def _rewrap(config: EnclaveConfig) -> None:
    """Bring the records on standard input under the present sealing key."""
    rewrap(config, sys.stdin.buffer, sys.stdout.buffer)


def _hsm_check(path: Path | None, section: str | None) -> None:
    """Try what the module can do and print it as one JSON object. It is no error if that is too little."""
    if (path is None) == (section is None):
        raise CallerError("name the HSM by --config or by --hsm, one of them")
    if path is not None:
        _, hsm = load_enclave_file(path)
    else:
        hsm = _hsm_section(section)
    sys.stdout.write(msgspec.json.encode(check_module(hsm)).decode() + "\n")


def _hsm_section(section: str | None) -> HsmConfig:
    try:
        return msgspec.json.decode(section or "", type=HsmConfig)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise CallerError(f"the HSM is not named rightly: {error}") from None


def _verify_evidence(path: Path | None, roster_path: Path | None) -> None:
    """Judge a file of evidence and print the verdict as one JSON object. It is no error if it proves nothing."""
    if path is None or roster_path is None:
        raise CallerError("name the file by --evidence and the roster by --roster")
    roster = load_yaml(roster_path, Roster)
    with path.open("rb") as file:
        data = file.read(MAX_EVIDENCE_BYTES + 1)
    shown: dict[str, object] = {"proves": False, "network": roster.network, "ceremony": "", "context": "", "step": ""}
    try:
        found = verify_evidence(data, roster)
    except (Malformed, Refused) as refusal:
        shown |= {"reason": str(refusal), "convicted": [], "group": []}
    else:
        verdict = found.verdict
        shown |= {"proves": True, "ceremony": found.kind, "context": found.context.hex()}
        shown |= {"step": verdict.step, "reason": verdict.reason}
        shown |= {"convicted": [_shown_signer(roster, j) for j in verdict.culprits]}
        shown |= {"group": [_shown_signer(roster, j) for j in verdict.subset]}
    sys.stdout.write(msgspec.json.encode(shown).decode() + "\n")


def _shown_signer(roster: Roster, index: int) -> dict[str, object]:
    signer = roster.signer(index)
    return {"index": index, "name": signer.name, "operator": signer.operator, "fingerprint": signer.fingerprint}


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"keymoot enclave: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Opens what a stopped signer has sealed, with its own HSM: `python -m tests.fakes.sealed ENCLAVE.YAML SIGNER.DB`.

Prints one JSON object: a name for each secret in the records, and the secret in hex.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from enclave.config import load_config
from enclave.hsm import RecordContext, open_hsm
from enclave.protocol.setup import Seeds
from enclave.shares import KeyRecord
from enclave.wire import decode


def unsealed(config: Path, store: Path, environment: Mapping[str, str]) -> dict[str, bytes]:
    """What is in the records, read by a process with `environment`. The enclave must be stopped."""
    command = [sys.executable, "-m", "tests.fakes.sealed", str(config), str(store)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=dict(environment), capture_output=True, check=True)
    return {name: bytes.fromhex(text) for name, text in json.loads(done.stdout).items()}


def main(config_path: str, store: str) -> None:
    """Print the secrets of the key shares' and the PRSS seeds' records."""
    config = load_config(Path(config_path))
    network, index = config.file.network, config.index
    found: dict[str, str] = {}
    hsm = open_hsm(config.hsm, network, index)
    with sqlite3.connect(store) as database:
        for kind, name, version, sealed in database.execute("SELECT kind, name, version, sealed FROM records"):
            if kind not in ("key", "prss"):
                continue
            epoch = version if kind == "prss" else version // 2
            with hsm.unseal(RecordContext(network, index, kind, name, epoch, version), sealed) as plaintext:
                if kind == "key":
                    found[f"share {index}"] = decode(plaintext.reveal(), KeyRecord).share.hex()
                else:
                    for number, seed in enumerate(decode(plaintext.reveal(), Seeds).seeds, 1):
                        found[f"seed {number} of {index}"] = seed.hex()
    hsm.close()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

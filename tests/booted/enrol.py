"""Setting up the hosts of a test as operators do: `keymoot setup` on each, files and fingerprints exchanged."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from appliance import configure, layout, templates
from appliance.api.credentials import token_sha256
from appliance.api.jws import ClientKey, base64url
from tests.booted.machines import Host, until

NETWORK, CLIENT = "booted", "payouts"
SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
# Where other vendors' packages put theirs.
IN_OPT = "/opt/vendor/lib/libsofthsm2.so"
DROP_INS = "/usr/share/doc/keymoot/examples/drop-ins"


def coordinator_address(index: int) -> str:
    """The coordinator's, on its wire to a signer."""
    return f"10.77.{index}.1"


def gate_address(index: int) -> str:
    """A signer's gate's, on its wire to that signer."""
    return f"10.78.{index}.1"


API = "10.79.0.1:8080"


def set_up_coordinator(host: Host, indices: range) -> None:
    """First run."""
    addresses = " ".join(f"--address {coordinator_address(index)}" for index in indices)
    host.run(
        f"keymoot setup --no-input --role coordinator --network {NETWORK} --name c --host localhost {addresses} "
        f"--address {API.partition(':')[0]} --signers-listen 0.0.0.0:8443 --api-listen {API} --json"
    )


def write_gate(directory: Path, index: int) -> bytes:
    """A reference gate's directory on this machine; its CA."""
    setup = templates.GateSetup(f"gate-{index}", f"{gate_address(index)}:8090", addresses=(gate_address(index),))
    return configure.write_gate(directory, setup)


def set_up_signer(host: Host, index: int, coordinator_ca: bytes, gate_ca: bytes) -> None:
    """Token, drop-ins of this host, first run. The third signer's module is in /opt."""
    module = IN_OPT if index == 3 else SOFTHSM
    host.run(f"mkdir -p $(dirname {IN_OPT}) && cp {SOFTHSM} {IN_OPT}")
    pin = secrets.token_hex(8)
    unit = "/etc/systemd/system/keymoot-{}.service.d"
    host.run(
        "usermod -aG softhsm keymoot-enclave && runuser -u keymoot-enclave -g keymoot -G softhsm -- "
        f"softhsm2-util --init-token --free --label keymoot --so-pin {secrets.token_hex(8)} --pin {pin} && "
        f"mkdir -p {unit.format('enclave')} {unit.format('signer')} && "
        f"cp {DROP_INS}/softhsm.conf {unit.format('enclave')}/"
    )
    allowed = layout.network_drop_in([coordinator_address(index), gate_address(index)])
    host.put(f"{unit.format('signer')}/network.conf", allowed.encode())
    # The unit's half minute would be the test's.
    host.put(f"{unit.format('enclave')}/watchdog.conf", b"[Service]\nWatchdogSec=6\n")
    host.put("/root/c.pem", coordinator_ca)
    host.put("/root/gate.pem", gate_ca)
    host.run(
        f"systemctl daemon-reload && keymoot setup --no-input --role signer --pin-stdin --network {NETWORK} "
        f"--name signer-{index} --operator op{index} --coordinator c=https://{coordinator_address(index)}:8443 "
        f"--coordinator-ca /root/c.pem --lib {module} --token-label keymoot --gate-mode signed "
        f"--gate https://{gate_address(index)}:8090/validate --gate-ca /root/gate.pem --json",
        pin.encode(),
    )


CHANGE_PIN = f"""
import sys, pkcs11
old, new = sys.stdin.read().split()
with pkcs11.lib("{SOFTHSM}").get_token(token_label="keymoot").open(rw=True, user_pin=old) as session:
    session.set_pin(old, new)
"""


def change_pin(host: Host) -> str:
    """As the HSM's own tool does; the new one, which Keymoot is not told."""
    path = layout.SignerHost().pin_file
    old = host.run(f"systemd-creds decrypt --name={layout.PIN_CREDENTIAL} {path} -").stdout
    new = secrets.token_hex(8)
    program = f"/usr/lib/keymoot/bin/python3 -I -c '{CHANGE_PIN}'"
    host.run(f"runuser -u keymoot-enclave -g softhsm -- {program}", f"{old} {new}".encode())
    return new


def put_behind_a_socket(host: Host, instance: str) -> None:
    """A token behind a daemon, with the drop-in for it, and that instance's enclave, which only tries the token."""
    unit = f"/etc/systemd/system/keymoot-enclave@{instance}.service.d"
    pin, configuration = secrets.token_hex(8), layout.SignerHost(instance).configuration
    socket = "/run/hsmd/pkcs11"
    host.run(
        f"runuser -u keymoot-enclave -g softhsm -- softhsm2-util --init-token --free --label behind --so-pin {pin} "
        f"--pin {pin} && systemd-run --unit=hsmd -p Type=exec -p RuntimeDirectory=hsmd "
        f"p11-kit server -f -n {socket} --provider {SOFTHSM} --user keymoot-enclave --group keymoot "
        f"pkcs11:token=behind && mkdir -p {unit} {configuration} && cp {DROP_INS}/hsm-unix-socket.conf {unit}/ && "
        f"systemd-creds encrypt --name=hsm-pin - {layout.SignerHost(instance).pin_file}",
        pin.encode(),
    )
    until("the daemon listens", lambda: host.run(f"test -S {socket}", check=False).returncode == 0, 30)
    config = host.get("/etc/keymoot/signer/enclave.yaml").decode()
    client = host.run("ls /usr/lib/*/pkcs11/p11-kit-client.so").stdout.strip()
    config = config.replace(f'"{SOFTHSM}"', client).replace('token_label: "keymoot"', "token_label: behind")
    assert client in config
    assert "behind" in config
    host.put(f"{configuration}/enclave.yaml", config.encode())
    command = f"/usr/lib/keymoot/bin/python3 -I -m enclave hsm-check --config {configuration}/enclave.yaml"
    once = f"[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart={command}\n"
    host.put(f"{unit}/once.conf", once.encode())
    host.run("systemctl daemon-reload")


def take_in(host: Host, roster: bytes, policy: bytes) -> bytes:
    """A signer's second run; the handler's copy of the gate's secrets."""
    host.put("/root/roster.yaml", roster)
    host.put("/root/policy.yaml", policy)
    done = host.run(
        "keymoot setup --no-input --role signer --roster /root/roster.yaml --policy /root/policy.yaml "
        "--gate-secrets-out /root/gate-secrets.json --json"
    )
    assert json.loads(done.stdout)["missing"] == []
    return host.get("/root/gate-secrets.json")


def write_client(directory: Path, host: Host, roster: bytes) -> bytes:
    """A client's directory on this machine, its token known to the coordinator; the policy for it."""
    setup = templates.ClientSetup(NETWORK, CLIENT, f"https://{API}", host.get("/etc/keymoot/coordinator/ca.pem"))
    key = configure.write_client(directory, setup)
    (directory / "roster.yaml").write_bytes(roster)
    reader = templates.reader_yaml(CLIENT, token_sha256(setup.token))
    config = host.get("/etc/keymoot/coordinator/coordinator.yaml").decode()
    assert "  readers:\n" in config
    host.put(
        "/etc/keymoot/coordinator/coordinator.yaml", config.replace("  readers:\n", f"  readers:\n{reader}").encode()
    )
    return policy(key)


def policy(key: ClientKey) -> bytes:
    """Everything under any label is this client's."""
    return f"""version: 1
clients:
  - id: {CLIENT}
    alg: Ed25519
    public_key: {templates.quoted(base64url(key.public_bytes))}
rules:
  - name: everything
    clients: [{CLIENT}]
    actions: [create-key, sign]
    labels: ["**"]
    kinds: [Hash]
    blind: true
    derivation_paths: [m]
""".encode()

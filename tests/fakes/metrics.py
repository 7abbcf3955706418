"""Metrics of real processes, and what the page says there is."""

from __future__ import annotations

import http.client
import re
from pathlib import Path

from appliance.localnet import LocalNet
from appliance.localnet.files import free_ports

DOCUMENT = Path(__file__).parents[2] / "packaging" / "METRICS.md"


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name, type and labels of every metric in the page."""
    rows = re.findall(r"^\| `(keymoot_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE)
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def serve_metrics(net: LocalNet) -> dict[str, int]:
    """Have every signer and coordinator of a network that is not started yet serve metrics; on which port."""
    names = [name for name in net.processes if name.startswith(("coordinator", "signer"))]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    for name, port in ports.items():
        with (net.root / name / f"{name.partition('-')[0]}.yaml").open("a") as file:
            file.write(f"metrics: 127.0.0.1:{port}\n")
    return ports


def scrape(port: int) -> bytes:
    """What Prometheus would read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == http.client.OK
        return answer.read()
    finally:
        connection.close()


def samples(text: bytes) -> dict[str, float]:
    """Every series of a scrape as Prometheus writes it, such as `name{a="1",b="2"}`."""
    lines = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}

"""Two hosts of two organisations: one with a public address, one behind NAT, which nobody reaches from outside.

As root three network namespaces, joined by a router that masquerades; elsewhere both hosts are this machine's loopback.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from appliance.localnet.files import LOOPBACK, free_ports

PUBLIC, ROUTER_OUTSIDE, ROUTER_INSIDE, INSIDE = "203.0.113.1", "203.0.113.2", "192.168.77.1", "192.168.77.2"
NAT = """table ip nat {
  chain post {
    type nat hook postrouting priority 100
    oifname "out" masquerade
  }
}
"""


@dataclass(frozen=True)
class Host:
    """`prefix`: what a command is run with to be on that host. `ports`: what is free there, for two listeners."""

    address: str
    prefix: tuple[str, ...]
    ports: tuple[int, int]


@dataclass(frozen=True)
class Hosts:
    """A public host and one behind NAT. `together`: why both are this machine's loopback; empty where they are not."""

    public: Host
    inside: Host
    together: str = ""


def missing() -> str:
    """Why hosts cannot be separated here; empty where they can."""
    if os.geteuid() != 0:
        return "root"
    return next((tool for tool in ("ip", "nft") if shutil.which(tool) is None), "")


@contextmanager
def hosts() -> Iterator[Hosts]:
    """Hosts for as long as the block."""
    with ExitStack() as undo:
        found, why = None, missing() and f"hosts of their own need {missing()}"
        if not why:
            try:
                found = _separate(undo)
            except subprocess.CalledProcessError as error:
                undo.close()  # A machine that has the tools, but may not use them.
                why = f"no hosts of their own: {' '.join(error.cmd)}: {error.stderr.strip()}"
        yield found or _together(why)


def _together(why: str) -> Hosts:
    first, second, third, fourth = free_ports(4)
    return Hosts(Host(LOOPBACK, (), (first, second)), Host(LOOPBACK, (), (third, fourth)), why)


def _separate(undo: ExitStack) -> Hosts:
    names = {kind: f"km-{kind}-{os.getpid()}" for kind in ("public", "router", "inside")}
    for name in names.values():
        _run("ip", "netns", "add", name)
        undo.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        _run("ip", "-n", name, "link", "set", "lo", "up")
    for kind, end, there, address, gateway in (
        ("public", "out", "eth", PUBLIC, ROUTER_OUTSIDE),
        ("inside", "in", "eth", INSIDE, ROUTER_INSIDE),
    ):
        host, router = names[kind], names["router"]
        _run("ip", "-n", host, "link", "add", there, "type", "veth", "peer", "name", end, "netns", router)
        for name, link, own in ((host, there, address), (router, end, gateway)):
            _run("ip", "-n", name, "addr", "add", f"{own}/24", "dev", link)
            _run("ip", "-n", name, "link", "set", link, "up")
    # The public host has no way to 192.168.77.0/24; the one inside goes through the router.
    _run("ip", "-n", names["inside"], "route", "add", "default", "via", ROUTER_INSIDE)
    within = ("ip", "netns", "exec", names["router"])
    _run(*within, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    _run(*within, "nft", "-f", "-", stdin=NAT)
    return Hosts(
        Host(PUBLIC, ("ip", "netns", "exec", names["public"]), (8443, 8080)),
        Host(LOOPBACK, ("ip", "netns", "exec", names["inside"]), (8090, 8091)),
    )


@contextmanager
def alone() -> Iterator[tuple[str, ...]]:
    """What commands are run with in a network of their own, which has nothing but loopback: all ports are free.

    Raises `subprocess.CalledProcessError` and `FileNotFoundError` where that may not be.
    """
    name = f"km-alone-{os.getpid()}"
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "-n", name, "link", "set", "lo", "up")
        yield ("ip", "netns", "exec", name)
    finally:
        _run("ip", "netns", "del", name)


def _run(*arguments: str, stdin: str = "") -> None:
    subprocess.run(arguments, input=stdin, check=True, capture_output=True, text=True)


def reaches(from_host: Host, address: str, port: int) -> bool:
    """Whether a TCP connection comes about from a host to somewhere."""
    script = f"import socket; socket.create_connection(({address!r}, {port}), 1.0)"
    command: Sequence[str] = (*from_host.prefix, "python3", "-c", script)
    return subprocess.run(command, check=False, capture_output=True).returncode == 0

"""A whole network on loopback, of real processes on real (software) HSMs: for the demo, benchmarks and system tests."""

from appliance.localnet.network import LocalNet
from appliance.localnet.process import ManagedProcess

__all__ = ["LocalNet", "ManagedProcess"]

"""Benchmarks on a loopback network of real processes; each prints one JSON object."""

"""The enclave: where shares live and where a signature is decided. No network, no HTTP, no TLS."""

__version__ = "0.1.0"

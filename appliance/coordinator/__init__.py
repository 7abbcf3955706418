"""The coordinator: relays frames, runs ceremonies, keeps pools, serves the API. It holds no secret.

Signers trust it for nothing but liveness: whatever it does, the worst outcome is that nothing gets signed.
"""

"""What every Keymoot process may know: the policy, the roster, and how to load and hash both.

Pure and deterministic: the standard library and msgspec only (PyYAML in `load`).
"""

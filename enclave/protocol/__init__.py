"""The protocols of SPEC.md: straight-line rounds without I/O."""

"""First run of a host: from answers to configuration, keys in the HSM and a fingerprint to exchange."""

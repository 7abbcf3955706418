"""Everything of Keymoot that holds no secret: signer, coordinator, API, store and command line."""

"""`keymoot gate check`: plays a signer against an operator's handler, and says what it did and what that means."""

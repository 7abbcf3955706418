"""The reference validation gate: what an operator's own handler does, in its smallest form."""

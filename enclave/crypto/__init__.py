"""Mathematics without I/O: the curve, polynomials, pseudorandom sharing, proofs, child keys."""

"""What is wrong with a network or a host, and what to do about it: facts in, findings out."""

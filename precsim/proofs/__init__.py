"""Proofs by machine: the kernels against methods that share no code with them, on every input."""

"""Checkpoints of our own runs: `saving` writes what `checkpoint` reads, `orbax_files` alone touches
Orbax."""

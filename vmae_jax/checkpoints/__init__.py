"""Checkpoints of our own runs: `saving` writes what `restoring` reads, `orbax_files` alone touches
Orbax, and `finished_steps` knows which there are."""

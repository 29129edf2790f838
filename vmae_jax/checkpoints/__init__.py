"""Checkpoints of our own runs: `saving` writes what `checkpoint` reads, `orbax_files` alone touches
Orbax."""

COMMIT_FILE = "commit_success.txt"  # the last file of a step that is written to a bucket

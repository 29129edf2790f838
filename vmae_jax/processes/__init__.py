"""Processes: those that make one run, those that decode for it, and the codes they end with. Knows
neither data sets nor checkpoints."""

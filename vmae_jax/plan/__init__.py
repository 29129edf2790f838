"""What a run needs on a machine that is not there: memory, networks, time."""

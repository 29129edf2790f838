"""What surrounds the steps of a run: processes and their end, the workdir and its files, the
clock. Nothing here knows what is trained."""

"""Data sets as sequences of records: folders, lists, manifests. Knows no training."""

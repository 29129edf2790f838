"""From videos on disk to batches: sources, decoding, prepared sets, samples, the loader."""

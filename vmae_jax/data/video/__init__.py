"""Videos: which frames make a clip, files to frames, frames to frames. Knows no data set."""

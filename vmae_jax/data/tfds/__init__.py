"""Data sets as TFDS stores them, each video as the bytes of its file, without TensorFlow.

TFDS is only imported when a set is built, or a record of one is read.
"""

"""The documented face: the Hugging Face classes of VideoMAE, and the image processor."""

"""Weights on files, of others and ours: hub, torch files, safetensors, layouts, loading, export."""

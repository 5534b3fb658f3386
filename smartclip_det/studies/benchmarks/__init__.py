"""Benchmarks of ``smartclip-det bench``, one module per subject."""

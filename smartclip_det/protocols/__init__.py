"""Protocols: options, scores and stamps, used by the command line and the MMEngine metrics."""

"""Verbs of the group ``smartclip-det data``."""

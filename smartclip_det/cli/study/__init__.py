"""Verbs of the group ``smartclip-det study``."""

"""Verbs of a group."""

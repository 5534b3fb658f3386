"""Compatibility, safe loading and the environment table."""

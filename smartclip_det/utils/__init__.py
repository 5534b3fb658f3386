"""Utilities shared by all layers: files, devices, safe loading, library compatibility."""

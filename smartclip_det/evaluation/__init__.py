"""Metrics as functions on saved predictions, their file formats, protocol stamps, and MMEngine metrics."""

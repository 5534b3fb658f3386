"""Similarity, scoring, prompts and class lists. Depends on torch only."""

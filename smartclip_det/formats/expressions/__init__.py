"""Referring expressions on disk, from every layout and to every layout."""

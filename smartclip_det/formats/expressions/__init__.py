"""Readers and writers of referring expressions, in all layouts."""

"""Readers and writers of every file format; the one place where a file is checked."""

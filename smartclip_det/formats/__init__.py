"""Readers and writers of all file formats; each file is validated here and nowhere else."""

"""Longer work that is made of runs: the toy story, variants by seeds, benchmarks, pages."""

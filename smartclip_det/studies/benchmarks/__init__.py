"""What tools/analysis/benchmark.py measures, one module for each subject."""

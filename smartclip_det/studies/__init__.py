"""Multi-run studies: the toy pipeline, grids of variants and seeds, benchmarks, report pages."""

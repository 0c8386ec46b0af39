"""Benchmarks of speed: `make bench`. Each row compares us with a baseline in one run, in turn, and reports ratios."""

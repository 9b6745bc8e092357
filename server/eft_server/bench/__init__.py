"""Benchmarks of the composite against its single members, measured in one run: `make bench`."""

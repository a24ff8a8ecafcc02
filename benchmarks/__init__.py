"""Benchmarks against other libraries, all measured in one run: `make bench`."""

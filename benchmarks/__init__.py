"""Benchmarks of fusedopt against torch and others; see README.md for method and results."""

"""Whole programs with fusedopt and with torch.optim: `python -m benchmarks.programs`."""

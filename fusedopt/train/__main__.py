"""Runs the training script: `python -m fusedopt.train`."""

from fusedopt.train import main

main()

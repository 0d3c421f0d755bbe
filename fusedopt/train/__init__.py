"""The bundled training script, `python -m fusedopt.train`: an example of the swap, to be read."""

from fusedopt.train.cli import main

__all__ = ["main"]

"""Data sets of images with labels, split for training, validation and the one test at the end."""

from fusedopt.train.data.check import BadImages
from fusedopt.train.data.folder import read_image
from fusedopt.train.data.images import DataError, ImageSet
from fusedopt.train.data.load import load_data
from fusedopt.train.data.loader import make_loader
from fusedopt.train.data.splits import Splits, split_indices

__all__ = [
    "BadImages",
    "DataError",
    "ImageSet",
    "Splits",
    "load_data",
    "make_loader",
    "read_image",
    "split_indices",
]

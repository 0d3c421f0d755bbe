"""The picture of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from fusedopt.train import charts

WITH_COUNTS, WITH_NAMES = 20, 60  # classes; pictures of more have none


def draw_confusion(matrix: np.ndarray, classes: Sequence[str], title: str, file: BinaryIO) -> None:
    """Draws which classes are taken for which, as a PNG.

    Args:
        matrix: (classes, classes): how many images of the row's class are taken for the column's.
        classes: their names.
        title: of the picture.
        file: where to.
    """
    count = len(classes)
    side = min(14.0, 3.5 + 0.35 * count)
    figure = charts._figure(side, side)
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    axis.set_title(title, wrap=True)
    axis.set_xlabel("class that the network says")
    axis.set_ylabel("true class")
    if count <= WITH_NAMES:
        names = [name if len(name) <= 20 else f"{name[:19]}…" for name in classes]
        axis.set_xticks(range(count), names, rotation=90)
        axis.set_yticks(range(count), names)
    if count <= WITH_COUNTS:
        for i, j in zip(*matrix.nonzero(), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, matrix[i, j], ha="center", va="center", color=colour, fontsize=8)
    charts.save(figure, file)

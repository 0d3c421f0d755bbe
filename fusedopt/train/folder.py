"""A run's folder: its options, and its figures as CSV, for TensorBoard and as a chart."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusedopt.train.charts import draw_run
from fusedopt.train.checkpoint import BESIDE, CHECKPOINT, EXPORTED, MODEL, stamp, write_atomically
from fusedopt.train.claim import LOCK, lock, require_own
from fusedopt.train.options import Options, UserError
from fusedopt.train.state import Row

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CONFIG, METRICS, RESULT, CHART, EVENTS = (
    "config.json", "metrics.csv", "result.json", "curves.png", "tensorboard"
)  # fmt: skip
_WRITTEN = (CONFIG, METRICS, RESULT, CHART, CHECKPOINT, MODEL, *BESIDE.values(), EXPORTED)
# What there may be before the first checkpoint, when nothing can be lost yet.
_BEGUN = (LOCK, CONFIG, f"{CONFIG}.part", EVENTS, f"{CHECKPOINT}.part")
# At the end of the names of a run's files for TensorBoard, which may have others beside them.
_OWN = ".fusedopt"


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content at once."""
    write_atomically(path, lambda file: file.write(text.encode()) and None)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces a JSON file at once; what isn't finite becomes null, which JSON has."""
    finite = json.loads(json.dumps(content), parse_constant=lambda name: None)
    write_text(path, json.dumps(finite, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replaces a CSV file at once; its columns are the rows' keys."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())


class RunFolder:
    """The folder of one run, which no other process writes to meanwhile.

    Args:
        path: made where it isn't there.
        options: written to config.json.
        rows: figures of the epochs done before.
        read: the stamp of the checkpoint that the run continues from.

    Raises:
        UserError: it can't be written to, holds something else, or another process writes to it,
            or has done so since the checkpoint was read.
    """

    def __init__(
        self,
        path: Path,
        options: Options,
        rows: Sequence[Row],
        read: tuple[int, int] | None = None,
    ) -> None:
        self.path = path
        self._title = (
            f"{options.model} on {options.data}, {options.impl} {options.optimizer},"
            f" seed {options.seed}"
        )
        if path != options.resume:
            require_free(path)
        self._lock = lock(path, "run")
        if path != options.resume:
            require_free(path)  # again: nobody else can make it one any more
        elif read is not None and stamp(path / CHECKPOINT) != read:
            raise UserError(f"--resume: another process has gone on with {path}: start this again")
        for name in _WRITTEN:
            (path / f"{name}.part").unlink(missing_ok=True)
        config = {"options": options.plain(), "torch": torch.__version__}
        write_json(path / CONFIG, config)
        self._events = self._open_events(rows)

    def _open_events(self, rows: Sequence[Row]) -> SummaryWriter:
        """Returns TensorBoard's writer, all rows so far in it.

        The files of before go: TensorBoard reads files in the order of their names, which of two
        made in the same second may be the wrong one.
        """
        from torch.utils.tensorboard import SummaryWriter

        before = list((self.path / EVENTS).glob(f"events.*{_OWN}"))
        events = SummaryWriter(str(self.path / EVENTS), purge_step=0, filename_suffix=_OWN)
        for row in rows:
            _add_scalars(events, row)
        events.flush()
        for path in before:
            path.unlink()
        return events

    def record(self, rows: Sequence[Row]) -> None:
        """Writes the figures of an epoch that is done, the last of `rows`."""
        write_csv(self.path / METRICS, rows)
        _add_scalars(self._events, rows[-1])
        self._events.flush()

    def close(self, rows: Sequence[Row], best: int | None = None) -> None:
        """Draws the chart, with a mark at the best epoch, and lets go of the folder."""
        if rows:
            image = io.BytesIO()
            draw_run(rows, image, self._title, best)
            write_atomically(self.path / CHART, lambda file: file.write(image.getvalue()) and None)
            write_csv(self.path / METRICS, rows)
        self._events.close()
        self._lock.close()


def require_free(path: Path) -> None:
    """Raises a UserError unless a new run can be written to a folder."""
    if (path / CHECKPOINT).exists():
        raise UserError(f"--out: {path} holds a run; --resume {path} continues it")
    require_own(path, "run", _BEGUN)


def _add_scalars(events: SummaryWriter, row: Row) -> None:
    for name in ("loss", "accuracy"):
        for part in ("train", "validation"):
            events.add_scalar(f"{name}/{part}", row[f"{part}_{name}"], int(row["epoch"]))
    for name in ("lr", "images_per_second", "optimizer_share"):
        events.add_scalar(name, row[name], int(row["epoch"]))

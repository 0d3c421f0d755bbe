"""When a run writes its checkpoint, and when it stops before its end."""

from __future__ import annotations

import math
from typing import NoReturn

from fusedopt.train import checkpoint, world
from fusedopt.train.data import Splits
from fusedopt.train.interrupts import Interrupted, Interrupts
from fusedopt.train.loop import Figures
from fusedopt.train.options import Diverged, Options
from fusedopt.train.state import TrainingState

LOOK_EVERY = 25  # steps; on a GPU, where the host waits to see the loss


class Guard:
    """Saves a run after steps and epochs, and stops it for Ctrl-C and where it has diverged.

    All processes do the same after the same step. A checkpoint is never replaced by one whose
    numbers aren't finite.

    Args:
        options: of the run; without a folder nothing is saved.
        state: of the training.
        splits: the data, of which the checkpoint tells.
        interrupts: tell of Ctrl-C.
    """

    def __init__(
        self, options: Options, state: TrainingState, splits: Splits, interrupts: Interrupts
    ) -> None:
        self._options, self._state, self._splits = options, state, splits
        self._interrupts = interrupts
        self._path = options.out or options.resume
        # The step of the checkpoint in the folder.
        self._saved = state.step if self._path and self._path == options.resume else None
        if self._saved is None:
            self.save()  # so that there is always one to resume from

    def save(self) -> None:
        """Writes the checkpoint; all processes must call it.

        Raises:
            UserError: it can't be written.
            Diverged: the weights aren't finite.
        """
        if self._path is None:
            return
        state = self._state
        if not checkpoint.save(self._path, state, self._splits, self._options):
            if state.step == 0:
                raise Diverged("the weights that training begins with aren't finite")
            self._stop(f"the weights aren't finite after step {state.step}")
        self._saved = state.step

    def after_step(self) -> None:
        """Does what is due after an optimizer step.

        Raises:
            UserError: the checkpoint can't be written.
            Diverged: the loss or the weights aren't finite.
            Interrupted: Ctrl-C; the checkpoint is written.
        """
        options, state = self._options, self._state
        due = bool(options.checkpoint_every) and state.step % options.checkpoint_every == 0
        look = due or self._looks_always() or state.step % LOOK_EVERY == 0
        pending, nonfinite = world.greatest(
            int(self._interrupts.pending), int(state.nonfinite) if look else 0
        )
        if pending and not look:
            (nonfinite,) = world.greatest(int(state.nonfinite))
        if nonfinite:
            self._stop_at(nonfinite)
        if pending or due:
            self.save()
        if pending:
            raise Interrupted(self._how_to_go_on())

    def _looks_always(self) -> bool:
        return self._options.device == "cpu"

    def check_training(self, figures: Figures) -> None:
        """Raises Diverged if the loss of the epoch's training isn't finite."""
        if not math.isfinite(figures.loss):
            (nonfinite,) = world.greatest(int(self._state.nonfinite))
            self._stop_at(nonfinite)

    def check_validation(self, figures: Figures) -> None:
        """Raises Diverged if the loss of the epoch's validation isn't finite."""
        if not math.isfinite(figures.loss):
            epoch, step = self._state.epoch + 1, self._state.step
            self._stop(f"the validation loss is {figures.loss} after epoch {epoch}, step {step}")

    def _stop_at(self, step: int) -> NoReturn:
        self._stop(f"the loss isn't finite at step {step}, in epoch {self._state.epoch + 1}")

    def _stop(self, what: str) -> NoReturn:
        path = self._path
        kept = f"the checkpoint of step {self._saved} is kept in {path}"
        if path is None:
            kept = "nothing is kept without --out FOLDER"
        raise Diverged(
            f"{what}: training has diverged; {kept}. A smaller --lr than {self._options.lr:g}, or"
            " --clip-norm, may help",
            self._state.step,
        )

    def _how_to_go_on(self) -> str:
        done = f"interrupted after {self._state.done}"
        if self._path is None:
            return f"{done}; nothing is kept without --out FOLDER"
        return f"{done}; to go on: python -m fusedopt.train --resume {self._path}"

"""The data of a run: loaded afresh, or found again as its checkpoint describes them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fusedopt.train import world
from fusedopt.train.data import BadImages, DataError, Splits, load_data
from fusedopt.train.data.kept import find_again
from fusedopt.train.options import FOLDER, Failed, Options, UserError, folder_path


def load_splits(options: Options) -> Splits:
    """Sets the number of threads, and returns the data; the first process says what they are.

    Raises:
        UserError: they can't be had or read.
        Failed: some of their images can't be read.
    """
    folder = options.data.startswith(FOLDER)
    if options.download and not folder and world.size() > 1:
        world.in_first(lambda: _load(options, lambda text: None))
    return _load(options, world.say)


def _load(options: Options, say: Callable[[str], None]) -> Splits:
    with _data_errors(options):
        return load_data(
            options.data,
            root=options.data_dir,
            seed=options.seed,
            download=bool(options.download),
            image_size=options.image_size,
            classes=options.classes,
            per_class=options.per_class,
            skip_bad_images=bool(options.skip_bad_images),
            say=say,
        )


def find_splits(options: Options, content: dict[str, Any]) -> Splits:
    """Does as `load_splits`, but gives the split of a checkpoint, where it has files' names.

    Raises:
        UserError: the data can't be had or read, or the checkpoint is damaged.
        Failed: images that have changed since can't be read.
    """
    if content.get("split") is None:
        return load_splits(options)
    try:
        with _data_errors(options):
            return find_again(
                content,
                folder_path(options.data),
                skip_bad_images=bool(options.skip_bad_images),
                say=world.say,
            )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        text = f"--resume: {options.resume} is damaged: {error}"
        raise UserError(text.splitlines()[0]) from error


@contextlib.contextmanager
def _data_errors(options: Options) -> Iterator[None]:
    """Sets the number of threads; what is wrong with the data is said to be of --data."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        yield
    except BadImages as error:
        raise Failed(f"--data {options.data}: {error}") from error
    except DataError as error:
        raise user_error(error, options) from error
    except OSError as error:
        name = error.filename or "a file"
        raise UserError(f"--data {options.data}: cannot read {name}: {error.strerror}") from error


def user_error(error: DataError, options: Options) -> UserError:
    """Returns an error that says of which data it is."""
    return UserError(f"--data {options.data}: {error}")

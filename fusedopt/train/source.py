"""The data of a run: loaded afresh, or found again as its checkpoint describes them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from fusedopt.train import checkpoint, world
from fusedopt.train.data import BadImages, DataError, Splits, load_data
from fusedopt.train.data.digits import COUNT
from fusedopt.train.data.kept import find_again
from fusedopt.train.data.mnist import MNIST
from fusedopt.train.models import ModelError, pretrained_statistics
from fusedopt.train.options import FOLDER, Failed, Options, UserError, folder_path


def load_splits(options: Options) -> Splits:
    """Sets the number of threads, and returns the data; the first process says what they are.

    Raises:
        UserError: they can't be had or read, or the weights to begin with can't.
        Failed: some of their images can't be read.
    """
    return _normalised(_load_whole(options), options)


def _load_whole(options: Options) -> Splits:
    if options.image_size is not None:
        _require_memory(options, options.image_size)
    folder = options.data.startswith(FOLDER)
    if options.download and not folder and world.size() > 1:
        world.in_first(lambda: _load(options, lambda text: None))
    return _load(options, world.say)


def _require_memory(options: Options, size: int) -> None:
    """Raises a UserError if a batch alone is larger than the machine's memory."""
    channels = 1 if options.data in ("digits", *MNIST) else 3
    need = options.batch_size * channels * size**2 * 4
    if options.data == "digits":  # all are scaled at once
        need += COUNT * size**2 * 5
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > have:
        raise UserError(
            f"--image-size: {size}x{size} pixels need {need / 1e9:,.0f} GB of memory for a batch"
            f" alone, and the machine has {have / 1e9:,.0f} GB"
        )


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


def _normalised(splits: Splits, options: Options) -> Splits:
    """Gives the data the mean and deviation with which the weights to begin with were trained."""
    if options.pretrained is not None:
        try:
            mean, std = pretrained_statistics(options.model, options.pretrained, splits.in_channels)
        except ModelError as error:
            raise UserError(f"--model {options.model}: {error}") from error
        ownership = "torchvision's" if options.pretrained == "default" else "ImageNet's"
        world.say(f"images are normalised with {ownership} mean and deviation, as for the weights")
    elif options.init is not None:
        content = checkpoint.read(options.init, "--init")
        mean, std = content["mean"], content["std"]
        if len(mean) != splits.in_channels:  # which the weights don't fit
            return splits
        world.say(f"images are normalised with the mean and deviation of {options.init}")
    else:
        return splits
    return replace(splits, mean=tuple(mean), std=tuple(std))


def find_splits(options: Options, content: dict[str, Any]) -> Splits:
    """Does as `load_splits`, but gives the split of a checkpoint, where it has files' names.

    Raises:
        UserError: the data can't be had or read, or the checkpoint is damaged.
        Failed: images that have changed since can't be read.
    """
    try:
        if content.get("split") is None:
            mean, std = tuple(content["mean"]), tuple(content["std"])
            return replace(_load_whole(options), mean=mean, std=std)
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
    except BrokenPipeError:  # of what was printed meanwhile
        raise
    except OSError as error:
        name = error.filename or "a file"
        raise UserError(f"--data {options.data}: cannot read {name}: {error.strerror}") from error


def user_error(error: DataError, options: Options) -> UserError:
    """Returns an error that says of which data it is."""
    return UserError(f"--data {options.data}: {error}")

"""What argparse makes of the texts on the command line; bad ones get a sentence."""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

from fusedopt.train.optimizers import DEFAULTS


def number(
    kind: type, low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[str], float]:
    """Returns a parser of numbers from `low` (or above it) to `high`, for argparse."""

    def parse(text: str) -> float:
        noun = "a whole number" if kind is int else "a number"
        limits = f"{'above' if above else 'at least'} {low}"
        limits = limits if high == math.inf else f"from {low} to {high}"
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None
        if not (low <= value <= high) or value == math.inf or (above and value == low):
            raise argparse.ArgumentTypeError(f"must be {noun}, {limits}, not {text}")
        return value

    return parse


def classes(text: str) -> tuple[int, ...]:
    """Parses "0,3,5-9"."""
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            ends = int(first), int(last if dash else first)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0,3,5-9") from None
        if ends[0] > ends[1]:
            raise argparse.ArgumentTypeError(f"{part} goes down; {ends[1]}-{ends[0]} goes up")
        chosen += range(ends[0], ends[1] + 1)
    return tuple(chosen)


def too_many_threads(count: float) -> str | None:
    """Says why so many can't be meant, or returns None."""
    cpus = os.cpu_count() or 1
    return f"are too many for {cpus} CPUs" if count > max(4 * cpus, 64) else None


def threads(text: str) -> float:
    """Parses a number of threads that the system can be asked for."""
    return _not_too_many("threads", number(int, 1)(text))


def workers(text: str) -> float:
    """Parses a number of processes that load, which the system can be asked for."""
    return _not_too_many("workers", number(int, 0)(text))


def _not_too_many(what: str, count: float) -> float:
    if reason := too_many_threads(count):
        raise argparse.ArgumentTypeError(f"{count} {what} {reason}")
    return count


def key_value(text: str) -> tuple[str, Any]:
    """Parses "key=value": a Python literal that JSON has too, or else a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
    try:
        json.dumps(literal)  # as config.json will have it
    except TypeError:
        raise argparse.ArgumentTypeError(
            f"{key} must be a number, a string or a list of them, not {value}"
        ) from None
    return key, literal


def some_of(names: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Returns a parser of "all" or of names joined by commas, for argparse."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(names) if text == "all" else tuple(dict.fromkeys(text.split(",")))
        for name in set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"{name!r} is not among all, {', '.join(names)}")
        return chosen

    return parse


def augmentation(text: str) -> str:
    """Parses "none", or names of changes joined by commas."""
    from fusedopt.train.augment import SPECS  # here, because it needs fusedopt[train]

    names = text.split(",")
    wrong = [name for name in names if name not in SPECS]
    if wrong or ("none" in names and len(names) > 1):
        some = ", ".join(name for name in SPECS if name != "none")
        raise argparse.ArgumentTypeError(f"{text!r} is not 'none' or some of {some}")
    return text


def lr_of_some(text: str) -> dict[str | None, float]:
    """Parses "0.1", which is of all and has the key None, or "sgd=0.1,adam=0.001"."""
    parse, rates = number(float, 0), {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        if name not in DEFAULTS and (equals or "," in text):
            raise argparse.ArgumentTypeError(f"{name!r} is not among {', '.join(DEFAULTS)}")
        rates[name or None] = parse(value)
    return rates


def numbers(text: str) -> tuple[float, ...]:
    """Parses "0.9,0.999", or more numbers; options.py knows how many the optimizer takes."""
    if "," not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0.9,0.999")
    return tuple(map(number(float, 0), text.split(",")))

"""Calibration, validation and test examples that never overlap; tokenising them is left to batches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skillprune.data.examples import Example
from skillprune.data.rows import has_split, read_examples, read_part
from skillprune.errors import DataError
from skillprune.recipe import HubSplit
from skillprune.tasks import Task

_LOGGER = logging.getLogger(__name__)

_VALIDATION_SHARE = 0.2
_VALIDATION_MOST = 2000
_SHOWN = 60
# One stream of random numbers per decision, so that a given validation file does not change the calibration draw.
_CALIBRATION_STREAM, _VALIDATION_STREAM = 0, 1


@dataclass(frozen=True)
class Splits:
    """Examples for scores, for choices, and for the one reading at the end; no text is in two of them.

    Attributes:
        calibration: drawn from ``train``.
        validation: for choices.
        test: read once.
        train: all that calibration is drawn from, for training after pruning; it shares texts with calibration alone.
    """

    calibration: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    train: tuple[Example, ...]

    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal over calibration, validation and test; of one split it is ``fingerprint(split)``."""
        parts = (fingerprint(split) for split in (self.calibration, self.validation, self.test))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 in hexadecimal over texts, labels and targets, in order; equal in every process."""
    digest = hashlib.sha256()
    for example in examples:
        values = [example.texts, example.label, *([example.target] if example.target else [])]
        digest.update(json.dumps(values).encode() + b"\n")
    return digest.hexdigest()


def load_splits(task: Task, *, examples: int, seed: int) -> Splits:
    """Reads a task's data and separates what scores, choices and the final judgement may see.

    Calibration is a plain sample of the training split without replacement, in random order. Validation is the given
    split or, without one, a fifth of the training split (at most 2000 examples), set aside first. A text that is in the
    test split is dropped from the other two, one that is in validation from calibration; what was dropped is logged.
    Texts that differ in white space only are the same: most tokenizers do not see it.

    Args:
        task: Where the examples are.
        examples: Most calibration examples to draw.
        seed: Seed of both draws.

    Raises:
        DataError: Rows are wrong or, of a task that classifies, a split has one class only or a class is too rare in
            calibration.
        ResourceFailure: The disk or the network failed.
    """
    train, test = read_examples(task, "train"), read_examples(task, "test")
    given = read_examples(task, "validation") if has_split(task, "validation") else None
    train = _without(train, test, "train", "test")
    if given is None:
        validation, train = _carve(train, seed)
    else:
        validation = _without(given, test, "validation", "test")
    train = _without(train, validation, "train", "validation")
    calibration = _sample(train, examples, seed)
    if task.classifies:
        for name, split in (("train", train), ("validation", validation), ("test", test)):
            _check_classes(name, split, task)
        _check_occurrences(calibration, task)
    return Splits(calibration, validation, test, train)


def recovery_examples(task: Task, splits: Splits, part: Path | HubSplit | None) -> tuple[Example, ...]:
    """Examples to train on after pruning: those that are named, or the whole train split.

    A text that is in validation too is dropped, and what was dropped is logged: validation chooses the best epoch.

    Raises:
        DataError: Rows are wrong, or a text is in the test split too: a number measured there would mean nothing.
        ResourceFailure: The disk or the network failed.
    """
    if part is None:
        return splits.train
    examples, tested = read_part(task, part), _said_by(splits.test)
    shared = [example.texts for example in examples if _said(example) in tested]
    if shared:
        raise DataError(
            f"recovery.data: {len(shared)} of {len(examples)} examples have a text that is also in test, such as "
            f"{shared[0][0][:_SHOWN]!r}; remove them, the test split must stay unseen"
        )
    return _without(examples, splits.validation, "recovery", "validation")


def _without(
    examples: Sequence[Example], others: Sequence[Example], name: str, others_name: str
) -> tuple[Example, ...]:
    """``examples`` whose texts are not among those of ``others``."""
    known = _said_by(others)
    left = tuple(example for example in examples if _said(example) not in known)
    if len(left) < len(examples):
        _LOGGER.warning(
            "dropped %d of %d %s examples whose text is also in %s",
            len(examples) - len(left),
            len(examples),
            name,
            others_name,
        )
    if not left:
        raise DataError(f"{name}: every text is also in {others_name}; the splits need examples of their own")
    return left


def _said_by(examples: Iterable[Example]) -> set[tuple[str, ...]]:
    return {_said(example) for example in examples}


def _said(example: Example) -> tuple[str, ...]:
    """The texts, white space aside."""
    return tuple(" ".join(text.split()) for text in example.texts)


def _draw(total: int, count: int, seed: int, stream: int) -> set[int]:
    """``count`` of ``total`` positions, drawn without replacement."""
    return set(np.random.default_rng([seed, stream]).permutation(total)[:count].tolist())


def _carve(train: Sequence[Example], seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """A validation split out of the training split, and what is left of it."""
    count = min(int(len(train) * _VALIDATION_SHARE), _VALIDATION_MOST)
    if count == 0:
        raise DataError(f"train: {len(train)} examples are too few to set a validation split aside; name a file for it")
    drawn = _draw(len(train), count, seed, _VALIDATION_STREAM)
    validation = tuple(example for position, example in enumerate(train) if position in drawn)
    return validation, tuple(example for position, example in enumerate(train) if position not in drawn)


def _sample(train: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """A random sample in random order: its first examples are a random sample too, however the file is sorted."""
    order = np.random.default_rng([seed, _CALIBRATION_STREAM]).permutation(len(train))[:count]
    return tuple(train[position] for position in order.tolist())


def _check_classes(name: str, examples: Sequence[Example], task: Task) -> None:
    classes = {example.label for example in examples}
    if len(classes) < 2:
        only = task.labels[classes.pop()]
        raise DataError(
            f"{name}: all {len(examples)} examples have the label {only!r}; should have two classes at least"
        )


def _check_occurrences(calibration: Sequence[Example], task: Task) -> None:
    counts = Counter(example.label for example in calibration)
    rare = [f"{label!r} ({counts[number]})" for number, label in enumerate(task.labels) if counts[number] < 2]
    if rare:
        more = f" and {len(rare) - 10} more" if len(rare) > 10 else ""
        raise DataError(
            f"calibration: too few examples of {', '.join(rare[:10])}{more} among {len(calibration)}; every label "
            f"should occur twice at least: raise scoring.examples or add examples to train"
        )

"""Scores predictions on a split and compares two models example by example; where logits come from is the caller's.

A predictor is any callable from a batch to logits, so a PyTorch model and an ONNX file are scored the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from transformers import PreTrainedModel

from skillprune.activations import evaluating
from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.progress import Progress, silent, track

Predictor = Callable[[Batch], NDArray[np.float32]]
"""Maps a batch to logits ``(batch, classes)``."""

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one model answered on one split, in the order of the split.

    Attributes:
        labels: right class ids, ``(examples,)``.
        predicted: answered class ids, ``(examples,)``.
    """

    labels: Integers
    predicted: Integers


@dataclass(frozen=True)
class Comparison:
    """Two models on the same examples.

    Attributes:
        difference: metric of the second minus metric of the first.
        low: lower end of its paired 95 % bootstrap interval.
        high: upper end.
        p_value: exact McNemar test on right and wrong answers.
        agreement: share of examples both models answer alike.
    """

    difference: float
    low: float
    high: float
    p_value: float
    agreement: float


def accuracy(labels: Integers, predicted: Integers) -> float:
    """Share of right answers."""
    return float(np.mean(labels == predicted))


def macro_f1(labels: Integers, predicted: Integers) -> float:
    """F1 averaged over the classes that occur, with equal weight; counted directly, as the bootstrap calls it often."""
    classes = int(max(labels.max(), predicted.max())) + 1
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    sizes = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float(np.mean(2 * hits[sizes > 0] / sizes[sizes > 0]))


METRICS: dict[str, Callable[[Integers, Integers], float]] = {"accuracy": accuracy, "macro_f1": macro_f1}
"""Metrics by the name a recipe uses."""


def torch_predictor(model: PreTrainedModel) -> Predictor:
    """Predicts with a PyTorch classifier on the device it is on, in evaluation mode."""

    def predict(batch: Batch) -> NDArray[np.float32]:
        with evaluating(model), torch.inference_mode():
            logits = model(**batch.to(model.device).inputs).logits
        return np.asarray(logits.float().cpu().numpy(), dtype=np.float32)

    return predict


def predict_split(
    predict: Predictor, batches: Sequence[Batch], *, what: str = "evaluation", progress: Progress = silent
) -> Predictions:
    """Answers every batch and puts the answers back in the order of the split.

    Raises:
        DataError: a logit is not finite.
    """
    total = sum(len(batch.labels) for batch in batches)
    labels, predicted = np.zeros(total, np.int64), np.zeros(total, np.int64)
    for number, batch in enumerate(track(batches, what, progress)):
        logits = predict(batch)
        if not np.isfinite(logits).all():
            raise DataError(f"{what}: the model's logits are not finite in batch {number}")
        labels[batch.indices.numpy()] = batch.labels.numpy()
        predicted[batch.indices.numpy()] = logits.argmax(axis=1)
    return Predictions(labels, predicted)


def compare(first: Predictions, second: Predictions, *, metric: str, seed: int, draws: int = 10_000) -> Comparison:
    """Compares two models on the same examples, with a paired bootstrap over examples and McNemar's exact test."""
    measure = METRICS[metric]
    low, high = np.quantile(_differences(first, second, metric, seed, draws), [0.025, 0.975])
    return Comparison(
        difference=measure(second.labels, second.predicted) - measure(first.labels, first.predicted),
        low=float(low),
        high=float(high),
        p_value=mcnemar(first, second),
        agreement=float(np.mean(first.predicted == second.predicted)),
    )


def standard_error(first: Predictions, second: Predictions, *, metric: str, seed: int, draws: int = 1000) -> float:
    """Standard error of the difference of two models' metrics on the same examples, by a paired bootstrap."""
    return float(np.std(_differences(first, second, metric, seed, draws)))


def _differences(first: Predictions, second: Predictions, metric: str, seed: int, draws: int) -> NDArray[np.float64]:
    """Metric of the second minus metric of the first in samples drawn with replacement."""
    measure = METRICS[metric]
    rng = np.random.default_rng(seed)
    samples = (rng.integers(0, len(first.labels), size=len(first.labels)) for _ in range(draws))
    return np.array(
        [
            measure(first.labels[drawn], second.predicted[drawn]) - measure(first.labels[drawn], first.predicted[drawn])
            for drawn in samples
        ]
    )


def mcnemar(first: Predictions, second: Predictions) -> float:
    """Exact two-sided McNemar test: are the disagreements about right and wrong balanced?"""
    first_right, second_right = first.predicted == first.labels, second.predicted == second.labels
    lost, won = int(np.sum(first_right & ~second_right)), int(np.sum(~first_right & second_right))
    return 1.0 if lost + won == 0 else float(binomtest(lost, lost + won).pvalue)

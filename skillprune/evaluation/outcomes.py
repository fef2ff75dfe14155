"""What a model came to on every example of a split, and what a metric makes of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, wilcoxon

Integers = NDArray[np.int64]


class Outcome(Protocol):
    """How one model did on one split, example by example, in the order of the split."""

    def __len__(self) -> int:
        """Examples."""
        ...

    def value(self, metric: str) -> float:
        """The metric over all examples."""
        ...

    def of(self, rows: Integers) -> Self:
        """The outcome on some examples, which may repeat."""
        ...

    def p_value(self, other: Self) -> float:
        """Two-sided paired test of whether two models do equally well."""
        ...

    def agreement(self, other: Self) -> float | None:
        """Share of examples that both models answer alike; none where answers are no choices."""
        ...


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one model answered.

    Attributes:
        labels: right class ids, ``(examples,)``; of texts that were to be written, numbers that stand for them.
        predicted: answered class ids, ``(examples,)``.
    """

    labels: Integers
    predicted: Integers

    def __len__(self) -> int:
        return len(self.labels)

    def value(self, metric: str) -> float:
        """One of the metrics that are shares."""
        return _FORMULAS[metric](self.labels, self.predicted)

    def of(self, rows: Integers) -> Predictions:
        """The answers to some examples."""
        return Predictions(self.labels[rows], self.predicted[rows])

    def p_value(self, other: Predictions) -> float:
        """Exact two-sided McNemar test: are the disagreements about right and wrong balanced?"""
        return mcnemar(self, other)

    def agreement(self, other: Predictions) -> float:
        """Share of the same answers."""
        return float(np.mean(self.predicted == other.predicted))


@dataclass(frozen=True, eq=False)
class Losses:
    """What one model lost on every text.

    Attributes:
        summed: negative log-likelihood of an example's target tokens, in nats, ``(examples,)``.
        tokens: how many those are, ``(examples,)``.
    """

    summed: NDArray[np.float64]
    tokens: Integers

    def __len__(self) -> int:
        return len(self.tokens)

    def value(self, metric: str) -> float:
        """Mean loss per target token, or the perplexity, which is its exponential."""
        loss = float(self.summed.sum() / self.tokens.sum())
        return float(np.exp(loss)) if metric == "perplexity" else loss

    def of(self, rows: Integers) -> Losses:
        """The losses of some examples."""
        return Losses(self.summed[rows], self.tokens[rows])

    def p_value(self, other: Losses) -> float:
        """Two-sided Wilcoxon signed-rank test of the examples' losses per token."""
        differences = other.summed / other.tokens - self.summed / self.tokens
        return float(wilcoxon(differences).pvalue) if differences.any() else 1.0

    def agreement(self, other: Losses) -> None:
        """Losses are no choices."""


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
"""Metrics of chosen classes by the name a recipe uses."""

# A text that was written counts as one of many classes.
_FORMULAS: dict[str, Callable[[Integers, Integers], float]] = {**METRICS, "exact_match": accuracy}


def mcnemar(first: Predictions, second: Predictions) -> float:
    """Exact two-sided McNemar test: are the disagreements about right and wrong balanced?"""
    first_right, second_right = first.predicted == first.labels, second.predicted == second.labels
    lost, won = int(np.sum(first_right & ~second_right)), int(np.sum(~first_right & second_right))
    return 1.0 if lost + won == 0 else float(binomtest(lost, lost + won).pvalue)

"""Two models on the same examples: how much worse one is, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from skillprune.evaluation.outcomes import Outcome
from skillprune.recipe import SHARES

AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same examples.

    Attributes:
        difference: metric of the second minus metric of the first.
        low: lower end of its paired 95 % bootstrap interval.
        high: upper end.
        p_value: exact McNemar test on right and wrong answers; of losses, Wilcoxon's signed-rank test.
        agreement: share of examples both models answer alike; none where answers are no choices.
        drop: how much worse the second is, as `drop` has it.
    """

    difference: float
    low: float
    high: float
    p_value: float
    agreement: float | None
    drop: float


def drop(metric: str, dense: float, other: float) -> float:
    """How much worse a value of a metric is than the dense model's, in the unit of ``max_drop``; negative is better.

    Shares (accuracy, macro F1, exact match) fall by so much, the loss rises by so many nats per token, and the
    perplexity by such a share of the dense model's.
    """
    if metric in SHARES:
        return dense - other
    return other / dense - 1 if metric == "perplexity" else other - dense


def is_within(drop: float, allowed: float) -> bool:
    """Whether a `drop` is no larger than ``max_drop`` allows."""
    # Differences of shares of the same test set are multiples of 1/n; rounding noise must not fail an exact demand.
    return drop <= allowed + 1e-12


def compare(first: AnyOutcome, second: AnyOutcome, *, metric: str, seed: int, draws: int = 10_000) -> Comparison:
    """Compares two models on the same examples, with a paired bootstrap over examples and an exact or rank test."""
    values = first.value(metric), second.value(metric)
    low, high = np.quantile(_resampled(first, second, metric, _difference, seed, draws), [0.025, 0.975])
    return Comparison(
        difference=_difference(*values),
        low=float(low),
        high=float(high),
        p_value=first.p_value(second),
        agreement=first.agreement(second),
        drop=drop(metric, *values),
    )


def standard_error(first: AnyOutcome, second: AnyOutcome, *, metric: str, seed: int, draws: int = 1000) -> float:
    """Standard error of the `drop` from one model to another on the same examples, by a paired bootstrap."""

    def dropped(dense: float, other: float) -> float:
        return drop(metric, dense, other)

    return float(np.std(_resampled(first, second, metric, dropped, seed, draws)))


def _difference(first: float, second: float) -> float:
    return second - first


def _resampled(
    first: AnyOutcome,
    second: AnyOutcome,
    metric: str,
    change: Callable[[float, float], float],
    seed: int,
    draws: int,
) -> NDArray[np.float64]:
    """The change of the metric in samples drawn with replacement."""
    rng = np.random.default_rng(seed)
    samples = (rng.integers(0, len(first), size=len(first)) for _ in range(draws))
    return np.array([change(first.of(drawn).value(metric), second.of(drawn).value(metric)) for drawn in samples])

"""How the values of each metric read: shares in percent, losses and perplexities as they are."""

from __future__ import annotations

from skillprune.recipe import SHARES
from skillprune.report import wording


def value(metric: str, found: float) -> str:
    """89.1 %, or 2.71."""
    return wording.percent(found) if metric in SHARES else wording.significant(found)


def change(metric: str, before: float, after: float) -> str:
    """-0.6 points, or +12.0 % of a perplexity, or +0.113 of a loss."""
    return wording.change(before, after) if metric == "perplexity" else difference(metric, after - before)


def difference(metric: str, found: float) -> str:
    """-0.6 points, or +0.325."""
    return wording.points(found) if metric in SHARES else _signed(found)


def interval(metric: str, low: float, high: float) -> str:
    """-1.5 to +0.3 points, or +0.287 to +0.361."""
    return wording.points_interval(low, high) if metric in SHARES else f"{_signed(low)} to {_signed(high)}"


def drop(metric: str, amount: float) -> str:
    """2.0 points of a share, 2.0 % of a perplexity, 0.0200 nats of a loss: the unit of ``max_drop``."""
    if metric in SHARES:
        return wording.points(amount, sign=False)
    return wording.percent(amount) if metric == "perplexity" else f"{wording.significant(amount)} nats"


def test(metric: str) -> str:
    """Which test the p-value is of."""
    return "McNemar's exact test" if metric in SHARES else "Wilcoxon's signed-rank test"


def _signed(found: float) -> str:
    return f"{'-' if found < 0 else '+' if found else ''}{wording.significant(abs(found))}"

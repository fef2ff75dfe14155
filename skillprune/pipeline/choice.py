"""Which file is the best: the fastest of those that may be shipped; pure arithmetic on what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from skillprune.benchmark import Latency, Ratio
from skillprune.pipeline.results import Exports

PRUNED = "pruned"
"""Name of the pruned model among the subjects of a measurement."""


@dataclass(frozen=True)
class Choice:
    """The variant that is named best.

    Attributes:
        variant: its name.
        why: one sentence.
        slower: variants that are slower than fp32 beyond doubt, the upper end of their interval too, with their mean
            speed-up and that of fp32.
    """

    variant: str
    why: str
    slower: dict[str, tuple[float, float]]


def mean_speedups(
    latency: Latency, subject: str = PRUNED, end: Callable[[Ratio], float] = attrgetter("value")
) -> dict[str, float]:
    """Geometric mean over shapes of the speed-up of every variant of a subject, or of an end of its interval."""
    found: dict[str, list[float]] = {}
    for row in latency.measurements:
        if row.subject == subject:
            found.setdefault(row.variant, []).append(end(row.speedup))
    return {variant: float(np.exp(np.mean(np.log(values)))) for variant, values in found.items()}


def choose(exports: Exports, latency: Latency, *, least: float | None = None) -> Choice:
    """The fastest variant that holds the accuracy floor and is faster than fp32; fp32 where there is none.

    Args:
        exports: the files.
        latency: their times.
        least: the speed-up that is demanded at every shape. Where some hold it, the best one is among them.
    """
    speeds, most = mean_speedups(latency), mean_speedups(latency, end=attrgetter("high"))
    fp32, *others = (each.name for each in exports.variants)
    refused = {each.name for each in exports.variants if each.refused is not None}
    slower = {name: (speeds[name], speeds[fp32]) for name in others if most[name] <= speeds[fp32]}
    fit = [fp32, *(name for name in others if name not in refused and speeds[name] > speeds[fp32])]
    lowest = {
        name: min(row.speedup.low for row in latency.measurements if (row.subject, row.variant) == (PRUNED, name))
        for name in fit
    }
    fit = [name for name in fit if lowest[name] >= (least or 0.0)] or fit
    best = max(fit, key=speeds.__getitem__)
    return Choice(best, _why(best, fit, [fp32, *others], speeds), slower)


def _why(best: str, fit: Sequence[str], asked: Sequence[str], speeds: dict[str, float]) -> str:
    if len(asked) == 1:
        return "the only variant asked for"
    others = ", ".join(f"{name} {speeds[name]:.2f}x" for name in asked if name != best)
    found = "the only one fit to ship" if len(fit) == 1 else "the fastest of those fit to ship"
    return f"{found}: {speeds[best]:.2f}x dense fp32 in the mean over shapes, against {others}"

"""The budget `speedup`, read off times that were measured in the runtime that will serve the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from skillprune.planning.budget import Choice, first
from skillprune.planning.layers import Widths
from skillprune.planning.path import Path
from skillprune.planning.plan import Costs, Timing


@dataclass(frozen=True)
class LatencyTable:
    """How long the model takes when all layers of one stack have a width, as a share of the dense model's time.

    Attributes:
        shapes: batch and sequence of every measurement.
        dense_ms: median time of the dense model at every shape.
        widths: per stack, the widths that were measured, as shares of each layer's own, rising from 0 to 1.
        shares: per stack, ``shares[shape][place]`` of the dense time, ending with 1.
    """

    shapes: tuple[tuple[int, int], ...]
    dense_ms: tuple[float, ...]
    widths: Mapping[str, tuple[float, ...]]
    shares: Mapping[str, tuple[tuple[float, ...], ...]]

    def speedup(self, before: Widths, after: Widths) -> float:
        """Predicted speed-up at the shape where it is smallest; a layer saves its part of what its stack would."""
        return min(1 / self._left(shape, before, after) for shape in range(len(self.shapes)))

    def timings(self, before: Widths, after: Widths) -> tuple[Timing, ...]:
        """Predicted times at every shape."""
        return tuple(
            Timing(*shape, dense, dense * self._left(number, before, after))
            for number, (shape, dense) in enumerate(zip(self.shapes, self.dense_ms, strict=True))
        )

    def _left(self, shape: int, before: Widths, after: Widths) -> float:
        left = 1.0
        for stack, widths in before.items():
            shares = np.array(after[stack]) / np.maximum(widths, 1)  # an empty layer has nothing to save
            times = np.interp(shares, self.widths[stack], self.shares[stack][shape])
            weights = np.array(widths) / sum(widths)
            left -= float(weights @ (1 - times))
        return left


@dataclass(frozen=True)
class Speedup:
    """So many times as fast as the dense model, at every shape that was measured."""

    factor: float
    table: LatencyTable

    def stop(self, path: Path, costs: Costs) -> Choice:
        """The largest model that is fast enough."""
        found = first(path, lambda point: self.table.speedup(path[0], path[point]) >= self.factor)
        point = len(path) - 1 if found is None else found
        return Choice(point, self._shortfall(path) if found is None else None, self.table.timings(path[0], path[point]))

    def _shortfall(self, path: Path) -> str:
        best = self.table.speedup(path[0], path[len(path) - 1])
        return f"a speed-up of {self.factor:g} was asked for; without any neuron that may go, {best:.2f} is expected"

    def asked(self) -> Mapping[str, float]:
        """As a recipe says it."""
        return {"speedup": self.factor}

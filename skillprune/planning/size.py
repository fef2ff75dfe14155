"""Budgets that count: a share of neurons, a number of parameters, or one of multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skillprune.planning.budget import Choice, first
from skillprune.planning.path import Path
from skillprune.planning.plan import Costs


@dataclass(frozen=True)
class KeepRatio:
    """The share of neurons that stay in the layers that may be narrowed; never all of them go."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"a share of neurons is above 0 and at most 1, not {self.share}")

    def stop(self, path: Path, costs: Costs) -> Choice:
        """The point whose neurons are nearest to the share; unmet if having none at all would be nearer still."""
        free = np.array([len(layer.widths) > 1 for layer in path.layers])
        kept = path.widths[:, free].sum(axis=1)
        if not free.any():
            return Choice(0, None if self.share == 1 else f"{self._wanted}; no layer may be narrowed")
        wanted = self.share * kept[0]
        point = int(np.argmin(np.where(kept > 0, np.abs(kept - wanted), np.inf)))
        if 2 * wanted >= kept[point]:
            return Choice(point)
        return Choice(
            point,
            f"{self._wanted}; the fewest that widths may have are {kept[point]:,} of {kept[0]:,}, "
            f"{kept[point] / kept[0]:.1%}; a lower round_to allows fewer",
        )

    @property
    def _wanted(self) -> str:
        return f"{self.share:.1%} of the neurons was asked for"

    def asked(self) -> Mapping[str, float]:
        """As a recipe says it."""
        return {"keep_ratio": self.share}


@dataclass(frozen=True)
class Parameters:
    """The most parameters the model may have, or up to 1 the share of those it has."""

    limit: float

    def __post_init__(self) -> None:
        check_limit(self.limit)

    def stop(self, path: Path, costs: Costs) -> Choice:
        """The largest model within the limit."""
        left = costs.parameters - path.removed(lambda layer: layer.parameters_per_neuron)
        return _within(path, "parameters", self.limit, costs.parameters, left)

    def asked(self) -> Mapping[str, float]:
        """As a recipe says it."""
        return {"parameters": self.limit}


@dataclass(frozen=True)
class Macs:
    """The most multiply-accumulates for one sequence (`Costs.sequence`), or up to 1 the share of today's."""

    limit: float

    def __post_init__(self) -> None:
        check_limit(self.limit)

    def stop(self, path: Path, costs: Costs) -> Choice:
        """The largest model within the limit."""
        left = costs.macs - costs.sequence * path.removed(lambda layer: layer.macs_per_neuron)
        return _within(path, "multiply-accumulates", self.limit, costs.macs, left)

    def asked(self) -> Mapping[str, float]:
        """As a recipe says it."""
        return {"macs": self.limit}


def check_limit(limit: float) -> None:
    """Tells shares from counts.

    Raises:
        ValueError: it is neither.
    """
    if limit <= 0 or (limit > 1 and limit != int(limit)):
        raise ValueError(f"a limit is a share, above 0 and at most 1, or a whole number above 1, not {limit}")


def _within(path: Path, what: str, limit: float, before: int, left: NDArray[np.int64]) -> Choice:
    most = limit * before if limit <= 1 else limit
    found = first(path, lambda point: bool(left[point] <= most))
    if found is not None:
        return Choice(found)
    least = int(left[-1])
    return Choice(
        len(path) - 1,
        f"{int(most):,} {what} were asked for; without any neuron that may go the model still has {least:,}, "
        f"{least / before:.1%} of now",
    )

"""Ways from the whole model to the smallest one, along which a budget stops; how neurons are shared among layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skillprune.planning.curves import Curve, Curves
from skillprune.planning.layers import Layer, Widths


@dataclass(frozen=True, eq=False)
class Path:
    """Widths that fall from one point to the next, in no layer ever rising.

    Attributes:
        layers: the layers, stack by stack.
        widths: ``(points, layers)``; the first point is the model as it is.
    """

    layers: tuple[Layer, ...]
    widths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.widths)

    def __getitem__(self, point: int) -> Widths:
        found: dict[str, tuple[int, ...]] = {}
        for layer, width in zip(self.layers, self.widths[point].tolist(), strict=True):
            found[layer.site[0]] = (*found.get(layer.site[0], ()), width)
        return found

    def removed(self, weight: Callable[[Layer], int]) -> NDArray[np.int64]:
        """What has gone at every point when a neuron of a layer counts ``weight``, ``(points,)``."""
        weights = np.array([weight(layer) for layer in self.layers], dtype=np.int64)
        return np.asarray((self.widths[0] - self.widths) @ weights)


def uniform_path(layers: Sequence[Layer]) -> Path:
    """Every layer keeps the same share of its neurons, as nearly as its allowed widths let it; at last none keeps any.

    Before that no layer is emptied, however small the share.
    """
    every = [np.array(layer.widths) / layer.width for layer in layers if layer.width]
    shares = np.unique(np.concatenate([*every, np.ones(1)]))[::-1]
    columns = [nearest_widths(layer, shares) for layer in layers]
    return Path(tuple(layers), np.unique(np.array(columns, dtype=np.int64).T, axis=0)[::-1])


def nearest_widths(layer: Layer, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """The allowed widths nearest to shares of the layer's own, none only where the share is; of two the wider."""
    rising = np.array([width for width in layer.widths[::-1] if width > 0] or [0], dtype=np.int64)
    above = np.searchsorted(rising, shares * layer.width).clip(max=len(rising) - 1)
    below = (above - 1).clip(min=0)
    nearer = rising[above] - shares * layer.width <= shares * layer.width - rising[below]
    nearest = np.where(nearer, rising[above], rising[below])
    return np.where((shares == 0) & (0 in layer.widths), 0, nearest)


def sparing_path(layers: Sequence[Layer], curves: Curves) -> Path:
    """Neurons go where they cost the network least per multiply-accumulate saved.

    Curves are replaced by their lower convex hulls, on which taking the cheapest step next gives the least total cost
    for every saving that is reached (Fox, "Discrete Optimization via Marginal Analysis", Management Science 1966).
    """
    slopes = [_slopes(layer, curves[layer.site]) for layer in layers]
    owner = np.repeat(np.arange(len(layers)), [len(each) for each in slopes])
    order = np.argsort(np.concatenate([*slopes, np.zeros(0)]), kind="stable")
    widths = np.empty((len(order) + 1, len(layers)), dtype=np.int64)
    for column, layer in enumerate(layers):
        steps = np.append(0, np.cumsum(owner[order] == column))
        widths[:, column] = np.array(layer.widths)[steps]
    return Path(tuple(layers), widths)


def _slopes(layer: Layer, curve: Curve) -> NDArray[np.float64]:
    """Cost per saved multiply-accumulate of every step to the next smaller width; never falls from step to step."""
    widths = np.array(layer.widths, dtype=np.int64)
    saved = (widths[0] - widths) * float(layer.macs_per_neuron)
    hull = _lower_hull(saved, curve[widths])
    heights = np.interp(saved, saved[hull], curve[widths][hull])
    return np.asarray(np.diff(heights) / np.diff(saved))


def _lower_hull(x: NDArray[np.float64], y: Curve) -> list[int]:
    """Places of the corners of the lower convex hull of points with rising ``x`` (Andrew's monotone chain)."""
    hull: list[int] = []
    for place in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[place] - x[a]) < (y[place] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(place)
    return hull

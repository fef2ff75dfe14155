"""What narrowing a layer costs the network, width by width, so that layers can be compared and neurons shared out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from skillprune.families import Site
from skillprune.scoring import NeuronScores

Curve = NDArray[np.float64]
"""Cost of keeping ``k`` neurons of a layer at place ``k``, ``(width + 1,)``; it never rises and ends at 0."""

Curves = Mapping[Site, Curve]


def curves_of(scores: NeuronScores) -> Curves:
    """Cost curves from scores.

    Criteria that eliminate neurons one after the other bring a curve (detail ``cost``), in one unit for all layers. Of
    others the scores are added up from the least important neuron on, as shares of their layer's sum: whether a layer
    matters more than another they cannot say.
    """
    given = scores.details.get("cost")
    return {
        (stack, layer): _curve(given[stack][layer] if given else _shares(vector))
        for stack, layers in scores.values.items()
        for layer, vector in enumerate(layers)
    }


def _curve(removed: Curve) -> Curve:
    """From the cost of removing 1, 2, ... neurons to that of keeping 0, 1, ..."""
    return np.append(removed[::-1], 0.0)


def _shares(scores: Curve) -> Curve:
    rising = np.sort(scores - min(0.0, float(scores.min(initial=0.0))))
    total = rising.sum()
    return np.cumsum(rising) / (total if total > 0 else 1)

"""Criteria that need no data: the size of a neuron's outgoing weights, and chance. Both are controls, not advice."""

from __future__ import annotations

import numpy as np

from skillprune.families import FFN
from skillprune.scoring.criterion import Criterion, LayerScores, vector


class Magnitude(Criterion):
    """Norm of the neuron's column of the down projection, ``||w_j||_2``."""

    name = "magnitude"

    def finish(self, ffn: FFN) -> LayerScores:
        """Column norms ``(neurons,)``."""
        return LayerScores(vector(ffn.down_weight().double().norm(dim=0)))


class Random(Criterion):
    """Uniform draws; every ranking should be read beside this one."""

    name = "random"

    def finish(self, ffn: FFN) -> LayerScores:
        """Independent draws in [0, 1), ``(neurons,)``, reproducible per seed, stack and layer."""
        stack = list(ffn.stack.name.encode())
        return LayerScores(np.random.default_rng([self.settings.seed, ffn.layer, *stack]).random(ffn.width))

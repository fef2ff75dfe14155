"""Ranks neurons by the weights of a linear probe that tells the labels from all of them together."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from skillprune.families import FFN
from skillprune.scoring.class_tests import refuse_rare_classes
from skillprune.scoring.criterion import LayerScores, Read, Settings, Split, vector
from skillprune.scoring.responses import CHUNK, ResponseCriterion

_LOGGER = logging.getLogger(__name__)

PENALTIES = (0.1, 0.01)
"""Weights of the elastic net beside the mean cross-entropy; the first of those that tell validation best is kept."""

TOLERANCE, ITERATIONS = 0.01, 300
"""Training ends when a pass moves no weight by more than this share of the largest, or after so many passes."""

STEPS = 100

Floats = NDArray[np.floating]


class LinearProbe(ResponseCriterion):
    """The place of a neuron when the weights of an elastic-net probe are taken largest first.

    One probe reads the standardised pooled activations of all layers and minimises mean cross-entropy plus
    ``penalty (||Theta||_1 + ||Theta||_2^2 / 2) / 2``. For every class the neurons are sorted by weight; a neuron enters
    at the smallest share of some class's weight mass that reaches it, in steps of a hundredth, and within a step by
    its largest share.
    Sources: Dalvi et al., "What Is One Grain of Sand in the Desert?" (AAAI 2019) and Durrani et al. (EMNLP 2020, arXiv
    2010.02695). Two things differ. They stop Adam after ten epochs over very many tokens; here SAGA (Defazio et al.,
    NeurIPS 2014) goes on until weights hardly move. And their L2 term is the plain norm with a weight of its own, here
    it is the usual elastic net.

    The detail ``weights``, ``(classes, neurons)``, holds the probe's weights. Correlated neurons share weight, so a low
    place does not mean that a neuron does not know.

    Raises:
        DataError: a class has fewer than two examples in one of the two splits.
    """

    name = "linear_probe"
    reads = (Read("calibration"), Read("validation"))

    def __init__(self, ffns: Sequence[FFN], settings: Settings) -> None:
        super().__init__(ffns, settings)
        refuse_rare_classes(self.name, settings, ("calibration", "validation"), least=2)
        self._weights: dict[tuple[str, int], Tensor] = {}

    def finish(self, ffn: FFN) -> LayerScores:
        """Scores ``(neurons,)`` between 0 and ``STEPS + 1``, comparable over layers."""
        if not self._weights:
            weights = torch.from_numpy(self._fit())
            widths = [each.width for each in self.ffns]
            parts = zip(self.ffns, weights.split(widths, dim=1), _places(weights).split(widths), strict=True)
            self._weights = {each.site: torch.cat([place.unsqueeze(0), part]) for each, part, place in parts}
        found = self._weights[ffn.site]
        return LayerScores(vector(found[0]), {"weights": vector(found[1:])})

    def _fit(self) -> NDArray[np.float64]:
        """Weights ``(classes, neurons of all layers)`` of the probe that tells validation best."""
        train, dev = self._standardised("calibration"), self._standardised("validation")
        train_labels, dev_labels = (self.responses(self.ffns[0], read.split)[1].numpy() for read in self.reads)
        probes = [_train(train, train_labels, penalty, self.settings.seed) for penalty in PENALTIES]
        best = max(probes, key=lambda probe: float(probe.score(dev, dev_labels)))
        weights = np.asarray(best.coef_, dtype=np.float64)
        # Two classes share one vector: what speaks for the second speaks against the first.
        return weights if len(weights) > 1 else np.concatenate([-weights, weights]) / 2

    def _standardised(self, split: Split) -> Floats:
        """Responses of all layers side by side, by mean and deviation of calibration; on disk like the responses."""
        columns = [self.responses(ffn, split)[0] for ffn in self.ffns]
        whole = self.on_disk(len(columns[0]), sum(ffn.width for ffn in self.ffns))
        places = whole.split([ffn.width for ffn in self.ffns], dim=1)
        for ffn, column, place in zip(self.ffns, columns, places, strict=True):
            deviation, mean = torch.std_mean(self.responses(ffn, "calibration")[0], dim=0, correction=0)
            deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
            for rows, slot in zip(column.split(CHUNK), place.split(CHUNK), strict=True):
                slot.copy_((rows - mean) / deviation)
        return np.asarray(whole.numpy())


def _train(rows: Floats, labels: NDArray[np.int64], penalty: float, seed: int) -> LogisticRegression:
    probe = LogisticRegression(
        l1_ratio=0.5,
        C=1 / (penalty * len(rows)),  # scikit-learn sums the cross-entropy over examples
        solver="saga",
        tol=TOLERANCE,
        max_iter=ITERATIONS,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(rows, labels)
    if max(probe.n_iter_) == ITERATIONS:
        _LOGGER.warning("linear_probe: with penalty %g the weights still move after %d passes", penalty, ITERATIONS)
    return probe


def _places(weights: Tensor) -> Tensor:
    """Scores ``(neurons,)``: how early each neuron enters when every class takes its heaviest weights first."""
    size = weights.double().abs()
    shares = size / size.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    ordered, order = shares.sort(dim=1, descending=True, stable=True)
    before = torch.empty_like(shares).scatter_(1, order, ordered.cumsum(dim=1) - ordered)
    step = (before * STEPS).floor().clamp(max=STEPS - 1)
    step[size.sum(dim=1) == 0] = STEPS - 1  # a class without weights says nothing about any neuron
    step = step.amin(dim=0)
    return STEPS - step + shares.amax(dim=0)

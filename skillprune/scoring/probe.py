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

from skillprune.families import FFN, Site
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
    its largest share. Neurons without weight follow by how far the class means of their responses lie apart, summed
    over pairs of classes (Probeless; Antverg and Belinkov, ICLR 2022, arXiv 2110.07483).
    Sources: Dalvi et al., "What Is One Grain of Sand in the Desert?" (AAAI 2019) and Durrani et al. (EMNLP 2020, arXiv
    2010.02695). Three things differ. They stop Adam after ten epochs over very many tokens; here SAGA (Defazio et al.,
    NeurIPS 2014) goes on until weights hardly move. Their L2 term is the plain norm with a weight of its own, here it
    is the usual elastic net. And the penalties are stronger, so that with a few thousand examples SAGA gets there and
    weight gathers on few neurons.

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
        self._found: dict[Site, Tensor] = {}

    def finish(self, ffn: FFN) -> LayerScores:
        """Scores ``(neurons,)`` between 0 and ``STEPS + 1``, at most 1 without weight; comparable over layers."""
        if not self._found:
            weights, gaps = self._fit()
            columns = torch.cat([_places(weights, gaps).unsqueeze(0), weights])
            parts = columns.split([each.columns for each in self.ffns], dim=1)
            self._found = {each.site: part for each, part in zip(self.ffns, parts, strict=True)}
        found = self._found[ffn.site]
        return LayerScores(vector(found[0]), {"weights": vector(found[1:])})

    def _fit(self) -> tuple[Tensor, Tensor]:
        """Of the probe that tells validation best, weights ``(classes, neurons of all layers)``; and `_class_gaps`."""
        train, dev = self._standardised("calibration"), self._standardised("validation")
        train_labels, dev_labels = (self.responses(self.ffns[0], read.split)[1].numpy() for read in self.reads)
        probes = [_train(train, train_labels, penalty, self.settings.seed) for penalty in PENALTIES]
        best = max(probes, key=lambda probe: float(probe.score(dev, dev_labels)))
        weights = np.asarray(best.coef_, dtype=np.float64)
        if len(weights) == 1:  # two classes share one vector: what speaks for the second speaks against the first
            weights = np.concatenate([-weights, weights]) / 2
        return torch.from_numpy(weights), _class_gaps(train, train_labels)

    def _standardised(self, split: Split) -> Floats:
        """Responses of all layers side by side, by mean and deviation of calibration; on disk like the responses."""
        columns = [self.responses(ffn, split)[0] for ffn in self.ffns]
        whole = self.on_disk(len(columns[0]), sum(ffn.columns for ffn in self.ffns))
        places = whole.split([ffn.columns for ffn in self.ffns], dim=1)
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


def _class_gaps(rows: Floats, labels: NDArray[np.int64]) -> Tensor:
    """How far the class means of each column of ``rows`` lie apart, summed over pairs of classes; ``(neurons,)``."""
    counts = torch.from_numpy(np.bincount(labels)).double()
    sums = torch.zeros(len(counts), rows.shape[1], dtype=torch.float64)
    for first in range(0, len(rows), CHUNK):
        part = slice(first, first + CHUNK)
        sums.index_add_(0, torch.from_numpy(labels[part]), torch.from_numpy(rows[part]).double())
    means = (sums / counts.unsqueeze(1)).sort(dim=0).values
    # Sorted, each mean is subtracted from all above it and all below are subtracted from it.
    return (2 * torch.arange(len(counts), dtype=torch.float64) - len(counts) + 1) @ means


def _places(weights: Tensor, gaps: Tensor) -> Tensor:
    """Scores ``(neurons,)``: how early each neuron enters when every class takes its heaviest weights first.

    Neurons that no class gives weight get their share of the largest gap, at most 1.
    """
    size = weights.double().abs()
    shares = size / size.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    ordered, order = shares.sort(dim=1, descending=True, stable=True)
    before = torch.empty_like(shares).scatter_(1, order, ordered.cumsum(dim=1) - ordered)
    step = (before * STEPS).floor().clamp(max=STEPS - 1)
    step[size.sum(dim=1) == 0] = STEPS - 1  # a class without weights says nothing about any neuron
    heaviest = shares.amax(dim=0)
    last = gaps / gaps.max().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(heaviest > 0, STEPS - step.amin(dim=0) + heaviest, last)

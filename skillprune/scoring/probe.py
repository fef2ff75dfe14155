"""Ranks neurons by the weights of a linear probe that tells the labels from all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from skillprune.families import FFN
from skillprune.scoring.class_tests import refuse_rare_classes
from skillprune.scoring.criterion import SPLITS, LayerScores, Read, Settings, vector
from skillprune.scoring.responses import ResponseCriterion

EPOCHS, BATCH, LEARNING_RATE = 10, 32, 1e-3
PENALTIES = (0.0, 1e-5, 1e-4, 1e-3)
"""Tried for the L1 and for the L2 term; the pair that tells validation best is kept."""

STEPS = 100


class _Probe(NamedTuple):
    weights: Tensor  # (classes, neurons of all layers)
    bias: Tensor  # (classes,)


class LinearProbe(ResponseCriterion):
    """The place of a neuron when the weights of an elastic-net probe are taken largest first.

    One probe reads the standardised pooled activations of all layers and minimises cross-entropy plus
    ``l1 ||Theta||_1 + l2 ||Theta||_2``. For every class the neurons are sorted by weight; a neuron enters at the
    smallest share of some class's weight mass that reaches it, in steps of a hundredth, and within a step by its
    largest share.
    Sources: Dalvi et al., "What Is One Grain of Sand in the Desert?" (AAAI 2019) and Durrani et al. (EMNLP 2020, arXiv
    2010.02695), with the training of their published code; the penalties are chosen on validation.

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
            weights = self._fit().weights
            widths = [each.width for each in self.ffns]
            parts = zip(self.ffns, weights.split(widths, dim=1), _places(weights).split(widths), strict=True)
            self._weights = {each.site: torch.cat([place.unsqueeze(0), part]) for each, part, place in parts}
        found = self._weights[ffn.site]
        return LayerScores(vector(found[0]), {"weights": vector(found[1:])})

    def _fit(self) -> _Probe:
        calibration = [self.responses(ffn, "calibration")[0] for ffn in self.ffns]
        moments = [torch.std_mean(column, dim=0, correction=0) for column in calibration]
        deviations, means = (torch.cat(part) for part in zip(*moments, strict=True))
        train, dev = (
            _Columns([self.responses(ffn, split)[0] for ffn in self.ffns], means, deviations) for split in SPLITS
        )
        train_labels, dev_labels = (self.responses(self.ffns[0], split)[1] for split in SPLITS)
        classes, seed = len(self.settings.labels), self.settings.seed
        probes = [_train(train, train_labels, classes, l1, l2, seed) for l1, l2 in _GRID]
        # The first of the best: the grid starts with the weakest penalties.
        return max(probes, key=lambda probe: _accuracy(probe, dev, dev_labels))


_GRID: tuple[tuple[float, float], ...] = tuple(product(PENALTIES, PENALTIES))


class _Columns:
    """Responses of all layers side by side, standardised row by row when they are asked for."""

    def __init__(self, columns: Sequence[Tensor], means: Tensor, deviations: Tensor) -> None:
        self._columns, self._means = columns, means
        self._deviations = torch.where(deviations > 0, deviations, torch.ones_like(deviations))

    @property
    def shape(self) -> tuple[int, int]:
        """Examples and neurons."""
        return len(self._columns[0]), len(self._means)

    def rows(self, indices: Tensor) -> Tensor:
        """Some examples, ``(rows, neurons)``."""
        raw = torch.cat([column[indices] for column in self._columns], dim=1)
        return (raw - self._means) / self._deviations


def _train(columns: _Columns, labels: Tensor, classes: int, l1: float, l2: float, seed: int) -> _Probe:
    examples, neurons = columns.shape
    weights = torch.zeros(classes, neurons, dtype=torch.float32, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([weights, bias], lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            for chosen in torch.randperm(examples, generator=generator).split(BATCH):
                logits = columns.rows(chosen).float() @ weights.T + bias
                penalty = l1 * weights.abs().sum() + l2 * torch.linalg.vector_norm(weights)
                optimizer.zero_grad()
                (cross_entropy(logits, labels[chosen]) + penalty).backward()
                optimizer.step()
    return _Probe(weights.detach(), bias.detach())


def _accuracy(probe: _Probe, columns: _Columns, labels: Tensor) -> float:
    right = 0
    for chosen in torch.arange(len(labels)).split(1024):
        answers = (columns.rows(chosen).float() @ probe.weights.T + probe.bias).argmax(dim=1)
        right += int((answers == labels[chosen]).sum())
    return right / len(labels)


def _places(weights: Tensor) -> Tensor:
    """Scores ``(neurons,)``: how early each neuron enters when every class takes its heaviest weights first."""
    size = weights.double().abs()
    shares = size / size.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    ordered, order = shares.sort(dim=1, descending=True, stable=True)
    before = torch.empty_like(shares).scatter_(1, order, ordered.cumsum(dim=1) - ordered)
    step = (before * STEPS).floor().clamp(max=STEPS - 1).amin(dim=0)
    return STEPS - step + shares.amax(dim=0)

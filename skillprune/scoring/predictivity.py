"""Predictivity: how well one neuron's activation alone, against its baseline, tells the label. Finds skill neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skillprune.activations import Observation
from skillprune.errors import DataError
from skillprune.families import FFN
from skillprune.scoring.class_tests import class_tests, refuse_rare_classes
from skillprune.scoring.criterion import Criterion, LayerScores, Read, Settings, Split, State, vector, zeros
from skillprune.scoring.scores import NeuronScores, ranking

_DECIMALS = 12


class Predictivity(Criterion):
    """Two-sided accuracy of "the neuron fires above its baseline" as a test for a class; the best test counts.

    Source: Wang, Wen et al., "Finding Skill Neurons in Pre-trained Transformer-based Language Models" (EMNLP 2022,
    arXiv 2211.07349). The baseline of a neuron at a position is its mean activation in calibration, the accuracy that
    of ``activation > baseline`` in validation; two-sided, ``max(Acc, 1 - Acc)``; then the best position. Every class
    weighs the same unless ``balanced`` is off, so a silent neuron scores 0.5 whatever the class counts; on balanced
    data with two classes both are the published definition. `ClassTests` says which tests more than two classes make.

    A finding about the model; removing the least predictive neurons is not a safe way to prune.

    Details: ``per_test`` ``(tests, neurons)``, and ``direction``, +1 where firing means yes and -1 where it means no.

    Raises:
        DataError: a class has fewer than two examples in one of the two splits.
    """

    name = "predictivity"
    reads = (Read("calibration"), Read("validation"))

    def __init__(self, ffns: Sequence[FFN], settings: Settings) -> None:
        super().__init__(ffns, settings)
        refuse_rare_classes(self.name, settings, ("calibration", "validation"), least=2)
        self._tests = class_tests(settings)

    def start(self, ffn: FFN, split: Split, device: torch.device) -> State:
        """Calibration: sums per class. Validation: the part of every test's accuracy that firing neurons add."""
        rows = len(self.settings.labels if split == "calibration" else self._tests.names)
        return {"sums": zeros(device, rows, self.settings.positions, ffn.columns)}

    def update(self, read: Read, seen: Observation) -> None:
        """Adds pooled activations to their classes, or looks which neurons fire above which baseline."""
        pooled, labels = seen.pooled.double(), seen.batch.labels
        sums = self.state(seen.ffn, read.split, pooled.device)["sums"]
        if read.split == "calibration":
            sums += torch.zeros_like(sums).index_add_(0, labels, pooled)
            return
        tests, counts = self._tests, self._counts("validation", sums)
        weights = (torch.from_numpy(tests.yes - tests.no).to(sums) / counts)[:, labels]
        baselines = self._baselines(self.state(seen.ffn, "calibration")["sums"].to(sums))
        added = [
            torch.einsum("b,bpn->pn", weight, (pooled > baseline).double())
            for weight, baseline in zip(weights, baselines, strict=True)
        ]
        sums += torch.stack(added)

    def finish(self, ffn: FFN) -> LayerScores:
        """Scores ``(neurons,)``: the best test of every neuron, or their mean."""
        sums = self.state(ffn, "validation")["sums"]
        accuracy = sums + torch.from_numpy(self._tests.no.sum(axis=1)).to(sums).view(-1, 1, 1)
        # Sums of shares differ in the last digits by their order; neurons with equal counts must tie.
        accuracy = accuracy.round(decimals=_DECIMALS)
        two_sided, place = torch.maximum(accuracy, 1 - accuracy).round(decimals=_DECIMALS).max(dim=1)
        there = accuracy.gather(1, place.unsqueeze(1)).squeeze(1)
        per_test = vector(two_sided)
        direction = np.sign(vector(there) - 0.5).astype(np.int8)
        return LayerScores(reduced(per_test, self.settings.reduce), {"per_test": per_test, "direction": direction})

    def _baselines(self, sums: Tensor) -> Tensor:
        """Thresholds ``(tests, positions, neurons)``."""
        means = sums / self._counts("calibration", sums).view(-1, 1, 1)
        return torch.einsum("tk,kpn->tpn", torch.from_numpy(self._tests.baselines).to(sums), means)

    def _counts(self, split: Split, like: Tensor) -> Tensor:
        return torch.tensor(self.settings.class_counts[split]).to(like)


def reference_skill_neurons(scores: NeuronScores, share: float) -> dict[str, tuple[NDArray[np.int64], ...]]:
    """The ``int(share * width)`` skill neurons of every layer that the published code takes for three classes, sorted.

    Unlike `NeuronScores.top` it serves both tests: the best ``int(share / 2 * width)`` neurons of positive against
    negative come first, then the best of neutral against the rest that are not yet among them (Wang, Wen et al. 2022).

    Args:
        scores: predictivity under ``multiclass: reference``.
        share: of every layer's neurons, between 0 and 1.

    Raises:
        DataError: the scores are of another criterion or scheme.
    """
    per_test = scores.details.get("per_test", {})
    tests = [layer for layers in per_test.values() for layer in layers]
    # Two classes that are told from each other make two tests as well, each the mirror of the other.
    mirrored = all(np.array_equal(layer[0], layer[-1]) for layer in tests)
    if scores.criterion != Predictivity.name or mirrored or any(len(layer) != 2 for layer in tests):
        raise DataError("the published choice for three classes needs predictivity scored with multiclass: reference")
    return {stack: tuple(_served_in_turn(layer, share) for layer in layers) for stack, layers in per_test.items()}


def _served_in_turn(per_test: NDArray[np.float64], share: float) -> NDArray[np.int64]:
    width = per_test.shape[1]
    first, second = map(ranking, per_test)
    served = first[: int(share / 2 * width)]
    others = second[~np.isin(second, served)]
    return np.sort(np.concatenate([served, others[: int(share * width) - len(served)]]))


def reduced(per_test: NDArray[np.float64], how: Literal["max", "mean"]) -> NDArray[np.float64]:
    """One score per neuron from its tests ``(tests, neurons)``."""
    return np.asarray(per_test.max(axis=0) if how == "max" else per_test.mean(axis=0))

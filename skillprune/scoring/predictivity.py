"""Predictivity: how well one neuron's activation alone, against its baseline, tells the label. Finds skill neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skillprune.activations import pool
from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.families import FFN, Site
from skillprune.scoring.criterion import Criterion, Settings, Split


class _Sums(NamedTuple):
    means: Tensor  # (classes, neurons): mean pooled activation of every class of the calibration split
    accuracy: Tensor  # (classes, neurons): balanced accuracy of "fires above its baseline" as a test for the class


class Predictivity(Criterion):
    """Two-sided balanced accuracy of "the neuron fires above its baseline" as a test for a class; best class counts.

    For class ``c`` every example weighs ``w_c = 1/2 * 1/N_c`` when it is of class ``c`` and
    ``w_c = 1/2 * 1/(C-1) * 1/N_k`` when it is of another class ``k``. With pooled activation ``z``:

        baseline    t_c   = sum over calibration of w_c z
        accuracy    Acc_c = sum over validation  of w_c [[z > t_c] == [y == c]]
        score             = max over c of max(Acc_c, 1 - Acc_c)                      in [0.5, 1]

    On balanced binary data this is the published definition (Wang, Wen et al., "Finding Skill Neurons in Pre-trained
    Transformer-based Language Models", EMNLP 2022); balancing keeps a silent neuron at 0.5 when classes are not equal.
    A finding about the model; removing the least predictive neurons is not a safe way to prune.

    Raises:
        DataError: a class has no example in one of the two splits.
    """

    name = "predictivity"
    reads = ("calibration", "validation")

    def __init__(self, ffns: Sequence[FFN], settings: Settings) -> None:
        super().__init__(ffns, settings)
        _refuse_missing_classes(settings)
        self._classes = len(settings.labels)
        self._weights = class_weights(settings.class_counts["validation"])
        self._counts = torch.tensor(settings.class_counts["calibration"], dtype=torch.float64)
        self._sums: dict[Site, _Sums] = {ffn.site: _Sums(self._zeros(ffn), self._zeros(ffn)) for ffn in ffns}

    def update(self, split: Split, ffn: FFN, activations: Tensor, batch: Batch) -> None:
        """Calibration adds to the class means, validation to the accuracies of every class test."""
        pooled = pool(activations, batch, self.settings.position).double()
        if not bool(pooled.isfinite().all()):
            raise DataError(f"predictivity: the activations of {ffn.stack.name} layer {ffn.layer} are not finite")
        if split == "calibration":
            each = 1.0 / self._counts.to(pooled.device)[batch.labels]
            self._sums[ffn.site].means.index_add_(0, batch.labels, pooled * each.unsqueeze(1))
        else:
            self._count_right(ffn, pooled, batch)

    def finish(self, ffn: FFN) -> NDArray[np.float64]:
        """Scores ``(neurons,)``, the best class test of every neuron."""
        accuracy = self._sums[ffn.site].accuracy
        return np.asarray(torch.maximum(accuracy, 1 - accuracy).amax(dim=0).cpu().numpy())

    def _count_right(self, ffn: FFN, pooled: Tensor, batch: Batch) -> None:
        sums = self._sums[ffn.site]
        weights = self._weights.to(pooled.device)[batch.labels]
        for label, baseline in enumerate(self._baselines(sums.means)):
            right = (pooled > baseline) == (batch.labels == label).unsqueeze(1)
            sums.accuracy[label] += weights[:, label] @ right.double()

    def _baselines(self, means: Tensor) -> Tensor:
        others = (means.sum(dim=0) - means) / (self._classes - 1)
        return 0.5 * means + 0.5 * others

    def _zeros(self, ffn: FFN) -> Tensor:
        return torch.zeros(self._classes, ffn.width, dtype=torch.float64, device=ffn.down.weight.device)


def _refuse_missing_classes(settings: Settings) -> None:
    if len(settings.labels) < 2:
        raise DataError("predictivity needs a classifier with two classes or more")
    for split, counts in settings.class_counts.items():
        missing = [label for label, count in zip(settings.labels, counts, strict=True) if count == 0]
        if missing:
            raise DataError(
                f"predictivity needs examples of every class in the {split} split; there is none of {missing[0]!r}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            )


def class_weights(counts: Sequence[int]) -> Tensor:
    """Weight of an example of class ``k`` in the test for class ``c``, ``(k, c)``; over all examples they sum to 1."""
    classes = len(counts)
    weights = torch.full((classes, classes), 0.5 / (classes - 1), dtype=torch.float64)
    weights.fill_diagonal_(0.5)
    return weights / torch.tensor(counts, dtype=torch.float64).unsqueeze(1)

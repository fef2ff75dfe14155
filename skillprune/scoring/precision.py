"""Expert neurons by average precision: how well a neuron's response alone ranks the examples of a class first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from skillprune.families import FFN
from skillprune.scoring.class_tests import refuse_rare_classes
from skillprune.scoring.criterion import LayerScores, Read, Settings
from skillprune.scoring.responses import ResponseCriterion

ENTRIES = 250_000
"""Responses that are ranked at once, so that memory does not grow with the number of examples."""

Matrix = NDArray[np.float64]


class AveragePrecision(ResponseCriterion):
    """Average precision of the response as a detector of a class, above chance; the best class and direction count.

    ``AP = sum_k (Rec_k - Rec_{k-1}) Prec_k`` over the examples sorted by response, where equal responses are one step.
    A neuron that falls silent for a class detects it as well, so the responses' negatives are tried too. Chance is the
    class's share ``pi`` of the examples, so the score is ``(AP - pi) / (1 - pi)``, and classes of different size
    compare.
    Sources: Suau et al., "Self-conditioning pre-trained language models" (arXiv 2110.02802) and Kojima et al. (NAACL
    2024, arXiv 2404.02431), which read the maximum over tokens (position ``max``).

    Details, all ``(classes, neurons)``: ``average_precision`` of the better direction, ``direction`` (+1 or -1), and
    ``median_response``, the median over the class's own examples, which interventions force the neuron to.

    Raises:
        DataError: a class has fewer than two calibration examples.
    """

    name = "average_precision"
    reads = (Read("calibration"),)

    def __init__(self, ffns: Sequence[FFN], settings: Settings) -> None:
        super().__init__(ffns, settings)
        refuse_rare_classes(self.name, settings, ("calibration",), least=2)

    def finish(self, ffn: FFN) -> LayerScores:
        """Scores ``(neurons,)``; chance is 0, a perfect detector 1."""
        responses, labels = self.responses(ffn, "calibration")
        members = [np.flatnonzero(labels.numpy() == label) for label in range(len(self.settings.labels))]
        neurons = max(1, ENTRIES // len(labels))
        blocks = [_of_block(block.double().numpy(), members) for block in responses.split(neurons, dim=1)]
        precision, direction, median = (np.concatenate(part, axis=1) for part in zip(*blocks, strict=True))
        chance = np.array([len(rows) for rows in members])[:, None] / len(labels)
        details = {"average_precision": precision, "direction": direction, "median_response": median}
        return LayerScores(((precision - chance) / (1 - chance)).max(axis=0), details)


def _of_block(responses: Matrix, members: Sequence[NDArray[np.int64]]) -> tuple[Matrix, NDArray[np.int8], Matrix]:
    falling, rising = (rankdata(side, method="max", axis=0) for side in (-responses, responses))
    firing = np.stack([_average_precision(falling[rows]) for rows in members])
    silent = np.stack([_average_precision(rising[rows]) for rows in members])
    median = np.stack([np.median(responses[rows], axis=0) for rows in members])
    return np.maximum(firing, silent), np.where(firing >= silent, 1, -1).astype(np.int8), median


def _average_precision(ranks: Matrix) -> Matrix:
    """Mean over positives of the precision at their rank, where ties stand at the end of their step.

    Args:
        ranks: of the positives among all examples, the best being 1, ``(positives, neurons)``.
    """
    return np.asarray(np.mean(rankdata(ranks, method="max", axis=0) / ranks, axis=0))

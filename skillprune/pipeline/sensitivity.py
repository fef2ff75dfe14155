"""How much the loss rises when one layer is narrowed: what the allocation `sensitivity` shares neurons out by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from skillprune.activations import Capacity, evaluating
from skillprune.answers import TaskModel
from skillprune.data import Batch
from skillprune.families import find_ffns
from skillprune.planning import Curves
from skillprune.progress import Progress
from skillprune.scoring import NeuronScores, ranking
from skillprune.surgery import silenced

EXAMPLES = 256
"""Calibration examples that losses are measured on: the first of the random sample, whatever batches they are in."""

SHARES = (0.75, 0.5, 0.25, 0.125, 0.0)
"""Widths that are tried in every layer; between them the rise of the loss is interpolated."""


def measured_curves(subject: TaskModel, scores: NeuronScores, batches: Sequence[Batch], progress: Progress) -> Curves:
    """Mean rise of the loss per example when a layer keeps only its best neurons and the others are silent.

    One layer at a time, without repair; a rise that noise makes fall at a smaller width counts as what it was before.
    """
    ffns, batches = find_ffns(subject.model), _first(batches)
    steps = len(ffns) * len(SHARES)
    dense = _mean_loss(subject, batches)
    curves = {}
    for number, ffn in enumerate(ffns):
        order = ranking(scores.values[ffn.stack.name][ffn.layer])
        widths, rises = [ffn.width], [0.0]
        for place, share in enumerate(SHARES):
            progress("layer sensitivity", number * len(SHARES) + place, steps)
            width = round(share * ffn.width)
            with silenced(ffn, order[width:].tolist()):
                rises.append(max(rises[-1], _mean_loss(subject, batches) - dense))
            widths.append(width)
        curves[ffn.site] = np.interp(np.arange(ffn.width + 1), widths[::-1], rises[::-1])
    progress("layer sensitivity", steps, steps)
    return curves


def _first(batches: Sequence[Batch]) -> list[Batch]:
    wanted = ((batch, batch.indices < EXAMPLES) for batch in batches)
    return [batch.select(chosen) for batch, chosen in wanted if bool(chosen.any())]


def _mean_loss(subject: TaskModel, batches: Sequence[Batch]) -> float:
    capacity = Capacity()

    def lost(batch: Batch) -> torch.Tensor:
        return subject.ask(subject.prepare(batch)).losses()

    with evaluating(subject.model), torch.inference_mode():
        losses = [part for batch in batches for part in capacity.run(batch, lost)]
    return float(torch.cat(losses).double().mean())

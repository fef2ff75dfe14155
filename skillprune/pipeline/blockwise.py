"""Chooses neurons anew in every block, on the network pruned so far: scoring, planning and repair in a loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from skillprune.data import Batch
from skillprune.families import FFN
from skillprune.planning import PruningPlan
from skillprune.progress import Progress
from skillprune.recipe import RepairSpec
from skillprune.repair import Statistics, choose_and_repair_, least_squares
from skillprune.scoring import NeuronScores
from skillprune.scoring.elimination import eliminate

RIDGE = 0.01
"""Of the fit that elimination starts from, and of the elimination itself."""


def chosen_again(
    model: PreTrainedModel,
    plan: PruningPlan,
    scores: NeuronScores,
    batches: Sequence[Batch],
    repair: RepairSpec,
    progress: Progress,
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The neurons that stay when layers have the plan's widths and each is looked at after those below were pruned.

    Args:
        model: the dense model; it is changed and of no further use.
        plan: whose widths are taken.
        scores: of `skill`, with the output metric kept.
        batches: calibration batches.
        repair: how blocks are repaired on the way up, which should be how they will be repaired in the end.
        progress: told about every batch of every layer.
    """

    def choose(ffn: FFN, statistics: Statistics) -> Sequence[int]:
        stack, layer = ffn.site
        width = len(plan.keep[stack][layer])
        order = _order(ffn, statistics, torch.from_numpy(scores.details["metric"][stack][layer]))
        return sorted(order[len(order) - width :])

    return choose_and_repair_(
        model,
        plan.width_after,
        choose,
        batches,
        method=repair.method,
        ridge=repair.ridge,
        attention=repair.attention,
        progress=progress,
    )


def _order(ffn: FFN, statistics: Statistics, metric: torch.Tensor) -> list[int]:
    """Neurons in the order they can be spared, given what the layer is to write in the network pruned so far."""
    moments = statistics.fit
    gram = moments.gram if ffn.down.bias is None else moments.centred()[0]
    weight = ffn.down_weight().double()
    bias = None if ffn.down.bias is None else ffn.down.bias.detach().double()
    everything = torch.arange(ffn.width, device=gram.device)
    fitted, _ = least_squares(statistics, weight.to(gram), bias, everything, RIDGE)
    order: list[int] = eliminate(
        (gram / moments.weight).unsqueeze(0), fitted.unsqueeze(0), metric.to(gram), ridge=RIDGE
    ).order.tolist()
    return order

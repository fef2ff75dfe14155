"""The criterion ``skill``: what the layer's output loses without a neuron, measured by what the task's answers feel."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from skillprune.activations import Observation
from skillprune.errors import DataError
from skillprune.families import FFN
from skillprune.scoring.criterion import Criterion, LayerScores, Read, Split, State, vector, zeros
from skillprune.scoring.elimination import eliminate

logger = logging.getLogger(__name__)

GRADED_EXAMPLES = 512
"""Examples whose gradients make the output metric; a ``hidden x hidden`` mean over their tokens needs no more."""

METRIC_IDENTITY = 0.05
"""Share of the identity in the output metric, so that no direction of the output is free."""

_BLOCKS = 8


class Skill(Criterion):
    """Task sensitivity times reconstruction cost, by greedy elimination.

    The error that removing neurons leaves in the layer's output, after the others were refitted, is measured in the
    metric ``G = E[g g^T]``, where ``g`` is the gradient of a random contrast of the model's own answers at that output.
    So a neuron is dear when the others cannot replace it *and* the answers depend on what it writes. Tokens count
    alike; labels are not used. The first gradients come from the first `GRADED_EXAMPLES` examples.

    A score is the summed cost at which the neuron goes; details are the elimination ``order`` and its ``cost`` curve,
    in units of squared change of the answers' contrast per token, so that layers can be compared.
    """

    name = "skill"
    _told = False
    _gram = Read("calibration")
    _metric = Read("calibration", "sampled", GRADED_EXAMPLES)
    reads = (_gram, _metric)

    def start(self, ffn: FFN, split: Split, device: torch.device) -> State:
        """Second moments of every expert's activations, and of gradients at the output."""
        hidden = ffn.hidden
        return {
            "gram": zeros(device, ffn.experts, ffn.width, ffn.width),
            "sum": zeros(device, ffn.experts, ffn.width),
            "tokens": zeros(device),
            "metric": zeros(device, hidden, hidden),
            "graded": zeros(device),
        }

    @classmethod
    def state_bytes(cls, ffn: FFN) -> int:
        """Square matrices in float64."""
        return 8 * (ffn.experts * ffn.width**2 + ffn.hidden**2)

    def update(self, read: Read, seen: Observation) -> None:
        """Adds the products of the batch's real tokens, made in the tokens' dtype, to sums in float64."""
        if read == self._gram:
            state = self.state(seen.ffn, read.split, seen.tokens.device)
            state["sum"] += seen.tokens.sum(dim=0, dtype=torch.float64).view_as(state["sum"])
            for gram, tokens in zip(state["gram"], seen.by_expert, strict=True):
                _add_products_(gram, tokens)
            state["tokens"] += len(seen.tokens)
        else:
            gradients = seen.output_tokens
            state = self.state(seen.ffn, read.split, gradients.device)
            state["metric"] += gradients.T @ gradients
            state["graded"] += len(gradients)

    def finish(self, ffn: FFN) -> LayerScores:
        """Eliminates neuron after neuron; scores ``(neurons,)``.

        Raises:
            DataError: activations or gradients were so large that their products overflowed.
        """
        state = self.state(ffn)
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise DataError(f"skill: products of the activations of {ffn.stack.name} layer {ffn.layer} are not finite")
        tokens = state["tokens"].clamp(min=1)
        if tokens < ffn.width and not self._told:
            self._told = True
            logger.warning(
                "skill: %d calibration tokens are fewer than a layer's %d neurons, whose order then rests on a ridge; "
                "give more examples",
                *(int(tokens), ffn.width),
            )
        gram = torch.triu(state["gram"]) / tokens
        gram = gram + torch.triu(gram, diagonal=1).mT
        if ffn.down.bias is not None:  # the bias takes over the mean, so only deviations cost anything
            mean = state["sum"] / tokens
            gram = gram - mean.unsqueeze(2) * mean.unsqueeze(1)
        metric = _output_metric(state["metric"], state["graded"])
        weight = torch.stack(list(ffn.down.lent_weights()))
        found = eliminate(gram, weight.to(gram), metric)
        scores = torch.empty_like(found.cost)
        scores[found.order] = found.cost
        details = {"order": found.order.cpu().numpy(), "cost": vector(found.cost)}
        if self.settings.keep_metric:
            details["metric"] = metric.float().cpu().numpy()
        return LayerScores(vector(scores), details)


def _output_metric(summed: Tensor, tokens: Tensor) -> Tensor:
    metric = summed / tokens.clamp(min=1)
    size = metric.diagonal().mean()
    identity = torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
    # Where no answer depends on the output, it still costs what plain reconstruction costs.
    return metric + METRIC_IDENTITY * size * identity if bool(size > 0) else identity


def _add_products_(gram: Tensor, tokens: Tensor) -> None:
    """Adds ``tokens^T tokens`` to the upper triangle, in blocks of columns; what is below the blocks is left alone."""
    edges = [round(block * len(gram) / _BLOCKS) for block in range(_BLOCKS + 1)]
    products = [tokens[:, low:high].T @ tokens[:, low:] for low, high in zip(edges, edges[1:], strict=False)]
    for low, high, product in zip(edges, edges[1:], products, strict=False):
        gram[low:high, low:] += product

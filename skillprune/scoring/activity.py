"""Criteria of how strongly and how variably a neuron fires, times the weights it fires into; they know no task."""

from __future__ import annotations

import torch

from skillprune.activations import Observation
from skillprune.families import FFN
from skillprune.scoring.criterion import Criterion, LayerScores, Read, Split, State, vector, zeros


class Wanda(Criterion):
    """``||A[:, j]||_2 * sum_i |W_out[i, j]|`` over real tokens.

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695), summed
    over the output dimension for whole columns as in FASP (arXiv 2501.09412).
    """

    name = "wanda"
    reads = (Read("calibration"),)

    def start(self, ffn: FFN, split: Split, device: torch.device) -> State:
        """Sums of squares, ``(neurons,)``."""
        return {"squares": zeros(device, ffn.columns)}

    def update(self, read: Read, seen: Observation) -> None:
        """Adds the batch's sum of squares over real tokens."""
        state = self.state(seen.ffn, read.split, seen.tokens.device)
        state["squares"] += seen.tokens.square().sum(dim=0)

    def finish(self, ffn: FFN) -> LayerScores:
        """Scores ``(neurons,)``."""
        squares = self.state(ffn)["squares"]
        reach = ffn.down_weight().double().abs().sum(dim=0)
        return LayerScores(vector(squares.sqrt().cpu() * reach.cpu()))


class Fluctuation(Criterion):
    """``Var(a_j) * ||w_j||_2^2`` over real tokens: the error of replacing the neuron by its mean.

    Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (AAAI 2024, arXiv
    2312.11983), metric WIFV. The variance is that of all real tokens together, merged batch by batch in float64 (Chan
    et al. 1983), where the published code counts sequences instead of tokens and uses the new mean twice.
    """

    name = "fluctuation"
    reads = (Read("calibration"),)

    def start(self, ffn: FFN, split: Split, device: torch.device) -> State:
        """Number of tokens, means and summed squared deviations from them."""
        return {"count": zeros(device), "mean": zeros(device, ffn.columns), "deviation": zeros(device, ffn.columns)}

    def update(self, read: Read, seen: Observation) -> None:
        """Merges the batch's own mean and deviations."""
        mean = seen.tokens.mean(dim=0)
        deviation = (seen.tokens - mean).square().sum(dim=0)
        count = zeros(mean.device) + len(seen.tokens)
        self.state(seen.ffn, read.split, mean.device)
        self.merge(seen.ffn, read.split, {"count": count, "mean": mean.double(), "deviation": deviation.double()})

    def merge(self, ffn: FFN, split: Split, other: State) -> None:
        """Mean and deviations of both sets of tokens together."""
        state = self.state(ffn, split)
        count, mean, deviation = (other[key].to(state[key].device) for key in ("count", "mean", "deviation"))
        total = (state["count"] + count).clamp(min=1)
        shift = mean - state["mean"]
        state["deviation"] += deviation + shift.square() * state["count"] * count / total
        state["mean"] += shift * count / total
        state["count"] += count

    def finish(self, ffn: FFN) -> LayerScores:
        """Scores ``(neurons,)``, with the means as detail ``mean``."""
        state = self.state(ffn)
        variance = state["deviation"] / state["count"].clamp(min=1)
        weights = ffn.down_weight().double().square().sum(dim=0)
        return LayerScores(vector(variance.cpu() * weights.cpu()), {"mean": vector(state["mean"])})

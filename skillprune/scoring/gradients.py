"""Criteria of what removing a neuron does to the model's answers, to first order, example by example.

All rest on the effect ``g_j(x) = sum_s a_j(x, s) dq(x)/da_j(x, s)``: the derivative of a quantity ``q`` of example
``x`` with respect to a mask that multiplies neuron ``j``, with the sum over its tokens signed.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from skillprune.activations import Observation
from skillprune.families import FFN
from skillprune.scoring.criterion import Criterion, LayerScores, Read, Split, State, vector, zeros


class _MeanOverExamples(Criterion):
    """Mean over examples of some function of the effects."""

    def start(self, ffn: FFN, split: Split, device: torch.device) -> State:
        """A sum per neuron and the number of examples."""
        return {"sum": zeros(device, ffn.columns), "examples": zeros(device)}

    def update(self, read: Read, seen: Observation) -> None:
        """Adds the batch's examples."""
        state = self.state(seen.ffn, read.split, seen.effects.device)
        state["sum"] += self.strength(seen.effects.double()).sum(dim=0)
        state["examples"] += len(seen.effects)

    def finish(self, ffn: FFN) -> LayerScores:
        """Means ``(neurons,)``."""
        state = self.state(ffn)
        return LayerScores(vector(state["sum"] / state["examples"].clamp(min=1)))

    @staticmethod
    @abstractmethod
    def strength(effects: Tensor) -> Tensor:
        """What is averaged, ``(batch, neurons)``."""


class Taylor(_MeanOverExamples):
    """``mean_x |g_j(x)|`` of the loss: how much it changes when the neuron goes, to first order.

    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference" (ICLR 2017),
    equation 8, per example.
    """

    name = "taylor"
    reads = (Read("calibration", "loss"),)

    @staticmethod
    def strength(effects: Tensor) -> Tensor:
        """Absolute effects."""
        return effects.abs()


class Fisher(_MeanOverExamples):
    """``mean_x g_j(x)^2`` of the loss: the diagonal empirical Fisher information of the neuron's mask.

    Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers" (NeurIPS 2022, arXiv 2204.09656); per
    example, where the published code squares the gradient of a batch's mean loss.
    """

    name = "fisher"
    reads = (Read("calibration", "loss"),)

    @staticmethod
    def strength(effects: Tensor) -> Tensor:
        """Squared effects."""
        return effects.square()


class GaussNewton(_MeanOverExamples):
    """``mean_x g_j(x)^2`` of random contrasts of the model's own outputs instead of the loss.

    In expectation ``g_j`` squared is the squared change of the centred logits (classes), or of the log-likelihood the
    model gives to tokens it draws itself (language models: the true Fisher information). Needs no labels, and does not
    vanish where a fine-tuned model is right and sure. Source: Martens, "New Insights and Perspectives on the Natural
    Gradient Method" (JMLR 2020), sections 5 and 8.
    """

    name = "gauss_newton"
    reads = (Read("calibration", "sampled"),)

    @staticmethod
    def strength(effects: Tensor) -> Tensor:
        """Squared effects."""
        return effects.square()


class Attribution(Criterion):
    """``|g_j(x)|`` of the loss, averaged over the examples of a class, then over classes; finds task neurons.

    Source: Leng and Xiong, "Towards Understanding Multi-Task Learning (Generalization) of LLMs via Detecting and
    Exploring Task-Specific Neurons" (COLING 2025, arXiv 2407.06488), ``|l(a_j = 0) - l| ~ |a_j dl/da_j|``. Every class
    counts the same here, so that a rare one is not drowned; with equal classes this is `Taylor`. The detail
    ``per_class``, ``(classes, neurons)``, tells which class a neuron works for.
    """

    name = "attribution"
    reads = (Read("calibration", "loss"),)

    def start(self, ffn: FFN, split: Split, device: torch.device) -> State:
        """A sum per class and neuron and the number of examples per class; one class where a task has none."""
        classes = max(1, len(self.settings.labels))
        return {"sum": zeros(device, classes, ffn.columns), "examples": zeros(device, classes)}

    def update(self, read: Read, seen: Observation) -> None:
        """Adds the batch's examples to their classes."""
        state, labels = self.state(seen.ffn, read.split, seen.effects.device), seen.batch.labels
        sums = torch.zeros_like(state["sum"]).index_add_(0, labels, seen.effects.double().abs())
        counts = torch.bincount(labels, minlength=len(state["examples"]))
        state["sum"] += sums
        state["examples"] += counts

    def finish(self, ffn: FFN) -> LayerScores:
        """Means over the classes that occur, ``(neurons,)``."""
        state = self.state(ffn)
        present = state["examples"] > 0
        per_class = state["sum"] / state["examples"].clamp(min=1).unsqueeze(1)
        mean = per_class[present].mean(dim=0) if bool(present.any()) else per_class.sum(dim=0)
        return LayerScores(vector(mean), {"per_class": vector(per_class)})

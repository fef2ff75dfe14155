"""What a pruned model is trained towards: the dense model's answers and hidden states, and labels where asked for.

Answers: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. Hidden states: Jiao et al.,
"TinyBERT", arXiv 1909.10351, and for pruned models Xia et al., "Structured Pruning Learns Compact and Accurate Models"
(CoFi), arXiv 2204.00408. Neuron pruning leaves depth and hidden size alone, so layers pair one to one and no projection
between them has to be learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from skillprune.answers import Answers, TaskModel
from skillprune.data import Batch
from skillprune.families import find_ffns
from skillprune.recovery.teacher import Teacher, leaving
from skillprune.recovery.values import RecoverySettings

_LEAST_SPREAD = 1e-3
"""Of the states' energy; a batch with one real token has no variance to divide by."""


class Objective(Protocol):
    """What training lowers."""

    @property
    def student(self) -> TaskModel:
        """The model that is trained."""
        ...

    def on(self, batch: Batch) -> tuple[Tensor, Answers]:
        """The loss, a scalar that can be differentiated by the student's parameters, and what the student said."""
        ...


@dataclass(frozen=True, eq=False)
class Distance:
    """The distance from a student to its teacher.

    Attributes:
        student: the pruned model.
        teacher: the dense one.
        settings: weights of the parts.
    """

    student: TaskModel
    teacher: Teacher
    settings: RecoverySettings

    def on(self, batch: Batch) -> tuple[Tensor, Answers]:
        """The distance, a scalar, and what the student said."""
        prepared = self.student.prepare(batch)
        with leaving(self.student) as states:
            answers = self.student.ask(prepared)
        shown = self.teacher.on(batch)
        loss = answer_loss(answers, shown.answers, self.settings.temperature)
        if self.settings.hidden_weight > 0:
            sides = [ffn.stack.side for ffn in find_ffns(self.student.model) for _ in range(ffn.uses)]
            real = [prepared.mask_of(side) for side in sides]
            loss = loss + self.settings.hidden_weight * hidden_loss(states, shown.states, real).to(loss.device)
        if self.settings.label_weight > 0:
            loss = loss + self.settings.label_weight * answers.losses().sum() / len(answers)
        return loss, answers


@dataclass(frozen=True, eq=False)
class Labels:
    """The distance from a model's answers to the right ones: plain fine-tuning.

    Attributes:
        student: the model that is trained.
    """

    student: TaskModel

    def on(self, batch: Batch) -> tuple[Tensor, Answers]:
        """Cross-entropy, mean over examples: a scalar, and what the student said."""
        answers = self.student.ask(self.student.prepare(batch))
        return answers.losses().mean(), answers


def answer_loss(student: Answers, teacher: Answers, temperature: float) -> Tensor:
    """``T^2 KL(teacher || student)`` of the answers softened by the temperature ``T``, mean over answers: a scalar.

    The square keeps the size of gradients about the same at every temperature (Hinton et al., section 2).
    """
    said, wanted = ((answers.choices() / temperature).log_softmax(dim=-1) for answers in (student, teacher))
    return temperature**2 * kl_div(said, wanted.to(said), log_target=True, reduction="batchmean")


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Share of the variance of the teacher's hidden states that the student's miss, mean over layers: a scalar.

    Divided by the variance, a layer with large states counts no more than one with small ones, and 0.1 means the same
    in every model: a tenth is missed.

    Args:
        student: what leaves every block, each ``(batch, sequence, hidden)``.
        teacher: the same of the teacher.
        real: True at the tokens that count, each ``(batch, sequence)``.
    """
    shares = [_missed(*layer) for layer in zip(student, teacher, real, strict=True)]
    return torch.stack([share.to(shares[-1].device) for share in shares]).mean()


def _missed(found: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
    real = real.to(found.device)
    found, wanted = found[real].float(), wanted.to(found.device)[real].float()
    spread = (wanted - wanted.mean(dim=0)).square().sum()
    return (found - wanted).square().sum() / torch.maximum(spread, _LEAST_SPREAD * wanted.square().sum())

"""Puts a batch to a model and reads the answer: a score per class, or a token at every position.

A task model hides how a task is put to a checkpoint (a head, a prompt with label words, plain language modelling), so
that scoring and evaluation treat them all alike; how batches are made is left to data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from skillprune.data import NO_TARGET, Batch


class Answers(ABC):
    """What a model said to the examples of a batch; every quantity can be differentiated."""

    @abstractmethod
    def losses(self) -> Tensor:
        """Cross-entropy of the right answer, summed over an example's tokens where it has several: ``(batch,)``."""

    @abstractmethod
    def sampled(self, seed: int, indices: Tensor) -> Tensor:
        """A random scalar per example, ``(batch,)``, whose squared gradients average to a Gauss-Newton matrix.

        It does not vanish where the model is right and sure, as the gradient of the loss does. The draw belongs to the
        example (``indices``) and the seed, so it does not depend on how examples were batched.
        """

    @abstractmethod
    def choices(self) -> Tensor:
        """Logits of all that was to be answered, float32 or wider, ``(choices, options)``.

        One row per example, or per target token.
        """

    @abstractmethod
    def __len__(self) -> int:
        """How many choices there are."""


@dataclass(frozen=True, eq=False)
class ClassAnswers(Answers):
    """Scores of classes.

    Attributes:
        scores: logits, ``(batch, classes)``.
        labels: right classes, ``(batch,)``.
    """

    scores: Tensor
    labels: Tensor

    def losses(self) -> Tensor:
        """Cross-entropy of the labels, ``(batch,)``."""
        return cross_entropy(_precise(self.scores), self.labels, reduction="none")

    def sampled(self, seed: int, indices: Tensor) -> Tensor:
        """A random contrast of the logits, ``(batch,)``.

        The contrast ``c`` is uniform on the sphere of radius ``sqrt(classes - 1)`` orthogonal to the vector of ones, so
        ``E[c c^T] = I - 1 1^T / classes``; with two classes it is the margin up to its sign and a constant.
        """
        classes = self.scores.shape[1]
        drawn = np.stack([_generator(seed, index).standard_normal(classes) for index in indices.tolist()])
        drawn -= drawn.mean(axis=1, keepdims=True)
        drawn *= np.sqrt(classes - 1) / np.linalg.norm(drawn, axis=1, keepdims=True)
        scores = _precise(self.scores)
        return (scores * torch.from_numpy(drawn).to(scores)).sum(dim=1)

    def choices(self) -> Tensor:
        """The scores, ``(batch, classes)``."""
        return _precise(self.scores)

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, eq=False)
class TokenAnswers(Answers):
    """Scores of the vocabulary where a token is to be predicted.

    Attributes:
        logits: ``(choices, vocabulary)``, example by example.
        targets: right tokens, `NO_TARGET` where nothing is predicted, ``(batch, target)``.
    """

    logits: Tensor
    targets: Tensor

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor) -> TokenAnswers:
        """Leaves out what a model said where nothing is predicted, of ``(batch, target, vocabulary)``."""
        rows = (targets != NO_TARGET).flatten().nonzero().squeeze(1)
        return cls(logits.flatten(0, 1).index_select(0, rows), targets)

    def losses(self) -> Tensor:
        """Cross-entropy summed over the targets of an example, ``(batch,)``."""
        return self._losses_of(self.targets[self._wanted])

    def sampled(self, seed: int, indices: Tensor) -> Tensor:
        """Log-likelihood of one token drawn from the model at every target position, summed, ``(batch,)``."""
        counts = zip(indices.tolist(), self._wanted.sum(dim=1).tolist(), strict=True)
        draws = torch.from_numpy(np.concatenate([_generator(seed, index).random(count) for index, count in counts]))
        with torch.no_grad():
            reached = self.choices().softmax(dim=-1).cumsum_(dim=-1)
            tokens = (reached < draws.to(reached).unsqueeze(1) * reached[:, -1:]).sum(dim=-1)
        return -self._losses_of(tokens.clamp(max=self.logits.shape[-1] - 1))

    def choices(self) -> Tensor:
        """The logits, ``(targets, vocabulary)``."""
        return _precise(self.logits)

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def _wanted(self) -> Tensor:
        return self.targets != NO_TARGET

    def _losses_of(self, tokens: Tensor) -> Tensor:
        losses = cross_entropy(self.choices(), tokens, reduction="none")
        return losses.new_zeros(self.targets.shape).masked_scatter(self._wanted, losses).sum(dim=1)


def label_names(model: PreTrainedModel) -> tuple[str, ...]:
    """A classifier's class names in the order of their ids."""
    names = {int(index): str(name) for index, name in (model.config.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names))


@dataclass(frozen=True, eq=False)
class TaskModel(ABC):
    """A model and the way a task is put to it.

    Attributes:
        model: the checkpoint.
    """

    model: PreTrainedModel

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their scores; none where the checkpoint does not know them."""
        return ()

    def prepare(self, batch: Batch) -> Batch:
        """The batch as the model's FFNs will see it, on the model's device."""
        device = self.model.device
        # The hooks that move an offloaded model's weights move its inputs too.
        return batch if device.type == "meta" else batch.to(device)

    @abstractmethod
    def ask(self, batch: Batch) -> Answers:
        """Runs the model on a prepared batch."""


class Classifier(TaskModel):
    """A model with a classification head."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names as in the config."""
        return label_names(self.model)

    def ask(self, batch: Batch) -> ClassAnswers:
        """The head's logits."""
        return ClassAnswers(self.model(**batch.inputs).logits, batch.labels)


@dataclass(frozen=True, eq=False)
class Verbalizer(TaskModel):
    """A language model that answers a prompt with one of the label words.

    Attributes:
        words: token of every class's label word.
    """

    words: tuple[int, ...]

    def ask(self, batch: Batch) -> ClassAnswers:
        """The logits of the label words at the position that answers."""
        logits = self.model(**batch.inputs).logits
        assert batch.answer is not None  # batches of prompt tasks know where their answer is
        said = logits[torch.arange(len(batch), device=logits.device), batch.answer.to(logits.device)]
        return ClassAnswers(said[:, list(self.words)], batch.labels.to(logits.device))


class Writer(TaskModel):
    """A model whose task is to predict tokens: a causal language model, or an encoder with a decoder."""

    def ask(self, batch: Batch) -> TokenAnswers:
        """The logits of the vocabulary wherever a token is to be predicted."""
        logits = self.model(**batch.inputs, use_cache=False).logits
        assert batch.targets is not None  # batches of generative tasks have targets
        return TokenAnswers.of(logits, batch.targets.to(logits.device))


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, index])


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

"""What the dense model says to every batch: asked once, and remembered from epoch to epoch while there is room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skillprune.activations import free_bytes
from skillprune.answers import Answers, TaskModel
from skillprune.data import Batch
from skillprune.families import find_ffns

_MEMORY_SHARE = 0.25
"""Most of the free memory of the teacher's device, as training begins, that what it said may take."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What a teacher makes of one batch.

    Attributes:
        answers: what it says.
        states: the hidden states ``(batch, sequence, hidden)`` that leave its blocks, stack by stack, bottom to top.
    """

    answers: Answers
    states: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        answers = [value for value in vars(self.answers).values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*answers, *self.states))


class Teacher:
    """A dense model that answers a batch it has seen before without computing, as long as its memory lasts.

    Batches are told apart by identity. A batch for which there is no room is computed every time: the hidden states of
    a large train split are gigabytes.

    Attributes:
        subject: the model and how the task is put to it; it must not change meanwhile.
    """

    def __init__(self, subject: TaskModel, room: float | None = None) -> None:
        """Remembers nothing yet.

        Args:
            subject: the model.
            room: bytes; a share of what is free if left out.
        """
        self.subject = subject
        self._room = _MEMORY_SHARE * free_bytes(subject.model.device) if room is None else room
        self._seen: dict[int, tuple[Batch, Shown]] = {}

    def on(self, batch: Batch) -> Shown:
        """What it makes of a batch; nothing of it is differentiated."""
        if id(batch) in self._seen:
            return self._seen[id(batch)][1]
        with torch.no_grad(), leaving(self.subject) as states:
            answers = self.subject.ask(self.subject.prepare(batch))
        shown = Shown(answers, tuple(states))
        if shown.bytes <= self._room:
            self._room -= shown.bytes
            self._seen[id(batch)] = batch, shown  # the batch too: while it lives, nothing else has its identity
        return shown


@contextmanager
def leaving(subject: TaskModel) -> Iterator[list[Tensor]]:
    """Collects the hidden states that leave the blocks, stack by stack, bottom to top."""
    states: list[Tensor] = []

    def remember(_: nn.Module, __: object, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for ffn in find_ffns(subject.model):
            hooks.callback(ffn.block.register_forward_hook(remember).remove)
        yield states

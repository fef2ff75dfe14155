"""What the dense network reads and writes in every block: where the repair of a pruned one is to lead back to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from skillprune.activations import free_bytes, inputs_of
from skillprune.data import Batch
from skillprune.families import FFN, find_ffns
from skillprune.progress import Progress, track
from skillprune.repair.carry import Trace, advance, outputs_of, step
from skillprune.repair.states import States, room_for

_MEMORY_SHARE = 0.3
_BYTES = 16  # of a lesson, per token and feature: four states in float32


@dataclass(frozen=True)
class Lesson:
    """One block of the dense network, batch by batch, each ``(batch, sequence, hidden)``; streams in float32 at least.

    Attributes:
        attended: the stream after attention.
        read: what its FFN reads.
        written: the stream after its FFN.
        listened: what its attention reads, if the projections it reads through may be rewritten.
    """

    attended: States
    read: States
    written: States
    listened: States | None = None


class Teacher:
    """The dense network on its way up one stack, with hidden states in its hands.

    Goes on with the trace's own hidden states, which are of no use to others afterwards.
    """

    def __init__(self, dense: Trace, batches: Sequence[Batch], progress: Progress, *, remembers: bool) -> None:
        """One that remembers can give its lessons again, and run beside several pruned networks one after the other."""
        self.calls = dense.calls
        self._start = dense.hidden.copy() if remembers else dense.hidden
        self._hidden, self._batches, self._progress, self._remembers = dense.hidden, batches, progress, remembers
        self._lessons: dict[int, Lesson] = {}
        self._next = 0

    def start(self) -> States:
        """What enters the stack; to be asked for before anything else."""
        return self._start.copy()

    def lesson(self, ffn: FFN) -> Lesson:
        """Of a block that nothing was rewritten in yet, or that was learnt before."""
        if ffn.layer not in self._lessons:
            assert ffn.layer == self._next  # blocks below were learnt or left
            self._lessons[ffn.layer] = self._learn(ffn)
            self._next += 1
        return self._lessons[ffn.layer]

    def leave(self, ffn: FFN) -> None:
        """Goes on to the next block."""
        if ffn.layer == self._next:
            if self._remembers:
                self.lesson(ffn)
            else:
                for number in range(len(self._batches)):
                    self._hidden[number] = advance(ffn, self._hidden[number], self.calls[ffn.layer][number])
                self._next += 1
        if not self._remembers:
            self._lessons.pop(ffn.layer, None)

    def _learn(self, ffn: FFN) -> Lesson:
        what = f"dense network ({ffn.stack.name} layer {ffn.layer})"
        kept: list[States] = []
        for number, _ in enumerate(track(self._batches, what, self._progress)):
            seen = tuple(self._watch(ffn, number))
            kept = kept or [room_for(tensor, self._batches, ffn.stack.side) for tensor in seen]
            for states, tensor in zip(kept, seen, strict=True):
                states.append(tensor)
        return Lesson(*kept)

    def _watch(self, ffn: FFN, number: int) -> Iterator[Tensor]:
        """Takes one batch through the block."""
        entering = precise(self._hidden[number])
        with ExitStack() as hooks:
            *listening, attention = map(ffn.block.get_submodule, (*ffn.stack.attending[:1], ffn.stack.attention))
            listened = [hooks.enter_context(inputs_of(module)) for module in listening]
            attended = hooks.enter_context(outputs_of(attention))
            seen = step(ffn, self._hidden[number], self.calls[ffn.layer][number])
        self._hidden[number] = seen.hidden
        yield ffn.attention_addition.goal(entering.to(attended[0].device), precise(attended[0]))
        yield seen.read
        yield ffn.addition.goal(seen.residual, precise(seen.written))
        for calls in listened:
            yield calls[0]


@dataclass(frozen=True)
class Lessons:
    """The dense network's teachers by stack, for repairs that share what they would all compute alike.

    Only repairs of the same dense model on the same batches may share them.
    """

    teachers: dict[str, Teacher] = field(default_factory=dict)


def lessons_if_room(model: PreTrainedModel, batches: Sequence[Batch]) -> Lessons | None:
    """Lessons that will fit into a part of the free memory; none if repairs had better compute alike again."""
    wanted = sum(
        sum(batch.mask_of(ffn.stack.side).numel() for batch in batches) * ffn.hidden * _BYTES
        for ffn in find_ffns(model)
    )
    return Lessons() if wanted <= _MEMORY_SHARE * free_bytes(model.device) else None


def precise(stream: Tensor) -> Tensor:
    """In float32 at least: the difference of two streams in half precision has few digits left."""
    return stream.to(torch.promote_types(stream.dtype, torch.float32))

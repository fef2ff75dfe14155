"""Goes through a stack block by block with hidden states in its hands, and tells what a layer sees and should write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from skillprune.data import Batch
from skillprune.families import FFN, Matrix, Side, copy_of
from skillprune.progress import Progress, track
from skillprune.repair.carry import Trace, advance, enter, finish, read_by, step
from skillprune.repair.lessons import Teacher, precise
from skillprune.repair.methods import Statistics
from skillprune.repair.moments import Moments
from skillprune.repair.states import States, room_for

HELD_OUT = 10
"""Every tenth calibration example measures the error of a repair instead of shaping it."""

_LEAST_VARIANCE = 1e-10

Weigh = Callable[[Tensor], Tensor]
"""How much tokens count, ``(batch, sequence)``, given the dense stream there, ``(batch, sequence, hidden)``."""


class Walk(Protocol):
    """Stands before one block after the other. In each, questions come in this order, each once or not at all.

    The first three find nothing where the network below has not changed. In between a block may be rewritten.
    """

    def attending(self, ffn: FFN) -> Statistics | None:
        """What the block's attention reads, and what it should read."""
        ...

    def attention(self, ffn: FFN) -> Statistics | None:
        """What the attention's output projection reads, and what it should write."""
        ...

    def entering(self, ffn: FFN) -> Statistics | None:
        """What the FFN reads, and what it should read."""
        ...

    def ffn(self, ffn: FFN, read: Sequence[int]) -> Statistics:
        """Some neurons' activations, and what the down projection should write."""
        ...

    def leave(self, ffn: FFN, kept: Sequence[int]) -> None:
        """Goes on to the next block, through this one as it is now, with the neurons it has kept."""
        ...


@dataclass(frozen=True)
class _Halt:
    """The pruned network within a block, before its down projection: states are the stream that one will add to."""

    read: Sequence[int]
    fired: States

    def activations(self, number: int, kept: Sequence[int]) -> Tensor:
        """Of some of the neurons that were read."""
        place = {neuron: position for position, neuron in enumerate(self.read)}
        return self.fired[number][..., [place[neuron] for neuron in kept]]


class SideBySide:
    """Carries the pruned network beside the dense one, to whose residual stream targets lead it back.

    Goes on with the pruned network's own hidden states, which are of no use to others afterwards.
    """

    def __init__(
        self, teacher: Teacher, pruned: Trace | None, batches: Sequence[Batch], weigh: Weigh, progress: Progress
    ) -> None:
        """Without a trace of the pruned network it enters the stack as the dense one does."""
        self._teacher, self._batches, self._weigh, self._progress = teacher, batches, weigh, progress
        self._apart = pruned is not None
        self.changed = False  # no block of this stack has lost neurons yet
        self._calls = teacher.calls if pruned is None else pruned.calls
        self._student = teacher.start() if pruned is None else pruned.hidden
        self._read, self._entered = self._student.copy(), -1  # what the FFN reads in a block that was entered
        self._halt: _Halt | None = None

    def attending(self, ffn: FFN) -> Statistics | None:
        """The input of the projections that attention reads through, in the pruned and in the dense network."""
        if not self._apart or not ffn.attending:
            return None
        lesson, found = self._teacher.lesson(ffn), _unheard(ffn.attending[0])
        assert lesson.listened is not None  # there is something that it reads through
        for number, batch in enumerate(track(self._batches, f"{_place(ffn)} attention's input", self._progress)):
            read = read_by(ffn.attending[0].module, ffn, self._student[number], self._calls[ffn.layer][number])
            _add(found, batch, ffn.stack.side, read, lesson.listened[number].to(read.device), alike(read))
        return found

    def attention(self, ffn: FFN) -> Statistics | None:
        """The projection's input in the pruned network, and what would make its stream the dense one's."""
        if not self._apart:
            return None
        lesson, found = self._teacher.lesson(ffn), _nothing(ffn.attention)
        for number, batch in enumerate(track(self._batches, f"{_place(ffn)} attention", self._progress)):
            read = read_by(ffn.attention.module, ffn, self._student[number], self._calls[ffn.layer][number])
            wanted = lesson.attended[number].to(read.device)
            target = ffn.attention_addition.part(wanted, self._student[number].to(read.device))
            _add(found, batch, ffn.stack.side, read, target, self._weigh(wanted))
        return found

    def entering(self, ffn: FFN) -> Statistics | None:
        """The FFN's input in the pruned and in the dense network."""
        if not self._apart:
            return None
        lesson, found = self._teacher.lesson(ffn), _unheard(ffn.up)
        for number, batch in enumerate(track(self._batches, f"{_place(ffn)} input", self._progress)):
            read = self._enter(ffn, number)
            _add(found, batch, ffn.stack.side, read, lesson.read[number].to(read.device), alike(read))
        self._entered = ffn.layer
        return found

    def ffn(self, ffn: FFN, read: Sequence[int]) -> Statistics:
        """Activations are the pruned network's, and only of the neurons that are read."""
        lesson, narrow = self._teacher.lesson(ffn), _narrowed(ffn, read)
        found = _nothing(narrow.down)
        fired = room_for(self._student[0].new_empty(0, len(read)), self._batches, ffn.stack.side)
        for number, batch in enumerate(track(self._batches, _place(ffn), self._progress)):
            entered = self._read[number] if self._entered == ffn.layer else self._enter(ffn, number)
            with torch.inference_mode():
                activations = narrow.fire(entered)
            residual = self._student[number].to(activations.device)
            wanted = lesson.written[number].to(residual.device)
            target = ffn.addition.part(wanted, residual)
            _add(found, batch, ffn.stack.side, activations, target, self._weigh(wanted))
            fired.append(activations)
        self._halt, self.changed = _Halt(read, fired), True
        return found

    def leave(self, ffn: FFN, kept: Sequence[int]) -> None:
        """A block that was looked at, the pruned network has half done."""
        halt, self._halt = self._halt, None
        self._teacher.leave(ffn)
        for number in range(len(self._batches)):
            if halt is None:
                self._student[number] = advance(ffn, self._student[number], self._calls[ffn.layer][number])
            else:
                self._student[number] = finish(ffn, self._student[number], halt.activations(number, kept))
        self._apart = self._apart or self.changed

    def _enter(self, ffn: FFN, number: int) -> Tensor:
        """Takes the pruned network to the FFN, whose input is kept and returned."""
        read, self._student[number] = enter(ffn, self._student[number], self._calls[ffn.layer][number])
        self._read[number] = read
        return read


class Dense:
    """Carries the dense network alone: every layer is to write what it wrote, given what it saw.

    Goes on with the trace's own hidden states, which are of no use to others afterwards.
    """

    def __init__(self, dense: Trace, batches: Sequence[Batch], weigh: Weigh, progress: Progress) -> None:
        self._dense, self._batches, self._weigh, self._progress = dense, batches, weigh, progress
        self._hidden = dense.hidden
        self._taught = -1

    def attending(self, ffn: FFN) -> None:
        """Nothing below has changed as far as this walk can see."""

    def attention(self, ffn: FFN) -> None:
        """Nothing below has changed as far as this walk can see."""

    def entering(self, ffn: FFN) -> None:
        """Nothing below has changed as far as this walk can see."""

    def ffn(self, ffn: FFN, read: Sequence[int]) -> Statistics:
        """Activations and outputs of the block as it is."""
        found = _no_moments(len(read), ffn.hidden, ffn.device)
        for number, batch in enumerate(track(self._batches, _place(ffn), self._progress)):
            seen = step(ffn, self._hidden[number], self._dense.calls[ffn.layer][number])
            weights = self._weigh(ffn.addition.goal(seen.residual, precise(seen.written)))
            _add(found, batch, ffn.stack.side, seen.activations[..., list(read)], seen.written, weights)
            self._hidden[number] = seen.hidden
        self._taught = ffn.layer
        return found

    def leave(self, ffn: FFN, kept: Sequence[int]) -> None:
        """Goes on unless looking has done so."""
        if self._taught != ffn.layer:
            for number in range(len(self._batches)):
                self._hidden[number] = advance(ffn, self._hidden[number], self._dense.calls[ffn.layer][number])


def held_out(batch: Batch) -> Tensor:
    """True for examples that no fit sees, ``(batch,)``."""
    return batch.indices % HELD_OUT == HELD_OUT - 1


def alike(stream: Tensor) -> Tensor:
    """Every token counts the same."""
    return torch.ones(stream.shape[:-1], device=stream.device)


def inverse_variance(stream: Tensor) -> Tensor:
    """An error counts as what a layer norm makes of it, which divides by the stream's standard deviation.

    In pre-norm blocks and with a root mean square instead, this is the scale of what the next norm will see.
    """
    stream = precise(stream)
    deviations = stream - stream.mean(dim=-1, keepdim=True)
    return 1 / deviations.square().mean(dim=-1).clamp(min=_LEAST_VARIANCE)  # `var` itself is slow on a CPU


def _place(ffn: FFN) -> str:
    return f"repair ({ffn.stack.name} layer {ffn.layer})"


def _nothing(matrix: Matrix) -> Statistics:
    """Of what a projection reads and should write."""
    return _no_moments(matrix.in_features, matrix.out_features, matrix.weight.device)


def _unheard(matrix: Matrix) -> Statistics:
    """Of what a projection reads and should read."""
    return _no_moments(matrix.in_features, matrix.in_features, matrix.weight.device)


def _no_moments(inputs: int, outputs: int, device: torch.device) -> Statistics:
    return Statistics(Moments.zeros(inputs, outputs, device), Moments.zeros(inputs, outputs, device))


def _narrowed(ffn: FFN, read: Sequence[int]) -> FFN:
    """A copy of the block with only some neurons."""
    narrow = copy_of(ffn)
    if len(read) < ffn.width:
        narrow.keep_(read)
    return narrow


def _add(found: Statistics, batch: Batch, side: Side, activations: Tensor, target: Tensor, weights: Tensor) -> None:
    batch = batch.to(target.device)
    real, measuring = batch.mask_of(side), held_out(batch).unsqueeze(1)
    for moments, mask in ((found.fit, real & ~measuring), (found.held_out, real & measuring)):
        rows = mask.flatten().nonzero().squeeze(1)
        moments.add(*(values.flatten(0, 1).index_select(0, rows) for values in (activations, target, weights)))

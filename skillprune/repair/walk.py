"""Goes through a stack block by block with hidden states in its hands, and tells what a layer sees and should write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from skillprune.data import Batch
from skillprune.families import FFN, Side, copy_of
from skillprune.progress import Progress, track
from skillprune.repair.carry import Call, Step, Trace, advance, attend, finish, outputs_of, step
from skillprune.repair.methods import Statistics
from skillprune.repair.moments import Moments
from skillprune.repair.states import States, room_for
from skillprune.surgery import remove_neurons_

HELD_OUT = 10
"""Every tenth calibration example measures the error of a repair instead of shaping it."""

_LEAST_VARIANCE = 1e-10

Weigh = Callable[[Tensor], Tensor]
"""How much tokens count, ``(batch, sequence)``, given the dense stream there, ``(batch, sequence, hidden)``."""


class Walk(Protocol):
    """Stands before one block after the other. In each, `attention` may be asked for before `ffn`, and each once."""

    def attention(self, ffn: FFN) -> Statistics | None:
        """What the attention's output projection reads and should write; none where nothing below has changed."""
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
    """Carries the dense and the pruned network: targets lead the pruned one back to the dense one's residual stream.

    Goes on with the traces' own hidden states, which are of no use to others afterwards.
    """

    def __init__(self, dense: Trace, pruned: Trace, batches: Sequence[Batch], weigh: Weigh, progress: Progress) -> None:
        self._dense, self._pruned, self._batches, self._weigh, self._progress = dense, pruned, batches, weigh, progress
        self._teacher, self._student = dense.hidden, pruned.hidden if pruned is not dense else dense.hidden.copy()
        # The dense stream after the FFN of the block it was last filled for, in float32 at least.
        self._wanted = dense.hidden.copy(_precise(dense.hidden[0]).dtype)
        self._taught = -1
        self._halt: _Halt | None = None
        self._apart = pruned is not dense

    def attention(self, ffn: FFN) -> Statistics | None:
        """The projection's input in the pruned network, and what would make its stream the dense one's."""
        if not self._apart:
            return None
        found = _nothing(ffn.attention.weight)
        for number, batch in enumerate(track(self._batches, f"{_place(ffn)} attention", self._progress)):
            entering = _precise(self._teacher[number])
            with outputs_of(ffn.attention) as mixed:
                self._teach(ffn, number)
            read = attend(ffn, self._student[number], self._call(ffn, number))
            wanted = entering.to(read.device) + mixed[0]
            target = wanted - self._student[number].to(read.device)
            _add(found, batch, ffn.stack.side, read, target, self._weigh(wanted))
        self._taught = ffn.layer
        return found

    def ffn(self, ffn: FFN, read: Sequence[int]) -> Statistics:
        """Activations are the pruned network's, in a copy of the block with only the neurons that are read."""
        narrow = copy_of(ffn)
        if len(read) < ffn.width:
            remove_neurons_(narrow, read)
        found = _nothing(narrow.down.weight)
        fired = room_for(self._student[0].new_empty(0, len(read)), self._batches, ffn.stack.side)
        for number, batch in enumerate(track(self._batches, _place(ffn), self._progress)):
            seen = self._look(ffn, narrow, read, number)
            wanted = self._wanted[number].to(seen.residual.device)
            _add(found, batch, ffn.stack.side, seen.activations, wanted - seen.residual, self._weigh(wanted))
            fired.append(seen.activations)
            self._student[number] = seen.residual
        self._taught, self._halt = ffn.layer, _Halt(read, fired)
        return found

    def leave(self, ffn: FFN, kept: Sequence[int]) -> None:
        """Of a block that was looked at, the dense network has left already, and the pruned one has half done it."""
        halt, self._halt = self._halt, None
        for number in range(len(self._batches)):
            if self._taught != ffn.layer:
                self._teacher[number] = advance(ffn, self._teacher[number], self._dense.calls[ffn.layer][number])
            if halt is None:
                self._student[number] = advance(ffn, self._student[number], self._call(ffn, number))
            else:
                self._student[number] = finish(ffn, self._student[number], halt.activations(number, kept))
        self._apart = self._apart or self._taught == ffn.layer

    def _look(self, ffn: FFN, narrow: FFN, read: Sequence[int], number: int) -> Step:
        """The pruned network in the narrow block. Below the first cut it is the dense one, which passes anyway."""
        if not self._apart:
            seen = self._teach(ffn, number)
            return replace(seen, activations=seen.activations[..., list(read)])
        if self._taught != ffn.layer:
            self._teach(ffn, number)
        return step(narrow, self._student[number], self._call(ffn, number))

    def _teach(self, ffn: FFN, number: int) -> Step:
        """Takes the dense network through the block, which is still whole."""
        seen = step(ffn, self._teacher[number], self._dense.calls[ffn.layer][number])
        self._teacher[number], self._wanted[number] = seen.hidden, _precise(seen.written) + seen.residual
        return seen

    def _call(self, ffn: FFN, number: int) -> Call:
        return self._pruned.calls[ffn.layer][number]


class Dense:
    """Carries the dense network alone: every layer is to write what it wrote, given what it saw.

    Goes on with the trace's own hidden states, which are of no use to others afterwards.
    """

    def __init__(self, dense: Trace, batches: Sequence[Batch], weigh: Weigh, progress: Progress) -> None:
        self._dense, self._batches, self._weigh, self._progress = dense, batches, weigh, progress
        self._hidden = dense.hidden
        self._taught = -1

    def attention(self, ffn: FFN) -> None:
        """Nothing below has changed as far as this walk can see."""

    def ffn(self, ffn: FFN, read: Sequence[int]) -> Statistics:
        """Activations and outputs of the block as it is."""
        found = _nothing(ffn.down.weight[:, : len(read)])
        for number, batch in enumerate(track(self._batches, _place(ffn), self._progress)):
            seen = step(ffn, self._hidden[number], self._dense.calls[ffn.layer][number])
            weights = self._weigh(_precise(seen.written) + seen.residual)
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
    stream = _precise(stream)
    deviations = stream - stream.mean(dim=-1, keepdim=True)
    return 1 / deviations.square().mean(dim=-1).clamp(min=_LEAST_VARIANCE)  # `var` itself is slow on a CPU


def _precise(stream: Tensor) -> Tensor:
    """In float32 at least: the difference of two streams in half precision has few digits left."""
    return stream.to(torch.promote_types(stream.dtype, torch.float32))


def _place(ffn: FFN) -> str:
    return f"repair ({ffn.stack.name} layer {ffn.layer})"


def _nothing(weight: Tensor) -> Statistics:
    outputs, inputs = weight.shape
    return Statistics(Moments.zeros(inputs, outputs, weight.device), Moments.zeros(inputs, outputs, weight.device))


def _add(found: Statistics, batch: Batch, side: Side, activations: Tensor, target: Tensor, weights: Tensor) -> None:
    batch = batch.to(target.device)
    real, measuring = batch.mask_of(side), held_out(batch).unsqueeze(1)
    for moments, mask in ((found.fit, real & ~measuring), (found.held_out, real & measuring)):
        rows = mask.flatten().nonzero().squeeze(1)
        moments.add(*(values.flatten(0, 1).index_select(0, rows) for values in (activations, target, weights)))

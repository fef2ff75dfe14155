"""Runs a model over batches and shows every FFN's activations, and gradients if asked for, to those who visit.

Memory does not grow with the number of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from math import prod

import torch
from torch import Tensor, nn

from skillprune.activations.capacity import Capacity
from skillprune.activations.heap import release_freed_memory
from skillprune.activations.hooks import differentiable, evaluating, frozen, inputs_of, joined
from skillprune.activations.observation import Observation
from skillprune.activations.pooling import Reading
from skillprune.answers import Answers, TaskModel
from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.families import FFN, Site
from skillprune.progress import Progress, silent, track

Quantity = Callable[[Answers, Batch], Tensor]
"""Turns answers into one number per example, ``(batch,)``, to be differentiated."""

PLAIN = ""
"""Name of the pass without gradients."""

RELEASE_EVERY = 4  # batches; what they free is given back, so that memory does not grow, at little cost in time


@dataclass(frozen=True)
class Visitor:
    """Somebody who looks at observations.

    Attributes:
        quantity: name of the quantity whose gradients are wanted, `PLAIN` for activations only.
        sites: FFNs of interest.
        look: called once per FFN of interest and batch.
    """

    quantity: str
    sites: frozenset[Site]
    look: Callable[[Observation], None]


def stream(
    subject: TaskModel,
    ffns: Sequence[FFN],
    batches: Mapping[int, Batch],
    visitors: Sequence[Visitor],
    *,
    quantities: Mapping[str, Quantity],
    reading: Reading = Reading(),  # noqa: B008  # frozen
    what: str = "activations",
    progress: Progress = silent,
) -> None:
    """Runs the model once per batch for all visitors, with one backward pass per quantity that some visitor names.

    Batches come with the number that messages call them by. Without visitors who want gradients only one layer's
    activations are alive at a time. Every module and parameter is left as it came in, without hooks, whatever happens.

    Raises:
        ResourceFailure: not even one example fits into the device's memory.
        DataError: an activation or a gradient is not finite.
    """
    wanted = {visitor.quantity for visitor in visitors} - {PLAIN}
    look = _differentiate if wanted else _watch
    run = _Run(subject, ffns, tuple(visitors), {name: quantities[name] for name in sorted(wanted)}, reading)
    capacity = Capacity()

    def put(piece: Batch) -> None:
        look(run, piece)
        run.start += len(piece)

    with evaluating(subject.model):
        for done, number in enumerate(track(list(batches), what, progress)):
            if done % RELEASE_EVERY == 0:
                release_freed_memory()
            run.begin(number)
            capacity.run(batches[number], put)
    release_freed_memory()


@dataclass
class _Run:
    """One stream under way: which batch, where in it, and how many of its examples every visitor has seen."""

    subject: TaskModel
    ffns: Sequence[FFN]
    visitors: tuple[Visitor, ...]
    quantities: Mapping[str, Quantity]
    reading: Reading
    number: int = 0
    start: int = 0
    seen: dict[tuple[int, Site], int] = field(default_factory=dict)

    def begin(self, number: int) -> None:
        """The next batch."""
        self.number, self.start, self.seen = number, 0, {}

    def show(self, quantity: str, observation: Observation) -> None:
        """Hands an observation to those who wait for it.

        A batch that did not fit comes again in parts; who had seen it before memory ran out is not shown them.
        """
        site, end = observation.ffn.site, self.start + len(observation.batch)
        for key, visitor in enumerate(self.visitors):
            waits = visitor.quantity == quantity and site in visitor.sites
            if waits and self.seen.get((key, site), 0) < end:
                visitor.look(observation)
                self.seen[key, site] = end

    def observe(self, ffn: FFN, batch: Batch, entering: Tensor, gradients: Sequence[Tensor] = ()) -> Observation:
        """What is seen of one FFN: what entered the watched module, and the gradients there and where it left."""
        moved = batch if batch.labels.device == entering.device else batch.to(entering.device)
        seen = [ffn.activations(entering)]
        if gradients:
            seen += [ffn.gradients(*gradients), gradients[1]]
        # Some blocks lay their tokens in a row before the FFN.
        shaped = (
            tensor.reshape(len(batch), prod(tensor.shape[:-1]) // len(batch), tensor.shape[-1]) for tensor in seen
        )
        return Observation(ffn, moved, self.number, self.reading, *shaped)


def _watch(run: _Run, batch: Batch) -> None:
    """A forward pass that shows each layer as soon as its block is done."""
    prepared = run.subject.prepare(batch)
    with ExitStack() as stack, torch.inference_mode():
        for ffn in run.ffns:
            calls, turns = stack.enter_context(inputs_of(ffn.watched)), count(1)

            def deliver(
                _: nn.Module,
                __: object,
                ___: object,
                ffn: FFN = ffn,
                calls: list[Tensor] = calls,
                turns: Iterator[int] = turns,
            ) -> None:
                if next(turns) % ffn.uses == 0:
                    run.show(PLAIN, run.observe(ffn, prepared, joined(calls)))

            stack.callback(ffn.block.register_forward_hook(deliver).remove)
        run.subject.ask(prepared)


def _differentiate(run: _Run, batch: Batch) -> None:
    """A forward pass and one backward pass per quantity; all layers of the batch are alive at once."""
    prepared = run.subject.prepare(batch)
    with ExitStack() as stack, frozen(run.subject.model), torch.enable_grad():
        nodes = [stack.enter_context(differentiable(ffn.watched)) for ffn in run.ffns]
        answers = run.subject.ask(prepared)
        for ffn, (inputs, _) in zip(run.ffns, nodes, strict=True):
            run.show(PLAIN, run.observe(ffn, prepared, _whole(inputs)))
        for left, (name, quantity) in zip(range(len(run.quantities))[::-1], run.quantities.items(), strict=True):
            total = quantity(answers, prepared).sum()
            _refuse_not_finite(run, total, prepared, nodes)
            for ffn, entering, gradients in _gradients(total, run.ffns, nodes, keep_graph=left > 0):
                run.show(name, run.observe(ffn, prepared, entering, gradients))


def _refuse_not_finite(
    run: _Run, total: Tensor, batch: Batch, nodes: Sequence[tuple[list[Tensor], list[Tensor]]]
) -> None:
    """Names the lowest layer that went wrong; gradients alone would all be wrong below it."""
    if bool(total.isfinite()):
        return
    for ffn, (inputs, _) in zip(run.ffns, nodes, strict=True):
        run.observe(ffn, batch, _whole(inputs)).check()
    raise DataError(f"the model's answers are not finite in batch {run.number}")


def _gradients(
    total: Tensor, ffns: Sequence[FFN], nodes: Sequence[tuple[list[Tensor], list[Tensor]]], *, keep_graph: bool
) -> Iterator[tuple[FFN, Tensor, tuple[Tensor, Tensor]]]:
    flat = [tensor for inputs, outputs in nodes for tensor in (*inputs, *outputs)]
    found = iter(torch.autograd.grad(total, flat, retain_graph=keep_graph, allow_unused=True, materialize_grads=True))
    for ffn, (inputs, outputs) in zip(ffns, nodes, strict=True):
        at_inputs, at_outputs = ([next(found) for _ in calls] for calls in (inputs, outputs))
        yield ffn, _whole(inputs), (_whole(at_inputs), _whole(at_outputs))


def _whole(calls: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(calls), dim=1).detach() if len(calls) > 1 else calls[0].detach()

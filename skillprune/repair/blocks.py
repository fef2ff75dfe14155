"""Prunes block by block, fitting each to the dense network's output given the already pruned network below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from skillprune.activations import evaluating
from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.families import FFN, Side, by_stack, find_ffns
from skillprune.planning import PruningPlan
from skillprune.progress import Progress, silent
from skillprune.repair.carry import Trace, advance, step, trace
from skillprune.repair.methods import METHODS, zero
from skillprune.repair.moments import Moments
from skillprune.surgery import check_plan, record_widths_, remove_neurons_

HELD_OUT = 10
"""Every tenth calibration example measures the error of a repair instead of shaping it."""


@dataclass(frozen=True)
class LayerError:
    """How far one layer's output is from the dense network's, as a share of the target's variance, on held-out tokens.

    Attributes:
        stack: name of the stack.
        layer: index in the stack.
        before: after slicing only.
        after: after the repair.
    """

    stack: str
    layer: int
    before: float
    after: float

    def __str__(self) -> str:
        return f"  {self.stack} {self.layer:>2}  output missed: {self.before:7.2%} sliced, {self.after:7.2%} repaired"


def prune_and_repair_(
    model: PreTrainedModel,
    plan: PruningPlan,
    batches: Sequence[Batch],
    *,
    method: str = "least_squares",
    ridge: float = 0.01,
    progress: Progress = silent,
) -> tuple[LayerError, ...]:
    """Prunes in place, bottom to top, and repairs every down projection before the next block is looked at.

    The target of a layer is what its output must be for the residual stream to equal the dense network's, so every
    repair also corrects what the layers below got wrong. Hidden states of the dense and of the pruned network are
    carried from block to block: the cost is linear in depth.

    Args:
        model: a model the plan was made for; changed in place.
        plan: which neurons stay.
        batches: calibration batches; only real tokens count, in a decoder beside an encoder those with a target.
        method: ``zero``, ``mean`` or ``least_squares``.
        ridge: strength of the pull towards the old weights, relative to the mean squared activation.
        progress: told about every batch of every layer.

    Returns:
        The error of every pruned layer before and after its repair.

    Raises:
        PlanMismatch: the plan was made for other widths.
        DataError: there is nothing to fit on, or an activation is not finite; the model must not be used then.
        ValueError: there is no such method.
    """
    ffns = find_ffns(model)
    check_plan(ffns, plan)
    _refuse_unusable(method, ffns, batches)
    stacks = by_stack(ffns)
    errors: list[LayerError] = []
    with evaluating(model):
        dense = {name: trace(model, layers, batches, progress) for name, layers in stacks.items()}
        for number, (name, layers) in enumerate(stacks.items()):
            # Before the first stack nothing is pruned yet, so the pruned network enters it with what the dense one did;
            # later ones are traced again, because an encoder that was pruned hands its decoder other states.
            pruned = dense[name] if number == 0 else trace(model, layers, batches, progress)
            errors += _repair_stack(layers, plan.keep[name], dense[name], pruned, batches, method, ridge, progress)
    record_widths_(model)
    return tuple(errors)


def _refuse_unusable(method: str, ffns: Sequence[FFN], batches: Sequence[Batch]) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown repair method {method!r}; there are {', '.join(METHODS)}")
    if not any(bool((~_held_out(batch)).any()) for batch in batches):
        raise DataError("there are no calibration examples to repair on; give at least one batch")
    written = any(ffn.stack.side == "output" for ffn in ffns)
    if written and any(batch.targets is None for batch in batches):
        raise DataError("the decoder can only be repaired on batches with targets, which tell its real positions")


def _repair_stack(
    layers: Sequence[FFN],
    keep: Sequence[Sequence[int]],
    dense: Trace,
    pruned: Trace,
    batches: Sequence[Batch],
    method: str,
    ridge: float,
    progress: Progress,
) -> list[LayerError]:
    errors: list[LayerError] = []
    teacher, student = list(dense.hidden), list(pruned.hidden)
    for ffn, kept in zip(layers, keep, strict=True):
        teacher_calls, student_calls = dense.calls[ffn.layer], pruned.calls[ffn.layer]
        fit, held_out = _empty(ffn), _empty(ffn)
        for number, batch in enumerate(batches):
            progress(f"repair ({ffn.stack.name} layer {ffn.layer})", number, len(batches))
            wanted = step(ffn, teacher[number], teacher_calls[number])
            found = step(ffn, student[number], student_calls[number])
            target = wanted.written + wanted.residual - found.residual
            _add(fit, held_out, batch.to(target.device), ffn.stack.side, found.activations, target)
            teacher[number] = wanted.hidden
        progress(f"repair ({ffn.stack.name} layer {ffn.layer})", len(batches), len(batches))
        if len(kept) < ffn.width:
            errors.append(_repair_layer_(ffn, kept, fit, held_out, method, ridge))
        student = [advance(ffn, hidden, call) for hidden, call in zip(student, student_calls, strict=True)]
    return errors


def _repair_layer_(
    ffn: FFN, kept: Sequence[int], fit: Moments, held_out: Moments, method: str, ridge: float
) -> LayerError:
    if not bool(fit.gram.isfinite().all() and fit.cross.isfinite().all()):
        raise DataError(f"the activations of {ffn.stack.name} layer {ffn.layer} are not finite; it cannot be repaired")
    keep = torch.tensor(kept, dtype=torch.long, device=ffn.down.weight.device)
    weight = ffn.down.weight.detach().double()
    bias = None if ffn.down.bias is None else ffn.down.bias.detach().double()
    measure = held_out if held_out.tokens else fit
    before = measure.error(*zero(fit, weight, bias, keep, ridge), keep)
    new_weight, new_bias = METHODS[method](fit, weight, bias, keep, ridge)
    remove_neurons_(ffn, kept)
    with torch.no_grad():
        ffn.down.weight.copy_(new_weight)
        if new_bias is not None:
            ffn.down.bias.copy_(new_bias)
    return LayerError(ffn.stack.name, ffn.layer, before, measure.error(new_weight, new_bias, keep))


def _add(fit: Moments, held_out: Moments, batch: Batch, side: Side, activations: Tensor, target: Tensor) -> None:
    real, measuring = batch.mask_of(side), _held_out(batch).unsqueeze(1)
    for moments, mask in ((fit, real & ~measuring), (held_out, real & measuring)):
        moments.add(activations[mask], target[mask])


def _held_out(batch: Batch) -> Tensor:
    return batch.indices % HELD_OUT == HELD_OUT - 1


def _empty(ffn: FFN) -> Moments:
    return Moments.zeros(ffn.width, ffn.down.weight.shape[0], ffn.down.weight.device)

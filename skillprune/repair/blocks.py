"""Prunes block by block, fitting each to what the dense network writes there; which neurons stay is told to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.activations import evaluating
from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.families import FFN, Side, by_stack, find_ffns
from skillprune.planning import PruningPlan, Widths
from skillprune.progress import Progress, silent
from skillprune.repair.carry import trace
from skillprune.repair.methods import METHODS, Method, Statistics, are_few, least_squares, slice_only
from skillprune.repair.walk import Dense, SideBySide, Walk, alike, held_out, inverse_variance
from skillprune.surgery import check_plan, record_widths_, remove_neurons_

logger = logging.getLogger(__name__)

Choose = Callable[[FFN, Statistics], Sequence[int]]
"""Which neurons of a layer stay, sorted, given the statistics of all of them in the network pruned so far."""


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
    ridge: float | None = None,
    sequential: bool = True,
    attention: bool = True,
    progress: Progress = silent,
) -> tuple[LayerError, ...]:
    """Prunes in place, bottom to top, and repairs every down projection before the next block is looked at.

    The target of a layer is what its output must be for the residual stream to equal the dense network's, so every
    repair also corrects what the layers below got wrong. Least squares does so wherever a block above the first cut
    can: into what reads the stream (attention's inputs, the up projection) it folds a linear map that leads from what
    the pruned network reads to what the dense one does; what writes to the stream (attention's output, the down
    projection) it refits. All keep their shape. Hidden states of both networks are carried from block to block: the
    cost is linear in depth.

    Args:
        model: a model the plan was made for; changed in place.
        plan: which neurons stay.
        batches: calibration batches; only real tokens count, in a decoder beside an encoder those with a target.
        method: ``zero``, ``mean`` or ``least_squares``.
        ridge: strength of the pull towards the old weights, relative to the mean squared activation; None takes the
            one that misses least on held-out examples.
        sequential: off, every layer is fitted to the dense network's own activations, which costs less and
            leaves each layer's errors to the layers above.
        attention: whether least squares mends attention too; only in blocks that lose neurons, above one that did.
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
    repair = _method(method)
    _refuse_unusable(ffns, batches)
    if repair.fits and ridge is None:
        _warn_of_few_tokens(_fits(ffns, plan, attention), batches)
    errors: list[LayerError] = []

    def prune_layer(walk: Walk, ffn: FFN) -> Sequence[int]:
        kept = plan.keep[ffn.stack.name][ffn.layer]
        if len(kept) < ffn.width:
            read = range(ffn.width) if repair.reads_pruned else kept
            if repair.fits:
                _mend_what_leads_here_(ffn, walk, ridge, attention)
            errors.append(_repair_layer_(ffn, walk.ffn(ffn, read), read, kept, repair, ridge))
        return kept

    _for_every_layer(model, batches, repair, sequential, prune_layer, progress)
    return tuple(errors)


def choose_and_repair_(
    model: PreTrainedModel,
    widths: Widths,
    choose: Choose,
    batches: Sequence[Batch],
    *,
    method: str = "least_squares",
    ridge: float | None = None,
    attention: bool = True,
    progress: Progress = silent,
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Like `prune_and_repair_`, but neurons are chosen layer by layer on the network pruned so far.

    Args:
        model: changed in place.
        widths: how many neurons every layer keeps; one that keeps all is left alone.
        choose: says which.
        batches: calibration batches.
        method: as for `prune_and_repair_`.
        ridge: as for `prune_and_repair_`.
        attention: as for `prune_and_repair_`.
        progress: told about every batch of every layer.

    Returns:
        Kept neurons per stack and layer.

    Raises:
        DataError: there is nothing to fit on, or an activation is not finite; the model must not be used then.
        ValueError: there is no such method.
    """
    repair = _method(method)
    _refuse_unusable(find_ffns(model), batches)
    keep: dict[str, tuple[tuple[int, ...], ...]] = {}

    def prune_layer(walk: Walk, ffn: FFN) -> Sequence[int]:
        kept = everything = tuple(range(ffn.width))
        if widths[ffn.stack.name][ffn.layer] < ffn.width:
            if repair.fits:
                _mend_what_leads_here_(ffn, walk, ridge, attention)
            statistics = walk.ffn(ffn, everything)
            kept = tuple(choose(ffn, statistics))
            _repair_layer_(ffn, statistics, everything, kept, repair, ridge)
        keep[ffn.stack.name] = (*keep.get(ffn.stack.name, ()), kept)
        return kept

    _for_every_layer(model, batches, repair, True, prune_layer, progress)
    return keep


def _for_every_layer(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    method: Method,
    sequential: bool,
    prune_layer: Callable[[Walk, FFN], Sequence[int]],
    progress: Progress,
) -> None:
    stacks, weigh = by_stack(find_ffns(model)), inverse_variance if method.fits else alike
    with evaluating(model):
        dense = {name: trace(model, layers, batches, progress) for name, layers in stacks.items()}
        for number, (name, layers) in enumerate(stacks.items()):
            # Before the first stack nothing is pruned yet, so the pruned network enters it with what the dense one did;
            # later ones are traced again, because an encoder that was pruned hands its decoder other states.
            pruned = trace(model, layers, batches, progress) if number and sequential else dense[name]
            walk = (
                SideBySide(dense[name], pruned, batches, weigh, progress)
                if sequential
                else Dense(dense[name], batches, weigh, progress)
            )
            for ffn in layers:
                kept = prune_layer(walk, ffn)
                if ffn is not layers[-1]:
                    walk.leave(ffn, kept)
    record_widths_(model)


def _mend_what_leads_here_(ffn: FFN, walk: Walk, ridge: float | None, attention: bool) -> None:
    """Rewrites what comes before the neurons in their block, in place, where the network below has changed."""
    if attention:
        _lead_back_(ffn, ffn.attending, walk.attending(ffn), ridge)
        _refit_(ffn, ffn.attention, walk.attention(ffn), ridge)
    _lead_back_(ffn, ffn.into, walk.entering(ffn), ridge)


def _refit_(ffn: FFN, linear: nn.Linear, statistics: Statistics | None, ridge: float | None) -> None:
    """Rewrites a projection so that it writes what it should, given what it reads."""
    if statistics is not None:
        statistics.refuse_not_finite(ffn)
        weight, bias = _parameters(linear, statistics)
        _write_(linear, *least_squares(statistics, weight, bias, _all_columns(weight), ridge))


def _lead_back_(ffn: FFN, linears: Sequence[nn.Linear], statistics: Statistics | None, ridge: float | None) -> None:
    """Folds a map into projections of one input: from what that is to what it should be, drawn towards no change.

    With ``x -> M x + c`` a projection becomes ``W M x + W c + b``; without a bias to take ``W c``, there is no ``c``.
    """
    if statistics is not None:
        statistics.refuse_not_finite(ffn)
        moments = statistics.fit
        shift = None if any(linear.bias is None for linear in linears) else torch.zeros_like(moments.activation)
        unchanged = torch.eye(len(moments.gram), dtype=moments.gram.dtype, device=moments.gram.device)
        turned, shift = least_squares(statistics, unchanged, shift, _all_columns(unchanged), ridge)
        for linear in linears:
            weight, bias = _parameters(linear, statistics)
            _write_(linear, weight @ turned, None if shift is None or bias is None else bias + weight @ shift)


def _all_columns(weight: Tensor) -> Tensor:
    return torch.arange(weight.shape[1], device=weight.device)


def _repair_layer_(
    ffn: FFN, statistics: Statistics, read: Sequence[int], kept: Sequence[int], method: Method, ridge: float | None
) -> LayerError:
    """Removes neurons of one FFN in place and rewrites what stays; ``read`` are those that statistics are of."""
    statistics.refuse_not_finite(ffn)
    weight, bias = _parameters(ffn.down, statistics)
    weight = weight[:, list(read)]
    place = {neuron: number for number, neuron in enumerate(read)}
    places = torch.tensor([place[neuron] for neuron in kept], dtype=torch.long, device=weight.device)
    before = statistics.measure.error(*slice_only(statistics, weight, bias, places, ridge), places)
    new_weight, new_bias = method.solve(statistics, weight, bias, places, ridge)
    remove_neurons_(ffn, kept)
    _write_(ffn.down, new_weight, new_bias)
    return LayerError(ffn.stack.name, ffn.layer, before, statistics.measure.error(new_weight, new_bias, places))


def _parameters(linear: nn.Linear, statistics: Statistics) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as they are, in float64, where the statistics are."""
    moments = statistics.fit.gram
    return linear.weight.detach().to(moments), None if linear.bias is None else linear.bias.detach().to(moments)


def _write_(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)


def _method(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"unknown repair method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]


def _fits(ffns: Sequence[FFN], plan: PruningPlan, attention: bool) -> Iterator[tuple[Side, int]]:
    """Which tokens every fit will read, and how many columns it has."""
    for stack, layers in by_stack(ffns).items():
        cut = [ffn for ffn in layers if len(plan.keep[stack][ffn.layer]) < ffn.width]
        for ffn in cut:
            yield ffn.stack.side, len(plan.keep[stack][ffn.layer])
            if ffn is not cut[0]:
                yield ffn.stack.side, ffn.up.in_features
                if attention:
                    yield ffn.stack.side, ffn.attention.in_features


def _warn_of_few_tokens(fits: Iterable[tuple[Side, int]], batches: Sequence[Batch]) -> None:
    for side, columns in fits:
        tokens = sum(int(batch.mask_of(side)[~held_out(batch)].sum()) for batch in batches)
        if are_few(tokens, columns):
            logger.warning(
                "%d calibration tokens are few to fit %d columns: a strong ridge will keep weights near their old "
                "values; give more examples",
                *(tokens, columns),
            )
            return


def _refuse_unusable(ffns: Sequence[FFN], batches: Sequence[Batch]) -> None:
    if not any(bool((~held_out(batch)).any()) for batch in batches):
        raise DataError("there are no calibration examples to repair on; give at least one batch")
    written = any(ffn.stack.side == "output" for ffn in ffns)
    if written and any(batch.targets is None for batch in batches):
        raise DataError("the decoder can only be repaired on batches with targets, which tell its real positions")

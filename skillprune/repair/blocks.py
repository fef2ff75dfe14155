"""Prunes block by block, fitting each to what the dense network writes there; which neurons stay is told to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from transformers import PreTrainedModel

from skillprune.activations import evaluating, fitting
from skillprune.data import Batch
from skillprune.families import FFN, by_stack, find_ffns
from skillprune.planning import PruningPlan, Widths
from skillprune.progress import Progress, silent
from skillprune.repair.alone import repair_one_by_one_
from skillprune.repair.calibration import (
    can_be_walked,
    refuse_offloaded,
    refuse_unmendable,
    refuse_unusable,
    refuse_unwalkable,
    warn_of_few_tokens,
)
from skillprune.repair.carry import trace
from skillprune.repair.lessons import Lessons, Teacher
from skillprune.repair.methods import METHODS, Method, Statistics
from skillprune.repair.rewriting import LayerError, lead_back_, refit_, repair_layer_
from skillprune.repair.walk import Dense, SideBySide, Walk, Weigh, alike, inverse_variance
from skillprune.surgery import check_plan, record_widths_

Choose = Callable[[FFN, Statistics], Sequence[int]]
"""Which neurons of a layer stay, sorted, given the statistics of all of them in the network pruned so far."""

_fitting = fitting("the repair", "lower scoring.batch_size or task.max_length")


@_fitting
def prune_and_repair_(
    model: PreTrainedModel,
    plan: PruningPlan,
    batches: Sequence[Batch],
    *,
    method: str = "least_squares",
    ridge: float | None = None,
    sequential: bool = True,
    attention: bool = True,
    lessons: Lessons | None = None,
    progress: Progress = silent,
) -> tuple[LayerError, ...]:
    """Prunes in place, bottom to top, and repairs every block before the next is looked at.

    The target of a layer is what its output must be for the residual stream to equal the dense network's, so every
    repair also corrects errors from below. Above the first cut, least squares folds into what reads the stream
    (attention's inputs, up and gate) a linear map from what the pruned network reads to what the dense one does, and
    refits what writes to it (attention's output, down). All keep their shape. The cost is linear in depth. Where
    no walk leads through the blocks (see `repair_one_by_one_`), only down is fitted, to what it wrote itself.

    Args:
        model: a model the plan was made for; changed in place.
        plan: which neurons stay.
        batches: calibration batches; only real tokens count, in a decoder beside an encoder those with a target.
        method: ``zero``, ``mean`` or ``least_squares``.
        ridge: pull towards old weights, relative to the mean squared activation; None takes the best on held-out ones.
        sequential: off, every layer is fitted to the dense network's own activations, and errors add up.
        attention: whether least squares mends attention too; only in blocks that lose neurons, above one that did.
        lessons: keep what the dense network did, for further repairs of this model on these batches.
        progress: told about every batch of every layer.

    Returns:
        Errors of every pruned layer.

    Raises:
        PlanMismatch: the plan was made for other widths.
        UnsupportedArchitecture: attention to be mended is not plain linear layers, or a plain model is offloaded.
        DataError: there is nothing to fit on, or an activation is not finite; the model must not be used then.
        ResourceFailure: a batch does not fit into the device's memory; the model must not be used then.
        ValueError: there is no such method.
    """
    ffns, repair = find_ffns(model), _method(method)
    check_plan(ffns, plan)
    refuse_unusable(ffns, batches)
    if not can_be_walked(ffns):
        return repair_one_by_one_(model, ffns, plan, batches, repair, ridge, progress)
    _check_fits(ffns, plan, batches, repair, ridge, sequential, attention)
    errors: list[LayerError] = []

    def prune_layer(walk: Walk, ffn: FFN) -> Sequence[int]:
        kept = plan.keep[ffn.stack.name][ffn.layer]
        if len(kept) < ffn.width:
            read = range(ffn.width) if repair.reads_pruned else kept
            if repair.fits:
                _mend_what_leads_here_(ffn, walk, ridge, attention)
            errors.append(repair_layer_(ffn, [walk.ffn(ffn, read)], read, kept, repair, ridge))
        return kept

    _for_every_layer(model, batches, repair, sequential, prune_layer, lessons, progress)
    return tuple(errors)


def _check_fits(
    ffns: Sequence[FFN],
    plan: PruningPlan,
    batches: Sequence[Batch],
    method: Method,
    ridge: float | None,
    sequential: bool,
    attention: bool,
) -> None:
    """Refuses what cannot be fitted, and warns of what will hardly be."""
    if method.fits and sequential and attention:
        refuse_unmendable(ffns, plan.width_after)
    if method.fits and ridge is None:
        warn_of_few_tokens(ffns, plan, batches, sequential=sequential, attention=attention)


@_fitting
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
        ResourceFailure: a batch does not fit into the device's memory; the model must not be used then.
        UnsupportedArchitecture: no walk leads through the blocks, or the model is offloaded.
        ValueError: there is no such method.
    """
    ffns, repair = find_ffns(model), _method(method)
    refuse_unwalkable(ffns)
    refuse_unusable(ffns, batches)
    if repair.fits and attention:
        refuse_unmendable(ffns, widths)
    keep: dict[str, tuple[tuple[int, ...], ...]] = {}

    def prune_layer(walk: Walk, ffn: FFN) -> Sequence[int]:
        kept = everything = tuple(range(ffn.width))
        if widths[ffn.stack.name][ffn.layer] < ffn.width:
            if repair.fits:
                _mend_what_leads_here_(ffn, walk, ridge, attention)
            statistics = walk.ffn(ffn, everything)
            statistics.refuse_not_finite(ffn)
            kept = tuple(choose(ffn, statistics))
            repair_layer_(ffn, [statistics], everything, kept, repair, ridge)
        keep[ffn.stack.name] = (*keep.get(ffn.stack.name, ()), kept)
        return kept

    _for_every_layer(model, batches, repair, True, prune_layer, None, progress)
    return keep


def _for_every_layer(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    method: Method,
    sequential: bool,
    prune_layer: Callable[[Walk, FFN], Sequence[int]],
    lessons: Lessons | None,
    progress: Progress,
) -> None:
    refuse_offloaded(model)
    weigh = inverse_variance if method.fits else alike
    with evaluating(model):
        walks = (
            _side_by_side(model, batches, weigh, lessons, progress)
            if sequential
            else _dense(model, batches, weigh, progress)
        )
        for walk, layers in walks:
            for ffn in layers:
                kept = prune_layer(walk, ffn)
                if ffn is not layers[-1]:
                    walk.leave(ffn, kept)
    record_widths_(model)


def _side_by_side(
    model: PreTrainedModel, batches: Sequence[Batch], weigh: Weigh, lessons: Lessons | None, progress: Progress
) -> Iterator[tuple[Walk, Sequence[FFN]]]:
    """One walk per stack. Later stacks are traced again, because a pruned encoder hands its decoder other states."""
    stacks, changed = by_stack(find_ffns(model)), False
    teachers = {} if lessons is None else lessons.teachers
    if not teachers:
        traced = {name: trace(model, layers, batches, progress) for name, layers in stacks.items()}
        for name, dense in traced.items():
            teachers[name] = Teacher(dense, batches, progress, remembers=lessons is not None)
    for name, layers in stacks.items():
        pruned = trace(model, layers, batches, progress) if changed else None
        walk = SideBySide(teachers[name], pruned, batches, weigh, progress)
        yield walk, layers
        changed = changed or walk.changed


def _dense(
    model: PreTrainedModel, batches: Sequence[Batch], weigh: Weigh, progress: Progress
) -> Iterator[tuple[Walk, Sequence[FFN]]]:
    """One walk per stack, all of which start before anything is pruned."""
    stacks = by_stack(find_ffns(model))
    traced = [trace(model, layers, batches, progress) for layers in stacks.values()]
    for dense, layers in zip(traced, stacks.values(), strict=True):
        yield Dense(dense, batches, weigh, progress), layers


def _method(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"unknown repair method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]


def _mend_what_leads_here_(ffn: FFN, walk: Walk, ridge: float | None, attention: bool) -> None:
    """Rewrites what comes before the neurons in their block, in place, where the network below has changed."""
    if attention:
        lead_back_(ffn, ffn.attending, walk.attending(ffn), ridge)
        refit_(ffn, ffn.attention, walk.attention(ffn), ridge)
    lead_back_(ffn, ffn.into, walk.entering(ffn), ridge)

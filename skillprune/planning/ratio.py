"""The budget `keep_ratio`: the same share of neurons in every layer, except those to be left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from skillprune.errors import PlanMismatch, Problem, RecipeError
from skillprune.families import FFN, by_stack, find_ffns
from skillprune.planning.costs import model_costs, predict_costs
from skillprune.planning.plan import Prediction, PruningPlan
from skillprune.scoring import NeuronScores, ranking

Layers = Sequence[int] | float
"""Layers to leave alone: indices (negative ones count from the end), or the first share of every stack."""


def plan_pruning(
    model: PreTrainedModel,
    scores: NeuronScores,
    *,
    keep_ratio: float,
    round_to: int = 16,
    keep_layers: Layers = (),
) -> PruningPlan:
    """Keeps the ``keep_ratio`` best neurons of every layer; reads the model's sizes and changes nothing.

    Args:
        model: the model the scores describe.
        scores: importance per neuron; higher means keep.
        keep_ratio: share of neurons to keep, in (0, 1].
        round_to: widths become multiples of this; odd widths cost more time than they save.
        keep_layers: layers left as they are, in every stack.

    Raises:
        PlanMismatch: scores and model differ in widths.
        RecipeError: ``keep_layers`` names a layer that does not exist.
    """
    predicted = predict_plan(model, keep_ratio=keep_ratio, round_to=round_to, keep_layers=keep_layers)
    if predicted.width_before != scores.widths:
        raise PlanMismatch(f"the scores describe widths {scores.widths}, the model has {predicted.width_before}")
    keep = {
        stack: tuple(
            tuple(sorted(ranking(vector)[:width].tolist()))
            for vector, width in zip(scores.values[stack], widths, strict=True)
        )
        for stack, widths in predicted.width_after.items()
    }
    layers = keep_layers if isinstance(keep_layers, float) else list(keep_layers)
    return PruningPlan(
        keep=keep,
        width_before=predicted.width_before,
        criterion=scores.criterion,
        budget={"keep_ratio": keep_ratio, "keep_layers": layers},
        round_to=round_to,
        before=predicted.before,
        after=predicted.after,
    )


def predict_plan(
    model: PreTrainedModel, *, keep_ratio: float, round_to: int = 16, keep_layers: Layers = ()
) -> Prediction:
    """What `plan_pruning` with the same arguments will cost and save, before anything is scored.

    Raises:
        RecipeError: ``keep_layers`` names a layer that does not exist.
    """
    ffns = find_ffns(model)
    widths = plan_widths(ffns, keep_ratio=keep_ratio, round_to=round_to, keep_layers=keep_layers)
    before = model_costs(model)
    found = {stack: tuple(ffn.width for ffn in layers) for stack, layers in by_stack(ffns).items()}
    return Prediction(found, widths, before, predict_costs(before, ffns, widths))


def plan_widths(
    ffns: Sequence[FFN], *, keep_ratio: float, round_to: int, keep_layers: Layers
) -> Mapping[str, tuple[int, ...]]:
    """The width every layer will have; it depends on sizes alone, not on scores.

    Raises:
        RecipeError: ``keep_layers`` names a layer that does not exist.
    """
    widths = {}
    for stack, layers in by_stack(ffns).items():
        untouched = untouched_layers(keep_layers, len(layers))
        widths[stack] = tuple(
            ffn.width if ffn.layer in untouched else rounded_width(ffn.width, keep_ratio, round_to) for ffn in layers
        )
    return widths


def rounded_width(width: int, keep_ratio: float, round_to: int) -> int:
    """The multiple of ``round_to`` nearest to ``keep_ratio * width``, at least one multiple, at most ``width``."""
    if keep_ratio == 1.0:
        return width
    multiples = max(1, round(keep_ratio * width / round_to))
    return min(width, multiples * round_to)


def untouched_layers(keep_layers: Layers, layers: int) -> set[int]:
    """The layer indices that ``keep_layers`` means in a stack of ``layers``.

    Raises:
        RecipeError: an index is outside the stack.
    """
    if isinstance(keep_layers, float):
        return set(range(round(keep_layers * layers)))
    for index in keep_layers:
        if not -layers <= index < layers:
            wanted = f"should name a layer from {-layers} to {layers - 1}; the stack has {layers}"
            raise RecipeError([Problem("plan.keep_layers", str(index), wanted)])
    return {index % layers for index in keep_layers}

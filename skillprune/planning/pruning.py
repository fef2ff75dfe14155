"""From scores and a budget to a plan: how wide every layer will be, and which of its neurons stay."""

from __future__ import annotations

from transformers import PreTrainedModel

from skillprune.errors import PlanMismatch
from skillprune.families import find_ffns
from skillprune.planning.budget import Budget
from skillprune.planning.costs import model_costs, predict_costs
from skillprune.planning.curves import Curves
from skillprune.planning.layers import KeepLayers, Widths, layers_of
from skillprune.planning.path import sparing_path, uniform_path
from skillprune.planning.plan import Prediction, PruningPlan
from skillprune.scoring import NeuronScores, ranking


def plan_pruning(
    model: PreTrainedModel,
    scores: NeuronScores,
    budget: Budget,
    *,
    curves: Curves | None = None,
    round_to: int = 16,
    keep_layers: KeepLayers = (),
) -> PruningPlan:
    """Chooses widths by a budget and in every layer the best neurons; reads the model's sizes and changes nothing.

    Args:
        model: the model the scores describe.
        scores: importance per neuron; higher means keep.
        budget: `KeepRatio`, `Parameters`, `Macs`, `Speedup` or `MaxDrop`.
        curves: what narrowing costs, by which neurons are shared out among layers; without, all keep the same share.
        round_to: widths become multiples of this; odd widths cost more time than they save.
        keep_layers: layers left as they are, in every stack.

    Raises:
        PlanMismatch: scores and model differ in widths.
        RecipeError: ``keep_layers`` names a layer that does not exist.
    """
    predicted = predict_plan(model, budget, curves=curves, round_to=round_to, keep_layers=keep_layers)
    if predicted.width_before != scores.widths:
        raise PlanMismatch(f"the scores describe widths {scores.widths}, the model has {predicted.width_before}")
    layers = keep_layers if isinstance(keep_layers, float) else list(keep_layers)
    return PruningPlan(
        keep=best_neurons(scores, predicted.width_after),
        width_before=predicted.width_before,
        criterion=scores.criterion,
        budget={**budget.asked(), "keep_layers": layers},
        round_to=round_to,
        before=predicted.before,
        after=predicted.after,
        unmet=predicted.unmet,
        latency=predicted.latency,
    )


def predict_plan(
    model: PreTrainedModel,
    budget: Budget,
    *,
    curves: Curves | None = None,
    round_to: int = 16,
    keep_layers: KeepLayers = (),
) -> Prediction:
    """What `plan_pruning` with the same arguments will cost and save; no scores are needed for even shares.

    Raises:
        RecipeError: ``keep_layers`` names a layer that does not exist.
    """
    ffns = find_ffns(model)
    layers = layers_of(ffns, round_to=round_to, keep_layers=keep_layers)
    path = uniform_path(layers) if curves is None else sparing_path(layers, curves)
    before = model_costs(model)
    choice = budget.stop(path, before)
    widths = path[choice.point]
    after = predict_costs(before, ffns, widths)
    return Prediction(path[0], widths, before, after, choice.unmet, choice.latency)


def best_neurons(scores: NeuronScores, widths: Widths) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The best neurons of every layer, sorted; ties go to the lower index."""
    return {
        stack: tuple(
            tuple(sorted(ranking(vector)[:width].tolist()))
            for vector, width in zip(scores.values[stack], layers, strict=True)
        )
        for stack, layers in widths.items()
    }

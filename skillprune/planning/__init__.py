"""From scores and a budget to a `PruningPlan`; decides which neurons stay and touches no model."""

from skillprune.planning.budget import Budget, Choice
from skillprune.planning.costs import MAC_SEQUENCE, model_costs, predict_costs
from skillprune.planning.curves import Curves, curves_of
from skillprune.planning.drop import MaxDrop, Trial
from skillprune.planning.layers import KeepLayers, Widths, layers_of
from skillprune.planning.plan import Costs, Prediction, PruningPlan, Timing, load_plan, plan_from_json, plan_to_json
from skillprune.planning.pruning import best_neurons, plan_pruning, predict_plan
from skillprune.planning.size import KeepRatio, Macs, Parameters
from skillprune.planning.speedup import LatencyTable, Speedup

__all__ = [
    "MAC_SEQUENCE",
    "Budget",
    "Choice",
    "Costs",
    "Curves",
    "KeepLayers",
    "KeepRatio",
    "LatencyTable",
    "Macs",
    "MaxDrop",
    "Parameters",
    "Prediction",
    "PruningPlan",
    "Speedup",
    "Timing",
    "Trial",
    "Widths",
    "best_neurons",
    "curves_of",
    "layers_of",
    "load_plan",
    "model_costs",
    "plan_from_json",
    "plan_pruning",
    "plan_to_json",
    "predict_costs",
    "predict_plan",
]

"""From scores and a budget to a `PruningPlan`; decides which neurons stay and touches no model."""

from skillprune.planning.costs import MAC_SEQUENCE, model_costs, predict_costs
from skillprune.planning.plan import Costs, Prediction, PruningPlan, load_plan, plan_from_json, plan_to_json
from skillprune.planning.ratio import plan_pruning, plan_widths, predict_plan

__all__ = [
    "MAC_SEQUENCE",
    "Costs",
    "Prediction",
    "PruningPlan",
    "load_plan",
    "model_costs",
    "plan_from_json",
    "plan_pruning",
    "plan_to_json",
    "plan_widths",
    "predict_costs",
    "predict_plan",
]

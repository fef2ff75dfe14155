"""Metrics on a split, and the paired comparison of two models; which model and which split is the caller's business."""

from skillprune.evaluation.asking import Predictor, judge_split, predict_split, torch_predictor
from skillprune.evaluation.comparison import Comparison, compare, drop, is_within, standard_error
from skillprune.evaluation.outcomes import METRICS, Losses, Outcome, Predictions, accuracy, macro_f1, mcnemar

__all__ = [
    "METRICS",
    "Comparison",
    "Losses",
    "Outcome",
    "Predictions",
    "Predictor",
    "accuracy",
    "compare",
    "drop",
    "is_within",
    "judge_split",
    "macro_f1",
    "mcnemar",
    "predict_split",
    "standard_error",
    "torch_predictor",
]

"""Holds a finished run to numbers, or to another run, by its report alone; measuring is left to the run itself."""

from skillprune.gating.files import Outputs, gate, judge_runs
from skillprune.gating.judging import judge
from skillprune.gating.values import Check, Demands, Judgement
from skillprune.gating.views import to_benchmark, to_json, to_junit, to_markdown

__all__ = [
    "Check",
    "Demands",
    "Judgement",
    "Outputs",
    "gate",
    "judge",
    "judge_runs",
    "to_benchmark",
    "to_json",
    "to_junit",
    "to_markdown",
]

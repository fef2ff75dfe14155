"""Chains the stages of a recipe into a run directory; the only room that knows all the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skillprune.errors import OutputError
from skillprune.pipeline.conversion import Conversion, convert_checkpoint
from skillprune.pipeline.processes import several_processes
from skillprune.pipeline.run import Run
from skillprune.pipeline.summary import report_on
from skillprune.progress import Progress, silent
from skillprune.recipe import Recipe
from skillprune.report import Report

STAGES: dict[str, Callable[[Run], Any]] = {
    "score": lambda run: run.scores,
    "plan": lambda run: run.plan,
    "prune": lambda run: run.errors,
    "recover": lambda run: run.recovered,
    "export": lambda run: run.exports,
    "bench": lambda run: run.latency,
    "report": report_on,
}
"""The stages in order; asking for one does those before it, unless an earlier run did."""


def run(recipe: Recipe, output: str | Path, *, cache: bool = True, progress: Progress = silent) -> Report:
    """Carries out a recipe from checkpoint to report, resuming where an earlier run of it stopped.

    Args:
        recipe: the request.
        output: the run directory; new, empty, or of the same recipe.
        cache: whether finished stages of an earlier run count.
        progress: told how far long work is.

    Returns:
        The report, also written to the run directory. Its verdict says whether the recipe's demands were met.

    Raises:
        SkillPruneError: something in the recipe, the data, the model or the machine is not usable; the class says what.
    """
    if several_processes():
        raise OutputError(
            f"{output}: only one process may write here; start `torchrun -m skillprune score RECIPE` to score with "
            "several, and this in one process afterwards"
        )
    return report_on(Run(recipe, Path(output), cache=cache, progress=progress))


__all__ = ["STAGES", "Conversion", "Run", "convert_checkpoint", "report_on", "run"]

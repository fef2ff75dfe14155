"""Carries out benchmark recipes, and keeps their reports beside what their numbers were to be.

Time is that of ONNX Runtime on this machine: nothing else should run while a recipe's files are timed. A run that was
interrupted, or that only has to be timed again (`--again`), goes on from what is in its directory.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provenance import HERE, RESULTS, update_result

import skillprune
from skillprune import load_recipe
from skillprune.report import LatencyRow, Report

KEPT = ("plan.json", "report.json", "report.md")


@dataclass(frozen=True)
class Goal:
    """How many times faster than something the shipped file is to be at a shape, at least.

    Attributes:
        shape: batch and sequence.
        against: a subject of the report: the dense file, or the dense model in another runtime.
        least: what is to be reached.
    """

    shape: tuple[int, int]
    against: str
    least: float


GOALS = {
    "minilm-sst2-fast": (
        Goal((8, 128), "dense", 2.6),
        Goal((1, 32), "dense", 2.1),
        Goal((8, 128), "onnxruntime-default", 2.6),
        Goal((1, 32), "onnxruntime-default", 2.1),
        Goal((8, 128), "torch", 3.3),
        Goal((1, 32), "torch", 3.0),
    )
}


def main() -> None:
    """Runs every recipe that is named, or all that have files to time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["minilm-sst2", "minilm-sst2-fast", "stories260k"])
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs", help="where the runs' directories are")
    parser.add_argument("--again", action="store_true", help="times files again that were timed before")
    arguments = parser.parse_args()
    for name in arguments.names:
        output = arguments.runs / name
        recipe = load_recipe(HERE / "recipes" / f"{name}.yaml")
        if arguments.again:
            (output / ".stages" / "bench.json").unlink(missing_ok=True)
        report = skillprune.run(recipe, output)
        (RESULTS / name).mkdir(exist_ok=True)
        for file in KEPT:
            shutil.copy(output / file, RESULTS / name / file)
        update_result("runs", name, seeds=[recipe.seed], result=found(report, GOALS.get(name, ())))


def found(report: Report, goals: tuple[Goal, ...]) -> dict[str, Any]:
    """What a run came to, in short."""
    assert report.best is not None  # the recipes here export
    quality = report.quality
    return {
        "variant": report.best.variant,
        "metric": quality.metric,
        "dense": quality.test.dense,
        "shipped": quality.test.onnx[report.best.variant],
        "difference": [quality.difference, quality.ci_low, quality.ci_high],
        "verdict": {"ok": report.verdict.ok, "reasons": report.verdict.reasons},
        "speedups": list(speedups(report)),
        "goals": [reached(report, goal) for goal in goals],
    }


def speedups(report: Report) -> Iterator[dict[str, Any]]:
    """Of every file and reference over the dense file, at every shape."""
    for row in report.latency:
        yield {
            "subject": row.subject,
            "variant": row.variant,
            "shape": row.shape,
            "p50_ms": row.p50_ms,
            "speedup": [row.speedup, row.speedup_low, row.speedup_high],
            "peak_rss_mib": row.peak_rss_mib,
        }


def reached(report: Report, goal: Goal) -> dict[str, Any]:
    """A goal, and the quotient of two paired speed-ups over the same dense file in the same rounds."""
    assert report.best is not None
    shipped, other = _row(report, "pruned", report.best.variant, goal), _row(report, goal.against, "fp32", goal)
    assert shipped.speedup is not None and other.speedup is not None  # all are timed beside the dense file
    measured, steady = shipped.speedup / other.speedup, all(control.ok for control in report.controls)
    return {
        "shape": goal.shape,
        "against": goal.against,
        "at_least": goal.least,
        "measured": measured,
        "met": steady and measured >= goal.least,
    }


def _row(report: Report, subject: str, variant: str, goal: Goal) -> LatencyRow:
    rows = [row for row in report.latency if (row.subject, row.variant) == (subject, variant)]
    return next(row for row in rows if row.shape[:2] == goal.shape)


if __name__ == "__main__":
    main()

"""Do budgets keep what they promise? A speed-up asked for, beyond reach too, and a floor under the metric.

``speedup``: recipes of MiniLM on SST-2 ask for a speed-up at 8 x 128; what was planned beside what was measured.
``max_drop``: the smallest model within one point on validation, per task and seed, judged once on the test split.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune import every_hundredth
from provenance import kept_row, update_result
from samples import CHECKPOINTS, batches, spec

import skillprune
from skillprune.checkpoint import load_model
from skillprune.evaluation import METRICS, predict_split, standard_error, torch_predictor
from skillprune.pipeline import Run
from skillprune.recipe import Recipe

NAME = "budgets-minilm"
ASKED = (1.6, 3.0)
DROP = 0.01
TOLERANCE = 0.05


def main() -> None:
    """One section or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=["speedup", "max_drop"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=CHECKPOINTS, default=list(CHECKPOINTS))
    arguments = parser.parse_args()
    if "speedup" in arguments.sections:
        update_result(NAME, "speedup", seeds=[0], result={"rows": [fast(factor) for factor in ASKED]})
    if "max_drop" in arguments.sections:
        rows = [
            kept_row(f"max-drop-{task}-{seed}", partial(careful, task, seed))
            for task in arguments.tasks
            for seed in arguments.seeds
        ]
        held = sum(row["held"] for row in rows)
        update_result(NAME, "max_drop", seeds=arguments.seeds, result={"rows": rows, "held": held, "of": len(rows)})


def fast(factor: float) -> dict[str, Any]:
    """A whole run with a speed-up as its budget."""
    recipe = recipe_of("sst2", 0, plan={"speedup": factor}, benchmark={"shapes": [[8, 128]]})
    with TemporaryDirectory() as folder:
        report = skillprune.run(recipe, Path(folder, "out"), progress=every_hundredth())
        plan = skillprune.load_plan(Path(folder, "out", "plan.json"))
    (pruned,) = (row for row in report.latency if row.subject == "pruned")
    row = {
        "asked": factor,
        "widths": plan.width_after,
        "unmet": plan.unmet,
        "predicted": plan.latency[0].before_ms / plan.latency[0].after_ms,
        "measured": pruned.speedup,
        "low": pruned.speedup_low,
        "high": pruned.speedup_high,
        "within": abs(pruned.speedup / factor - 1) <= TOLERANCE,
        "ok": report.verdict.ok,
        "reasons": report.verdict.reasons,
    }
    print(row, flush=True)
    return row


def careful(task: str, seed: int) -> dict[str, Any]:
    """A plan within the floor, and what it loses on test."""
    recipe = recipe_of(task, seed, plan={"max_drop": DROP})
    with TemporaryDirectory() as folder, Run(recipe, Path(folder, "out")) as run:
        plan, _ = run.plan, run.errors  # the second writes the pruned checkpoint
        pruned = load_model(Path(folder, "out", "model"), dtype="float32")
    test, metric = batches(run.splits.test, run.source.tokenizer), METRICS[run.task.metric]
    dense, pruned = (predict_split(torch_predictor(model), test) for model in (run.source.model, pruned))
    drop = metric(dense.labels, dense.predicted) - metric(pruned.labels, pruned.predicted)
    error = standard_error(dense, pruned, metric=run.task.metric, seed=seed)
    return {
        "task": task,
        "seed": seed,
        "widths": plan.width_after,
        "unmet": plan.unmet,
        "dense": metric(dense.labels, dense.predicted),
        "test_drop": drop,
        "standard_error": error,
        "held": bool(drop <= DROP + error),
    }


def recipe_of(task: str, seed: int, **sections: Any) -> Recipe:
    """A recipe in which everything else is a default."""
    given = spec(task)
    return Recipe(
        model={"name": str(CHECKPOINTS[task]), "dtype": "float32"},
        task={**given.model_dump(), "labels": None},
        seed=seed,
        **sections,
    )


if __name__ == "__main__":
    main()

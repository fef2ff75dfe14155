"""Test accuracy of MiniLM on SST-2 after pruning without training, per criterion, width, repair and seed.

The seed draws the calibration sample. Nothing is chosen by what comes out: every configuration reads the test split
once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from provenance import minilm_recipe, over_seeds, write_result

from skillprune import load_source, load_splits, make_batches, plan_pruning, prune_and_repair_, resolve_task
from skillprune.answers import label_names
from skillprune.data import Batch, Example
from skillprune.evaluation import Predictions, accuracy, compare, predict_split, torch_predictor
from skillprune.repair import METHODS
from skillprune.scoring import Provenance, ScoringData, score_neurons

ARM = ("criterion", "keep_ratio", "repair")
MAIN = [(criterion, keep, "least_squares") for criterion in ("skill", "wanda") for keep in (0.5, 0.25)]
CONTROLS = [
    ("wanda", 0.25, "mean"),
    ("wanda", 0.25, "zero"),
    *((criterion, 0.25, method) for criterion in ("predictivity", "magnitude", "random") for method in METHODS),
]


def main() -> None:
    """Runs every arm for every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--controls", action="store_true", help="other criteria and repairs, on the first seed")
    arguments = parser.parse_args()
    seeds = arguments.seeds[:1] if arguments.controls else arguments.seeds
    rows = [row for seed in seeds for row in one_seed(seed, CONTROLS if arguments.controls else MAIN)]
    name = "quality-minilm-sst2-controls" if arguments.controls else "quality-minilm-sst2"
    write_result(name, seeds=seeds, result={"rows": rows, "summary": over_seeds(rows, ARM, "test_accuracy")})


def one_seed(seed: int, arms: Sequence[tuple[str, float, str]]) -> list[dict[str, Any]]:
    """All arms on one calibration sample."""
    recipe = minilm_recipe()
    source = load_source(recipe.model)
    task = resolve_task(recipe.task, label_names(source.model))
    splits = load_splits(task, examples=recipe.scoring.examples, seed=seed)

    def batches(examples: Sequence[Example]) -> tuple[Batch, ...]:
        return make_batches(examples, source.tokenizer, max_length=task.max_length, batch_size=32)

    calibration, test = batches(splits.calibration), batches(splits.test)
    scores = score_neurons(
        source.model,
        ScoringData(calibration, batches(splits.validation)),
        criteria=sorted({criterion for criterion, _, _ in arms}),
        provenance=Provenance(source.fingerprint, splits.fingerprint(), len(splits.calibration), "mean", seed),
    )
    dense = predict_split(torch_predictor(source.model), test)
    rows = [row(seed, ("none", 1.0, "none"), dense, dense)]
    for arm in arms:
        criterion, keep, method = arm
        model = load_source(recipe.model).model
        decisive = next(each for each in scores if each.criterion == criterion)
        prune_and_repair_(model, plan_pruning(model, decisive, keep_ratio=keep), calibration, method=method)
        rows.append(row(seed, arm, dense, predict_split(torch_predictor(model), test)))
        print(rows[-1], flush=True)
    return rows


def row(seed: int, arm: tuple[str, float, str], dense: Predictions, pruned: Predictions) -> dict[str, Any]:
    """One line of the table."""
    found = compare(dense, pruned, metric="accuracy", seed=seed)
    return {
        "seed": seed,
        **dict(zip(ARM, arm, strict=True)),
        "test_accuracy": accuracy(pruned.labels, pruned.predicted),
        "difference": found.difference,
        "ci_low": found.low,
        "ci_high": found.high,
        "p_value": found.p_value,
        "agreement": found.agreement,
    }


if __name__ == "__main__":
    main()

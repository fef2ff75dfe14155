"""Does label predictivity add anything to `skill`? Validation only, without training; test splits are not read.

``skill`` is the criterion as it is. ``floor`` always keeps the most predictive twentieth of the neurons that stay,
``weight`` multiplies scores by how far predictivity is above chance, ``tie_break`` lets predictivity decide among
neurons whose scores differ by less than a tenth. Judged by the divergence of the pruned model's answers from the dense
model's, which tells smaller differences apart than accuracy does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from provenance import over_seeds, write_result
from samples import draw

from skillprune import KeepRatio, load_source, plan_pruning, prune_and_repair_
from skillprune.activations import evaluating
from skillprune.scoring import NeuronScores, Provenance, ScoringData, score_neurons

TASKS = ("sst2", "trec")
KEPT = (0.1, 0.02)
EXAMPLES = 2048
FLOOR = 0.05
Scores = NDArray[np.float64]


def floor(skill: Scores, predictivity: Scores, kept: int) -> Scores:
    """The most predictive neurons come before all others."""
    best = np.argsort(-predictivity, kind="stable")[: max(1, round(FLOOR * kept))]
    return skill + np.isin(np.arange(len(skill)), best) * (skill.max() + 1)


def weight(skill: Scores, predictivity: Scores, kept: int) -> Scores:
    """Scores times distance from chance."""
    return skill * (predictivity - 0.5)


def tie_break(skill: Scores, predictivity: Scores, kept: int) -> Scores:
    """Scores in steps of a tenth, predictivity within a step."""
    steps = np.floor(np.log(np.maximum(skill, np.finfo(float).tiny)) / np.log(1.1))
    return steps + predictivity  # which is below 1


CHOICES: Mapping[str, Callable[[Scores, Scores, int], Scores]] = {
    "skill": lambda skill, predictivity, kept: skill,
    "floor": floor,
    "weight": weight,
    "tie_break": tie_break,
}


def main() -> None:
    """Every task, seed, width and choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    arguments = parser.parse_args()
    rows = [row for task in arguments.tasks for seed in arguments.seeds for row in one_seed(task, seed)]
    arms = ("task", "keep_ratio", "choice")
    summary = {value: over_seeds(rows, arms, value) for value in ("divergence", "validation_accuracy")}
    write_result("predictivity-added-minilm", seeds=arguments.seeds, result={"rows": rows, "summary": summary})


def one_seed(name: str, seed: int) -> list[dict[str, Any]]:
    """All choices on one calibration sample."""
    sample = draw(name, seed, EXAMPLES)
    source, data = sample.source, sample.data
    seen = Provenance("", "", EXAMPLES, "mean", seed)
    skill, predictivity = score_neurons(source.model, data, criteria=["skill", "predictivity"], provenance=seen)
    dense, rows = answers(source.model, data), []
    for keep in KEPT:
        for choice, combine in CHOICES.items():
            scores = combined(skill, predictivity, combine, keep)
            model = load_source(sample.checkpoint).model
            prune_and_repair_(model, plan_pruning(model, scores, KeepRatio(keep)), data.calibration)
            found = answers(model, data)
            labels = torch.cat([batch.labels for batch in data.validation])
            rows.append(
                {
                    "task": name,
                    "seed": seed,
                    "keep_ratio": keep,
                    "choice": choice,
                    "validation_accuracy": float((found.argmax(dim=1) == labels).double().mean()),
                    "divergence": float((dense.exp() * (dense - found)).sum(dim=1).mean()),
                }
            )
            print(rows[-1], flush=True)
    return rows


def combined(skill: NeuronScores, predictivity: NeuronScores, combine: Any, keep: float) -> NeuronScores:
    """Both criteria made one, layer by layer."""
    values = {
        stack: tuple(
            combine(one, other, round(keep * len(one)))
            for one, other in zip(layers, predictivity.values[stack], strict=True)
        )
        for stack, layers in skill.values.items()
    }
    return replace(skill, values=values, details={})


def answers(model: Any, data: ScoringData) -> torch.Tensor:
    """Log-probabilities on validation, ``(examples, classes)``, batch by batch."""
    with evaluating(model), torch.inference_mode():
        return torch.cat([model(**batch.inputs).logits.double().log_softmax(dim=1) for batch in data.validation])


if __name__ == "__main__":
    main()

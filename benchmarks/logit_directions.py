"""Which random direction of the logits `skill` should differentiate: accuracy on validation after pruning MiniLM.

``contrasts`` is what the library does: every direction that tells classes apart counts alike. ``labels`` is the other
textbook choice, the log-likelihood of a label drawn from the model's own distribution (the true Fisher matrix), in
which examples that the model is sure of hardly count. Test splits are not read.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from findings import SHARED, batches, spec
from provenance import write_result
from torch import Tensor
from torch.nn.functional import cross_entropy

from skillprune import load_source, load_splits, plan_pruning, prune_and_repair_, resolve_task
from skillprune.answers import ClassAnswers, Classifier, label_names
from skillprune.data import Batch
from skillprune.evaluation import accuracy, predict_split, torch_predictor
from skillprune.recipe import ModelSpec
from skillprune.scoring import Provenance, ScoringData, score_neurons, settings_for

TASKS = ("trec", "sst2")
KEPT = (0.25, 0.1)
EXAMPLES = 1024


class LabelAnswers(ClassAnswers):
    """Answers whose random scalar is the log-likelihood of a drawn label."""

    def sampled(self, seed: int, indices: Tensor) -> Tensor:
        """Log-likelihood of one label per example, ``(batch,)``."""
        chances = self.scores.detach().float().softmax(dim=1).cumsum(dim=1)
        draws = [np.random.default_rng([seed, index]).random() for index in indices.tolist()]
        labels = (chances < torch.tensor(draws).unsqueeze(1)).sum(dim=1).clamp(max=chances.shape[1] - 1)
        return -cross_entropy(self.scores.float(), labels, reduction="none")


class LabelClassifier(Classifier):
    """A classifier that answers with `LabelAnswers`."""

    def ask(self, batch: Batch) -> ClassAnswers:
        """The head's logits."""
        return LabelAnswers(self.model(**batch.inputs).logits, batch.labels)


DIRECTIONS: Mapping[str, type[Classifier]] = {"contrasts": Classifier, "labels": LabelClassifier}


def main() -> None:
    """Every task, seed, direction and width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    arguments = parser.parse_args()
    seeds = arguments.seeds
    rows = [row for name in arguments.tasks for seed in seeds for row in one_seed(name, seed)]
    write_result("logit-directions-minilm", seeds=seeds, result={"rows": rows, "summary": summary(rows)})


def one_seed(name: str, seed: int) -> list[dict[str, Any]]:
    """Both directions on one calibration sample."""
    checkpoint = ModelSpec(name=str(SHARED / "models" / f"minilm-{name}"))
    source = load_source(checkpoint)
    task = resolve_task(spec(name), label_names(source.model))
    splits = load_splits(task, examples=EXAMPLES, seed=seed)
    data = ScoringData(*(batches(split, source.tokenizer) for split in (splits.calibration, splits.validation)))
    rows = []
    for direction, classifier in DIRECTIONS.items():
        subject = classifier(source.model)
        settings = settings_for(subject, data, labels=task.labels, seed=seed)
        seen = Provenance("", "", EXAMPLES, "mean", seed)
        (scores,) = score_neurons(subject, data, criteria=["skill"], provenance=seen, settings=settings)
        for keep in KEPT:
            model = load_source(checkpoint).model
            prune_and_repair_(
                model, plan_pruning(model, scores, keep_ratio=keep), data.calibration, method="least_squares"
            )
            found = predict_split(torch_predictor(model), data.validation)
            rows.append({"task": name, "seed": seed, "direction": direction, "keep_ratio": keep})
            rows[-1]["validation_accuracy"] = accuracy(found.labels, found.predicted)
            print(rows[-1], flush=True)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean accuracy over the seeds."""
    arms = dict.fromkeys((row["task"], row["keep_ratio"], row["direction"]) for row in rows)
    return [
        {"task": task, "keep_ratio": keep, "direction": direction, "mean": float(np.mean(found))}
        for task, keep, direction in arms
        for found in [
            [
                row["validation_accuracy"]
                for row in rows
                if (row["task"], row["keep_ratio"], row["direction"]) == (task, keep, direction)
            ]
        ]
    ]


if __name__ == "__main__":
    main()

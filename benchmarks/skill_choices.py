"""What `skill` should differentiate: accuracy on validation after pruning fine-tuned MiniLM. Test splits are not read.

``contrasts`` is what the library does: every direction of the logits that tells classes apart counts alike, and the
first 512 examples suffice. ``all_examples`` differentiates all. ``labels`` is the other textbook choice, the
log-likelihood of a label drawn from the model's own distribution (the true Fisher matrix), in which examples that the
model is sure of hardly count.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from provenance import over_seeds, write_result
from samples import draw
from torch import Tensor
from torch.nn.functional import cross_entropy

from skillprune import KeepRatio, load_source, plan_pruning, prune_and_repair_
from skillprune.answers import ClassAnswers, Classifier
from skillprune.data import Batch
from skillprune.evaluation import accuracy, predict_split, torch_predictor
from skillprune.scoring import CRITERIA, Provenance, score_neurons, settings_for
from skillprune.scoring.criterion import Read
from skillprune.scoring.skill import Skill

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


class SkillOfAll(Skill):
    """`skill` with gradients of all examples."""

    name = "skill_of_all"
    _metric = Read("calibration", "sampled")
    reads = (Read("calibration"), _metric)


CHOICES: Mapping[str, tuple[type[Classifier], str]] = {
    "contrasts": (Classifier, "skill"),
    "all_examples": (Classifier, "skill_of_all"),
    "labels": (LabelClassifier, "skill"),
}


def main() -> None:
    """Every task, seed, choice and width."""
    CRITERIA[SkillOfAll.name] = SkillOfAll
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    arguments = parser.parse_args()
    seeds = arguments.seeds
    rows = [row for name in arguments.tasks for seed in seeds for row in one_seed(name, seed)]
    summary = over_seeds(rows, ("task", "keep_ratio", "choice"), "validation_accuracy")
    write_result("skill-choices-minilm", seeds=seeds, result={"rows": rows, "summary": summary})


def one_seed(name: str, seed: int) -> list[dict[str, Any]]:
    """All choices on one calibration sample."""
    sample, rows = draw(name, seed, EXAMPLES), []
    data = sample.data
    for choice, (classifier, criterion) in CHOICES.items():
        subject = classifier(sample.source.model)
        settings = settings_for(subject, data, labels=sample.task.labels, seed=seed)
        seen = Provenance("", "", EXAMPLES, "mean", seed)
        (scores,) = score_neurons(subject, data, criteria=[criterion], provenance=seen, settings=settings)
        for keep in KEPT:
            model = load_source(sample.checkpoint).model
            prune_and_repair_(
                model, plan_pruning(model, scores, KeepRatio(keep)), data.calibration, method="least_squares"
            )
            found = predict_split(torch_predictor(model), data.validation)
            rows.append({"task": name, "seed": seed, "choice": choice, "keep_ratio": keep})
            rows[-1]["validation_accuracy"] = accuracy(found.labels, found.predicted)
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()

"""What the criteria say about MiniLM: which layers know a task, and how far the criteria agree.

``predictivity``: the best neuron of every layer on four tasks, read from the pretrained body (mean-pooled), beside the
best under shuffled labels, which is what chance gives to the best of so many. ``agreement``: Spearman's rank
correlation between all criteria, averaged over layers, on the checkpoints that were fine-tuned for a task.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from provenance import update_result
from samples import BODY, batches, draw, spec
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from skillprune import load_splits, resolve_task
from skillprune.answers import Classifier
from skillprune.data import Batch
from skillprune.scoring import CRITERIA, NeuronScores, Provenance, ScoringData, score_neurons, settings_for

BODY_TASKS = ("sst2", "trec", "subj", "clinc150")
FINE_TUNED = ("sst2", "trec")
EXAMPLES = 2048


def main() -> None:
    """Both parts; each adds to the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=["predictivity", "agreement"])
    arguments = parser.parse_args()
    seeds = arguments.seeds
    if arguments.only != "agreement":
        best = {task: [best_neurons(task, seed) for seed in seeds] for task in BODY_TASKS}
        update_result("findings-minilm", "predictivity", seeds=seeds, result=best)
    if arguments.only != "predictivity":
        agree = {task: agreement(task, seeds[0]) for task in FINE_TUNED}
        update_result("findings-minilm", "agreement", seeds=seeds[:1], result=agree)


def best_neurons(name: str, seed: int) -> dict[str, Any]:
    """The best predictivity of every layer, and the same after the labels were shuffled."""
    data, labels = body_data(name, seed)
    model = AutoModelForSequenceClassification.from_pretrained(BODY, num_labels=len(labels), dtype=torch.float32).eval()
    rng = np.random.default_rng(seed)
    shuffled = ScoringData(*(shuffle(getattr(data, split), rng) for split in ("calibration", "validation")))
    found = {}
    for kind, given in (("best_per_layer", data), ("shuffled_labels", shuffled)):
        (scores,) = scored(Classifier(model), given, ["predictivity"], labels, seed)
        found[kind] = [round(value, 4) for value in scores.best_per_layer()["encoder"]]
    print(name, seed, found, flush=True)
    return {"seed": seed, "classes": len(labels), **found}


def agreement(name: str, seed: int) -> dict[str, Any]:
    """Spearman between all pairs of criteria, mean over layers."""
    sample = draw(name, seed, EXAMPLES)
    scores = scored(Classifier(sample.source.model), sample.data, list(CRITERIA), sample.task.labels, seed)
    matrix = [[float(np.mean(one.compare(other)["encoder"])) for other in scores] for one in scores]
    for one, row in zip(scores, matrix, strict=True):
        print(name, one.criterion, [round(value, 2) for value in row], flush=True)
    return {"criteria": [each.criterion for each in scores], "spearman": np.round(matrix, 3).tolist()}


def scored(
    model: Classifier, data: ScoringData, criteria: Sequence[str], labels: Sequence[str], seed: int
) -> tuple[NeuronScores, ...]:
    """Scores with the default settings."""
    settings = settings_for(model, data, labels=tuple(labels), seed=seed)
    seen = Provenance("", "", settings.examples["calibration"], "mean", seed)
    return score_neurons(model, data, criteria=criteria, provenance=seen, settings=settings)


def body_data(name: str, seed: int) -> tuple[ScoringData, tuple[str, ...]]:
    """Batches of a task for the pretrained body, and its labels."""
    given = spec(name)
    task = resolve_task(given, given.labels or ())
    splits = load_splits(task, examples=EXAMPLES if len(task.labels) < 100 else 8000, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained(BODY)
    return ScoringData(*(batches(split, tokenizer) for split in (splits.calibration, splits.validation))), task.labels


def shuffle(given: Sequence[Batch], rng: np.random.Generator) -> tuple[Batch, ...]:
    """The same texts with each other's labels."""
    labels = torch.cat([batch.labels for batch in given])
    mixed = labels[torch.from_numpy(rng.permutation(len(labels)))].split([len(batch) for batch in given])
    return tuple(replace(batch, labels=part) for batch, part in zip(given, mixed, strict=True))


if __name__ == "__main__":
    main()

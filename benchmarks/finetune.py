"""Fine-tunes MiniLM's pretrained body on clinc150 (150 intents), for the comparisons that need a third task.

Trained by the library's own loop towards the labels; the epoch with the best validation accuracy is kept, the test
split is read once, at the end. The checkpoint goes to ``work/minilm-clinc150``.
"""

from __future__ import annotations

import argparse

import torch
from provenance import write_result
from samples import BODY, CHECKPOINTS, batches, spec
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from skillprune import load_splits, resolve_task
from skillprune.answers import Classifier
from skillprune.evaluation import accuracy, predict_split, torch_predictor
from skillprune.progress import Progress
from skillprune.recovery import Labels, RecoverySettings, train_

TASK = "clinc150"
TUNED = CHECKPOINTS[TASK]
SETTINGS = RecoverySettings(epochs=5, learning_rate=2e-4, patience=5)


def main() -> None:
    """Trains, saves and reports."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(SETTINGS.seed)  # the head's first weights
    task = resolve_task(spec(TASK), spec(TASK).labels or ())
    splits = load_splits(task, examples=2048, seed=SETTINGS.seed)
    tokenizer = AutoTokenizer.from_pretrained(BODY)
    train, validation, test = (
        batches(examples, tokenizer) for examples in (splits.train, splits.validation, splits.test)
    )
    names = dict(enumerate(task.labels))
    model = AutoModelForSequenceClassification.from_pretrained(
        BODY,
        num_labels=len(names),
        id2label=names,
        label2id={name: i for i, name in names.items()},
        dtype=torch.float32,
    ).eval()
    done = train_(Labels(Classifier(model)), train, validation, SETTINGS, progress=every_hundredth())
    model.save_pretrained(TUNED)
    tokenizer.save_pretrained(TUNED)
    found = predict_split(torch_predictor(model), test)
    result = {
        "examples": len(splits.train),
        "validation_accuracy": [epoch.metric for epoch in done.epochs],
        "kept_epoch": done.best,
        "test_accuracy": accuracy(found.labels, found.predicted),
        "seconds": round(done.seconds),
    }
    write_result("finetune-clinc150", seeds=[SETTINGS.seed], result=result)


def every_hundredth() -> Progress:
    """A line now and then."""

    def say(what: str, done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            print(what, done, "of", total, flush=True)

    return say


if __name__ == "__main__":
    main()

"""The tasks that benchmarks measure on, the checkpoints fine-tuned for them, and samples drawn from their data."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provenance import HERE

from skillprune import load_source, load_splits, make_batches, resolve_task
from skillprune.answers import label_names
from skillprune.checkpoint import Source
from skillprune.data import Batch, Example, Splits
from skillprune.recipe import ModelSpec, TaskSpec
from skillprune.scoring import ScoringData
from skillprune.tasks import Task

SHARED = HERE.parents[1] / "shared"
BODY = SHARED / "models" / "minilm-l6"
"""MiniLM as it was pretrained."""
CHECKPOINTS = {
    "sst2": SHARED / "models" / "minilm-sst2",
    "trec": SHARED / "models" / "minilm-trec",
    "clinc150": HERE / "work" / "minilm-clinc150",  # written by finetune.py
}


@dataclass(frozen=True)
class Sample:
    """A fine-tuned task with one calibration sample.

    Attributes:
        checkpoint: where the dense model is.
        source: the dense model.
        task: the resolved task.
        splits: its examples.
        data: calibration and validation in batches.
    """

    checkpoint: ModelSpec
    source: Source
    task: Task
    splits: Splits
    data: ScoringData

    @property
    def test(self) -> tuple[Batch, ...]:
        """The test split in batches."""
        return batches(self.splits.test, self.source.tokenizer)


def draw(name: str, seed: int, examples: int) -> Sample:
    """The seed draws so many calibration examples; the model computes in float32."""
    checkpoint = ModelSpec(name=str(CHECKPOINTS[name]), dtype="float32")
    source = load_source(checkpoint)
    task = resolve_task(spec(name), label_names(source.model))
    splits = load_splits(task, examples=examples, seed=seed)
    data = ScoringData(*(batches(split, source.tokenizer) for split in (splits.calibration, splits.validation)))
    return Sample(checkpoint, source, task, splits, data)


def spec(name: str) -> TaskSpec:
    """The task of a folder of data, with the labels of its training split."""
    folder = SHARED / "data" / name
    files = {split: folder / f"{split}.csv" for split in ("train", "validation", "test")}
    return TaskSpec(data=files, labels=labels_of(files["train"]), max_length=64)


def labels_of(path: Path) -> tuple[str, ...]:
    """Label names in alphabetical order, which is that of the fine-tuned checkpoints."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(sorted({row["label"] for row in csv.DictReader(file)}))


def batches(examples: Sequence[Example], tokenizer: Any) -> tuple[Batch, ...]:
    """Batches of 32, at most 64 tokens."""
    return make_batches(examples, tokenizer, max_length=64, batch_size=32)

"""Runs the model once per batch for all criteria that were asked for and collects their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from skillprune.activations import Position, stream_activations
from skillprune.data import Batch
from skillprune.evaluation import label_names
from skillprune.families import FFN, by_stack, find_ffns
from skillprune.progress import Progress, silent
from skillprune.scoring.criterion import Criterion, Settings, Split
from skillprune.scoring.predictivity import Predictivity
from skillprune.scoring.scores import NeuronScores, Provenance
from skillprune.scoring.wanda import Wanda
from skillprune.scoring.weights import Magnitude, Random

CRITERIA: dict[str, type[Criterion]] = {
    criterion.name: criterion for criterion in (Magnitude, Predictivity, Random, Wanda)
}
"""The criteria by name; a new one is one class in this room and one entry here."""


@dataclass(frozen=True)
class ScoringData:
    """Batches of the two splits that scoring may read; the test split is none of its business."""

    calibration: Sequence[Batch]
    validation: Sequence[Batch]

    def split(self, name: Split) -> Sequence[Batch]:
        """The batches of one split."""
        return self.calibration if name == "calibration" else self.validation


def score_neurons(
    model: PreTrainedModel,
    data: ScoringData,
    *,
    criteria: Sequence[str],
    provenance: Provenance,
    position: Position = "mean",
    progress: Progress = silent,
) -> tuple[NeuronScores, ...]:
    """Scores every FFN neuron under every named criterion, sharing the passes over the data.

    Raises:
        DataError: a class has no example in a split that is read, or a score is not finite.
        UnsupportedArchitecture: the model has no row in the family table.
    """
    ffns = find_ffns(model)
    workers = prepare_criteria(model, data, criteria, position, provenance.seed)
    for split in ("calibration", "validation"):
        readers = [worker for worker in workers if split in worker.reads]
        if readers:
            _stream(model, ffns, data.split(split), split, readers, progress)
    return tuple(
        NeuronScores(
            worker.name,
            {stack: tuple(worker.finish(ffn) for ffn in layers) for stack, layers in by_stack(ffns).items()},
            provenance,
        )
        for worker in workers
    )


def prepare_criteria(
    model: PreTrainedModel, data: ScoringData, criteria: Sequence[str], position: Position, seed: int
) -> list[Criterion]:
    """Fresh criteria for a model and its data; nothing is run, so this also serves to refuse unusable data early.

    Raises:
        DataError: a criterion needs a class that a split does not have.
        UnsupportedArchitecture: the model has no row in the family table.
    """
    ffns, labels = find_ffns(model), label_names(model)
    settings = Settings(position, labels, _class_counts(data, len(labels)), seed)
    return [CRITERIA[name](ffns, settings) for name in criteria]


def _stream(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    batches: Sequence[Batch],
    split: Split,
    readers: Sequence[Criterion],
    progress: Progress,
) -> None:
    def visit(ffn: FFN, activations: Tensor, batch: Batch) -> None:
        for reader in readers:
            reader.update(split, ffn, activations, batch)

    stream_activations(model, ffns, batches, visit, what=f"scoring ({split})", progress=progress)


def _class_counts(data: ScoringData, classes: int) -> dict[Split, tuple[int, ...]]:
    def count(batches: Sequence[Batch]) -> tuple[int, ...]:
        labels = np.array([label for batch in batches for label in batch.labels.tolist()], dtype=np.int64)
        return tuple(np.bincount(labels, minlength=classes).tolist())

    return {"calibration": count(data.calibration), "validation": count(data.validation)}

"""Runs the model once per batch and pass for all criteria that were asked for, and collects their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from skillprune.activations import PLAIN, Observation, Quantity, Reading, Visitor, stream
from skillprune.answers import Classifier, TaskModel
from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.families import FFN, Site, by_stack, find_ffns
from skillprune.progress import Progress, silent
from skillprune.scoring.activity import Fluctuation, Wanda
from skillprune.scoring.criterion import SPLITS, Criterion, LayerScores, Read, Settings, Split, per_neuron
from skillprune.scoring.exchange import failing_together, merge_processes, of_main, own_share, processes
from skillprune.scoring.gradients import Attribution, Fisher, GaussNewton, Taylor
from skillprune.scoring.precision import AveragePrecision
from skillprune.scoring.predictivity import Predictivity
from skillprune.scoring.probe import LinearProbe
from skillprune.scoring.scores import NeuronScores, Provenance
from skillprune.scoring.skill import Skill
from skillprune.scoring.weights import Magnitude, Random

CRITERIA: dict[str, type[Criterion]] = {
    criterion.name: criterion
    for criterion in (
        *(Skill, Wanda, Fluctuation, Magnitude, Random),
        *(Fisher, GaussNewton, Taylor),
        *(Predictivity, Attribution, AveragePrecision, LinearProbe),
    )
}
"""The criteria by name; a new one is one class in this room and one entry here."""

STATE_SHARE = 0.25
"""Share of the free memory that large states, such as Gram matrices, may take at a time."""


@dataclass(frozen=True)
class ScoringData:
    """Batches of the two splits that scoring may read; the test split is none of its business."""

    calibration: Sequence[Batch]
    validation: Sequence[Batch]

    def split(self, name: Split) -> Sequence[Batch]:
        """The batches of one split."""
        return self.calibration if name == "calibration" else self.validation


def score_neurons(
    model: PreTrainedModel | TaskModel,
    data: ScoringData,
    *,
    criteria: Sequence[str],
    provenance: Provenance,
    settings: Settings | None = None,
    state_bytes: int | None = None,
    progress: Progress = silent,
) -> tuple[NeuronScores, ...]:
    """Scores every FFN neuron under every named criterion, sharing the passes over the data.

    In a process group (torchrun) every process streams its share of the batches, and all return the same scores.

    Args:
        model: a classifier, or any model with the way its task is put to it.
        data: the examples; the same in every process.
        criteria: names in `CRITERIA`.
        provenance: what the scores will say they come from.
        settings: where sequences are read and the like; `settings_for` fills in what the data tell.
        state_bytes: memory for large states; layers that do not fit together are scored in further passes. None takes
            a quarter of what is free, on the machine or on the fullest GPU that holds layers, shared by all processes.
        progress: told about every batch.

    Raises:
        DataError: a class is too rare in a split that is read, an activation, a gradient or a score is not finite, or
            gradients are asked for in float16.
        ResourceFailure: not even one example fits into the device's memory.
        UnsupportedArchitecture: the model has no row in the family table.
    """
    subject = model if isinstance(model, TaskModel) else Classifier(model)
    settings = settings or settings_for(subject, data, seed=provenance.seed)
    ffns = find_ffns(subject.model)
    workers = prepare_criteria(ffns, criteria, settings)
    found: dict[str, dict[Site, LayerScores]] = {worker.name: {} for worker in workers}
    budget = of_main(_free_bytes(ffns) if state_bytes is None else state_bytes)
    try:
        for shifts in _rounds(workers, ffns, budget):
            observe(subject, data, shifts, settings.reading, progress)
            for worker, sites in shifts:
                found[worker.name] |= {ffn.site: per_neuron(worker.finish(ffn), ffn) for ffn in sites}
                _forget(worker, sites)
    finally:
        for worker in workers:
            _forget(worker, ffns)
    return tuple(_gathered(worker, ffns, found[worker.name], provenance) for worker in workers)


def settings_for(model: PreTrainedModel | TaskModel, data: ScoringData, **others: Any) -> Settings:
    """Settings with everything filled in that the model and the data tell; ``others`` are further fields.

    Only a classification head names its classes; for label words, give ``labels``.

    Raises:
        DataError: a split that scoring reads has no examples.
    """
    subject = model if isinstance(model, TaskModel) else Classifier(model)
    labels = tuple(others.pop("labels", subject.labels))
    examples = {split: sum(map(len, data.split(split))) for split in SPLITS}
    if not examples["calibration"]:
        raise DataError("there are no calibration examples to score with; give at least one")
    computed: torch.dtype = subject.model.dtype
    return Settings(
        labels=labels,
        class_counts={split: _class_counts(data.split(split), len(labels)) for split in SPLITS},
        examples=examples,
        dtype=torch.promote_types(computed, torch.float32),
        **others,
    )


Shift = tuple[Criterion, tuple[FFN, ...]]
"""A criterion and the FFNs it looks at in one round."""


def observe(
    subject: TaskModel, data: ScoringData, shifts: Sequence[Shift], reading: Reading, progress: Progress = silent
) -> None:
    """Streams both splits past the criteria, in as few passes as they allow; afterwards they are ready to finish."""
    for split in SPLITS:
        _read_split(subject, data.split(split), split, shifts, reading, progress)


def prepare_criteria(ffns: Sequence[FFN], criteria: Sequence[str], settings: Settings) -> list[Criterion]:
    """Fresh criteria; nothing is run, so this also serves to refuse unusable data early.

    Raises:
        DataError: a criterion needs a class that a split does not have enough of, or gradients of a float16 model.
    """
    workers = [CRITERIA[name](ffns, settings) for name in criteria]
    _refuse_underflow(ffns, workers)
    return workers


def _rounds(workers: Sequence[Criterion], ffns: Sequence[FFN], budget: int) -> Iterator[list[Shift]]:
    """Who looks at what in which round: everybody at everything at once, unless states are too large together."""
    heavy = [worker for worker in workers if worker.state_bytes(ffns[0])]
    light: list[Shift] = [(worker, tuple(ffns)) for worker in workers if worker not in heavy]
    waiting = list(ffns) if heavy else []
    while True:
        group: list[FFN] = []
        room = budget
        while waiting and (not group or room >= sum(worker.state_bytes(waiting[0]) for worker in heavy)):
            room -= sum(worker.state_bytes(waiting[0]) for worker in heavy)
            group.append(waiting.pop(0))
        yield light + [(worker, tuple(group)) for worker in heavy]
        light = []
        if not waiting:
            return


def _read_split(
    subject: TaskModel,
    batches: Sequence[Batch],
    split: Split,
    shifts: Sequence[Shift],
    reading: Reading,
    progress: Progress,
) -> None:
    """Runs the model once over one split, as far as some criterion wants it, and sums up what all processes saw."""
    total = sum(map(len, batches))
    wanted = [(worker, ffns, read) for worker, ffns in shifts for read in worker.reads if read.split == split]
    start = 0
    for end in sorted({read.end(total) for _, _, read in wanted}):
        readers = [(worker, ffns, read) for worker, ffns, read in wanted if read.end(total) >= end]
        with failing_together():
            stream(
                subject,
                list({ffn.site: ffn for _, ffns, _ in readers for ffn in ffns}.values()),
                own_share(_between(batches, start, end)),
                [_visitor(worker, ffns, read) for worker, ffns, read in readers],
                quantities=_quantities(readers[0][0].settings.seed),
                reading=reading,
                what=f"scoring ({split})" if end - start == total else f"scoring ({split}, {end - start} examples)",
                progress=progress,
            )
        start = end
    for worker, ffns in shifts:
        if any(read.split == split for read in worker.reads):
            merge_processes(worker, ffns, split)


def _refuse_underflow(ffns: Sequence[FFN], workers: Sequence[Criterion]) -> None:
    """In float16 small gradients become zero, and neurons would be ranked by noise."""
    names = [worker.name for worker in workers if any(read.quantity != PLAIN for read in worker.reads)]
    if names and any(ffn.dtype == torch.float16 for ffn in ffns):
        raise DataError(
            f"{', '.join(names)}: gradients underflow in float16; set model.dtype to float32 or bfloat16, or choose a "
            "criterion without gradients"
        )


def _free_bytes(ffns: Sequence[FFN]) -> int:
    """What large states may take in each process; they live where the layers compute."""
    gpus = {ffn.device for ffn in ffns if ffn.device.type == "cuda"}
    free = [psutil.virtual_memory().available, *(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)]
    return int(STATE_SHARE * min(free)) // processes()[1]


def _forget(worker: Criterion, ffns: Sequence[FFN]) -> None:
    for ffn in ffns:
        worker.forget(ffn)


def _visitor(worker: Criterion, ffns: Sequence[FFN], read: Read) -> Visitor:
    def look(seen: Observation) -> None:
        worker.update(read, seen)

    return Visitor(read.quantity, frozenset(ffn.site for ffn in ffns), look)


def _quantities(seed: int) -> Mapping[str, Quantity]:
    return {
        "loss": lambda answers, batch: answers.losses(),
        "sampled": lambda answers, batch: answers.sampled(seed, batch.indices),
    }


def _between(batches: Sequence[Batch], start: int, end: int) -> dict[int, Batch]:
    """Some examples in the order of the split, whichever batches they are in, by the number of their batch."""
    places = torch.cat([batch.indices for batch in batches]).argsort().argsort().split([*map(len, batches)])
    rows = [(start <= place) & (place < end) for place in places]
    return {
        number: batch if bool(chosen.all()) else batch.select(chosen)
        for number, (batch, chosen) in enumerate(zip(batches, rows, strict=True))
        if bool(chosen.any())
    }


def _gathered(
    worker: Criterion, ffns: Sequence[FFN], found: Mapping[Site, LayerScores], provenance: Provenance
) -> NeuronScores:
    stacks = by_stack(ffns)
    names = found[ffns[0].site].details
    details: dict[str, dict[str, tuple[NDArray[Any], ...]]] = {
        name: {stack: tuple(found[ffn.site].details[name] for ffn in layers) for stack, layers in stacks.items()}
        for name in names
    }
    values = {stack: tuple(found[ffn.site].scores for ffn in layers) for stack, layers in stacks.items()}
    return NeuronScores(worker.name, values, provenance, details)


def _class_counts(batches: Sequence[Batch], classes: int) -> tuple[int, ...]:
    labels = np.array([label for batch in batches for label in batch.labels.tolist()], dtype=np.int64)
    return tuple(np.bincount(labels, minlength=classes).tolist())

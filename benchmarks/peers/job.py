"""What the scripts of all peers share: reading a job, making batches, answering the test split, writing outcomes.

A job is one peer on one task and one calibration sample; it names the arms and how many neurons each may keep. Nothing
here imports skillprune: every peer runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Examples of like length.

    Attributes:
        inputs: ``input_ids`` and ``attention_mask``, ``(batch, sequence)``.
        labels: class numbers, ``(batch,)``.
        indices: positions in the split, ``(batch,)``.
    """

    inputs: dict[str, Integers]
    labels: Integers
    indices: Integers

    def tensors(self) -> dict[str, Tensor]:
        """The model's keyword arguments, labels included."""
        return {name: torch.from_numpy(value) for name, value in {**self.inputs, "labels": self.labels}.items()}


@dataclass(frozen=True)
class Arm:
    """One way to prune, down to a number of neurons in all layers together."""

    name: str
    neurons: int
    settings: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Job:
    """What a peer is given.

    Attributes:
        checkpoint: folder of the fine-tuned classifier.
        calibration: ``.npz`` with ``input_ids``, ``attention_mask`` ``(examples, sequence)`` and ``labels``.
        test: the same of the test split.
        arms: what to do, in order.
        packages: distributions whose versions belong to an outcome.
        scratch: folder for what the peer leaves on the way.
    """

    checkpoint: Path
    calibration: Path
    test: Path
    arms: tuple[Arm, ...]
    packages: tuple[str, ...]
    scratch: Path

    def open_arms(self) -> Iterator[Arm]:
        """Arms without an outcome."""
        for arm in self.arms:
            if not (arm.folder / "outcome.json").is_file():
                arm.folder.mkdir(parents=True, exist_ok=True)
                yield arm


def read_job() -> Job:
    """The job whose file is the only argument."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    path = parser.parse_args().job
    given = json.loads(path.read_text(encoding="utf-8"))
    arms = tuple(Arm(each["name"], each["neurons"], each["settings"], Path(each["folder"])) for each in given["arms"])
    files = (Path(given[name]) for name in ("checkpoint", "calibration", "test"))
    return Job(*files, arms, tuple(given["packages"]), path.parent)


def load_dense(job: Job) -> PreTrainedModel:
    """The dense classifier in float32, in evaluation mode; embeddings, which nobody scores, take no gradient."""
    model = AutoModelForSequenceClassification.from_pretrained(job.checkpoint, attn_implementation="eager")
    model = model.float().eval()
    for parameter in model.get_input_embeddings().parameters():
        parameter.requires_grad_(False)
    return model


def read_batches(path: Path, size: int, *, padded: bool = True, examples: int | None = None) -> list[Batch]:
    """Batches of like length, the longest first.

    Args:
        path: the split.
        size: examples per batch, at most.
        padded: whether shorter examples are padded to the longest of their batch; otherwise all are of one length.
        examples: read only so many, from the start of the split.
    """
    with np.load(path) as file:
        split = {name: file[name][:examples] for name in ("input_ids", "attention_mask", "labels")}
    lengths = split["attention_mask"].sum(axis=1)
    order = np.argsort(-lengths, kind="stable")
    groups = [order] if padded else [order[lengths[order] == length] for length in sorted(set(lengths), reverse=True)]
    chunks = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
    return [_batch(split, chunk, int(lengths[chunk].max())) for chunk in chunks]


def _batch(split: Mapping[str, Integers], chunk: Integers, longest: int) -> Batch:
    inputs = {name: split[name][chunk, :longest] for name in ("input_ids", "attention_mask")}
    return Batch(inputs, split["labels"][chunk], chunk)


def ups(model: PreTrainedModel) -> list[nn.Linear]:
    """The up projection of every layer."""
    return [layer.intermediate.dense for layer in model.base_model.encoder.layer]


def answer(model: nn.Module, batches: Sequence[Batch]) -> NDArray[np.float32]:
    """Logits in the order of the split, ``(examples, classes)``."""
    with torch.inference_mode():
        found = [model(**{**batch.tensors(), "labels": None}).logits.numpy() for batch in batches]
    return in_order(found, batches)


def in_order(found: Sequence[NDArray[np.float32]], batches: Sequence[Batch]) -> NDArray[np.float32]:
    """Logits of batches in the order of the split."""
    logits = np.concatenate(found)
    logits[np.concatenate([batch.indices for batch in batches])] = np.concatenate(found)
    return logits


def write_outcome(
    job: Job, arm: Arm, logits: NDArray[np.float32], *, widths: Sequence[int], parameters: int, since: float
) -> None:
    """Writes what became of an arm; the outcome comes last, so that whoever finds one finds it whole.

    Raises:
        ValueError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ValueError(f"{arm.name}: logits are not finite")
    # There are 150 classes at most.
    np.savez_compressed(arm.folder / "answers.npz", predicted=logits.argmax(axis=1).astype(np.uint8))
    outcome = {
        "widths": list(widths),
        "parameters": parameters,
        "seconds": round(time.perf_counter() - since, 1),
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in job.packages},
        },
    }
    partial = arm.folder / "outcome.partial"
    partial.write_text(json.dumps(outcome, indent=2), encoding="utf-8")
    os.replace(partial, arm.folder / "outcome.json")
    print(arm.name, arm.neurons, outcome, flush=True)

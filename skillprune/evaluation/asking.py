"""Puts a split to a model and keeps what comes of every example, in the order of the split.

A predictor is any callable from a batch to logits, so a PyTorch model and an ONNX file are scored the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import takewhile
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from skillprune.activations import Capacity, evaluating
from skillprune.answers import TaskModel
from skillprune.data import NO_TARGET, Batch
from skillprune.errors import DataError
from skillprune.evaluation.outcomes import METRICS, Losses, Outcome, Predictions
from skillprune.progress import Progress, silent, track

Predictor = Callable[[Batch], NDArray[np.float32]]
"""Maps a batch to logits ``(batch, classes)``."""


def torch_predictor(model: PreTrainedModel) -> Predictor:
    """Predicts with a PyTorch classifier on the device it is on, in evaluation mode."""

    def predict(batch: Batch) -> NDArray[np.float32]:
        with evaluating(model), torch.inference_mode():
            logits = model(**batch.to(model.device).inputs).logits
        return np.asarray(logits.float().cpu().numpy(), dtype=np.float32)

    return predict


def predict_split(
    predict: Predictor, batches: Sequence[Batch], *, what: str = "evaluation", progress: Progress = silent
) -> Predictions:
    """Answers every batch and puts the answers back in the order of the split.

    Raises:
        DataError: a logit is not finite.
    """
    total = sum(len(batch.labels) for batch in batches)
    labels, predicted = np.zeros(total, np.int64), np.zeros(total, np.int64)
    for number, batch in enumerate(track(batches, what, progress)):
        logits = predict(batch)
        if not np.isfinite(logits).all():
            raise DataError(f"{what}: the model's logits are not finite in batch {number}")
        labels[batch.indices.numpy()] = batch.labels.numpy()
        predicted[batch.indices.numpy()] = logits.argmax(axis=1)
    return Predictions(labels, predicted)


def judge_split(
    subject: TaskModel,
    batches: Sequence[Batch],
    metric: str,
    *,
    what: str = "evaluation",
    progress: Progress = silent,
) -> Outcome:
    """Puts a task to a PyTorch model on the device it is on, as its metric wants it.

    Batches that do not fit into its memory are put in halves.

    Args:
        subject: the model, with the way its task is put to it.
        batches: the split.
        metric: ``exact_match`` has it write greedily, ``loss`` and ``perplexity`` tell how likely the right text is,
            the others are of the classes it chooses.
        what: name of the work, for messages.
        progress: told about every batch.

    Raises:
        DataError: a logit or a loss is not finite.
        ResourceFailure: not even one example fits into the device's memory.
    """
    with evaluating(subject.model), torch.inference_mode():
        if metric == "exact_match":
            return _write_split(subject, batches, what, progress)
        if metric in METRICS:
            return predict_split(_chooser(subject), batches, what=what, progress=progress)
        return _lose_split(subject, batches, what, progress)


def _chooser(subject: TaskModel) -> Predictor:
    capacity = Capacity()

    def choices(batch: Batch) -> NDArray[np.float32]:
        found = subject.ask(subject.prepare(batch)).choices()
        return np.asarray(found.float().cpu().numpy(), dtype=np.float32)

    return lambda batch: np.concatenate(capacity.run(batch, choices))


def _lose_split(subject: TaskModel, batches: Sequence[Batch], what: str, progress: Progress) -> Losses:
    total = sum(map(len, batches))
    summed, tokens = np.zeros(total), np.zeros(total, np.int64)
    capacity = Capacity()
    for number, batch in enumerate(track(batches, what, progress)):
        losses = torch.cat(capacity.run(batch, lambda piece: subject.ask(subject.prepare(piece)).losses()))
        if not bool(losses.isfinite().all()):
            raise DataError(f"{what}: the model's losses are not finite in batch {number}")
        assert batch.targets is not None  # tasks whose loss counts have targets
        summed[batch.indices.numpy()] = losses.double().cpu().numpy()
        tokens[batch.indices.numpy()] = (batch.targets != NO_TARGET).sum(dim=1).numpy()
    return Losses(summed, tokens)


def _write_split(subject: TaskModel, batches: Sequence[Batch], what: str, progress: Progress) -> Predictions:
    """Greedy decoding, to one token beyond the longest target: who has not stopped by then is wrong.

    Whatever else the checkpoint's generation config asks for, such as a first token, it gets.
    """
    total, capacity, generate = sum(map(len, batches)), Capacity(), cast(Any, subject.model.generate)
    wanted, written = np.zeros(total, np.int64), np.zeros(total, np.int64)
    ends = _ends_of(subject.model)

    def write(batch: Batch) -> None:
        assert batch.targets is not None  # texts to write have targets
        there = subject.prepare(batch).inputs
        read = {name: there[name] for name in there if not name.startswith("decoder_")}
        tokens = generate(**read, max_new_tokens=batch.targets.shape[1] + 1, do_sample=False, num_beams=1)
        for index, right, text in zip(
            batch.indices.tolist(), batch.targets.tolist(), tokens[:, 1:].tolist(), strict=True
        ):
            wanted[index] = _number_of([token for token in right if token != NO_TARGET], ends)
            written[index] = _number_of(text, ends)

    for batch in track(batches, what, progress):
        capacity.run(batch, write)
    return Predictions(wanted, written)


def _ends_of(model: PreTrainedModel) -> frozenset[int]:
    """Tokens that end a text; some checkpoints have several."""
    generation = model.generation_config
    found = model.config.eos_token_id if generation is None else generation.eos_token_id
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def _number_of(tokens: Sequence[int], ends: frozenset[int]) -> int:
    """A number that stands for the text before its end, the same on every machine."""
    kept = list(takewhile(lambda token: token not in ends, tokens))
    return int.from_bytes(blake2b(np.array(kept, np.int64).tobytes(), digest_size=7).digest(), "little")

"""Trains a pruned model towards the dense one; what the distance between them is, is said in objective."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from torch import nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from skillprune.activations import fitting
from skillprune.activations.hooks import evaluating, frozen
from skillprune.answers import TaskModel
from skillprune.data import Batch
from skillprune.errors import DataError, PlanMismatch
from skillprune.evaluation import METRICS
from skillprune.families import find_ffns
from skillprune.progress import Progress, silent, track
from skillprune.recovery.objective import Distance, Objective
from skillprune.recovery.parameters import trained
from skillprune.recovery.state import State, StateFile, copies, fingerprint
from skillprune.recovery.teacher import Teacher
from skillprune.recovery.values import Epoch, Recovery, RecoverySettings

_WARM_UP_SHARE, _LARGEST_GRADIENT = 0.1, 1.0


def recover_(
    student: TaskModel,
    teacher: TaskModel,
    train: Sequence[Batch],
    validation: Sequence[Batch],
    settings: RecoverySettings,
    *,
    metric: str = "accuracy",
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> Recovery:
    """Trains the student in place to answer and to compute as the teacher does; labels count only by their weight.

    Both compute where they are. The student gets the parameters of its best epoch on validation, which may be those it
    came with: recovery never makes it worse there. The same seed and batches give the same parameters, bit for bit on
    a CPU, however often training was interrupted.

    Args:
        student: the pruned model, in float32.
        teacher: the dense one, put to the task in the same way; it stays as it is.
        train: batches to learn from, in an order drawn anew for every epoch. Never of the test split.
        validation: batches that say which epoch is best.
        settings: schedule, weights of the loss, what is trained.
        metric: name of the task's metric, or ``loss`` where the loss of the task is it.
        checkpoint: file that is written after every epoch; what an earlier call left there is gone on from, if it was
            for the same settings, models and batches. Remove it when the model is saved.
        progress: told about every batch.

    Returns:
        Where the model stood on validation before training and after every epoch.

    Raises:
        DataError: a split is empty, or the loss is not finite.
        PlanMismatch: student and teacher have different layers.
        ResourceFailure: the disk failed, or a batch does not fit into the device's memory. After any error during
            training the student is of no use: load it again.
        ValueError: a parameter to train is not in float32 or not in memory, there is none, the models are the same
            one, the metric is unknown, or this process uses accelerate in another precision.
    """
    _refuse_unpaired(student, teacher)
    with evaluating(teacher.model), frozen(teacher.model):
        distance = Distance(student, Teacher(teacher), settings)
        return train_(
            distance, train, validation, settings, (teacher,), metric=metric, checkpoint=checkpoint, progress=progress
        )


def train_(
    objective: Objective,
    train: Sequence[Batch],
    validation: Sequence[Batch],
    settings: RecoverySettings,
    others: Sequence[TaskModel] = (),
    *,
    metric: str = "accuracy",
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> Recovery:
    """Trains a model in place towards any objective, as `recover_` does towards a teacher.

    Args:
        objective: what to lower.
        train: batches to learn from.
        validation: batches that say which epoch is best.
        settings: schedule, and what is trained.
        others: models that the objective asks, which a training that is gone on with must not have changed.
        metric: as for `recover_`.
        checkpoint: as for `recover_`.
        progress: told about every batch.

    Returns:
        Where the model stood on validation before training and after every epoch.

    Raises:
        DataError: a split is empty, or the loss is not finite.
        ResourceFailure: the disk failed, or a batch does not fit into the device's memory.
        ValueError: a parameter to train is not in float32 or not in memory, there is none, the metric is unknown, or
            this process uses accelerate in another precision.
    """
    _refuse_unusable(train, validation, metric)
    subjects = (objective.student, *others)
    file = None
    if checkpoint is not None:
        seen = fingerprint(type(objective).__name__, subjects, train, validation, settings, metric)
        file = StateFile(checkpoint, seen)
    validate = partial(_standing, objective, validation, settings, metric, progress)
    with _ready(objective.student.model, settings) as (parameters, accelerator):
        state = _begin(parameters, settings, file, validate)
        while not _is_over(state.so_far, settings):
            start, number = time.perf_counter(), len(state.so_far.epochs)
            _train_epoch_(objective, state, train, settings, accelerator, progress)
            state.add(validate(number), time.perf_counter() - start)
            if file is not None:
                file.write(state)
        state.restore_best_()
    return state.so_far


@contextmanager
def _ready(model: PreTrainedModel, settings: RecoverySettings) -> Iterator[tuple[dict[str, nn.Parameter], Accelerator]]:
    """The parameters to train and what trains them, the model prepared for it; afterwards it is as it was."""
    # Evaluation mode, also while training: the teacher's answers are to be matched, and dropout would let the student
    # chase noise that training this short does not average out. It also needs no random state to resume.
    with evaluating(model), trained(model, settings.train) as parameters:
        with _accelerated(_precision(settings, model)) as accelerator:
            yield parameters, accelerator


def _begin(
    parameters: Mapping[str, nn.Parameter],
    settings: RecoverySettings,
    file: StateFile | None,
    validate: Callable[[int], Epoch],
) -> State:
    """Where an interrupted training stopped, or the state before training."""
    optimizer = AdamW(list(parameters.values()), lr=settings.learning_rate, fused=True)
    resumed = None if file is None else file.resume_(parameters, optimizer)
    return resumed or State(parameters, optimizer, copies(parameters), Recovery((validate(0),), best=0))


def _refuse_unusable(train: Sequence[Batch], validation: Sequence[Batch], metric: str) -> None:
    if not train or not validation:
        raise DataError("recovery needs examples to learn from and validation examples to choose the best epoch")
    if metric not in (*METRICS, "loss"):
        raise ValueError(f"unknown metric {metric!r}; there are {', '.join(METRICS)} and loss")


def _refuse_unpaired(student: TaskModel, teacher: TaskModel) -> None:
    if student.model is teacher.model:
        raise ValueError("student and teacher are the same model; load the dense one once more")
    mine, others = ([ffn.site for ffn in find_ffns(subject.model)] for subject in (student, teacher))
    if mine != others:
        raise PlanMismatch(f"the student has the layers {mine}, the teacher {others}; recovery pairs them one to one")


def _is_over(done: Recovery, settings: RecoverySettings) -> bool:
    trained_for = len(done.epochs) - 1
    return trained_for >= settings.epochs or trained_for - done.best >= settings.patience


def _train_epoch_(
    objective: Objective,
    state: State,
    train: Sequence[Batch],
    settings: RecoverySettings,
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    number = len(state.so_far.epochs)
    order = np.random.default_rng([settings.seed, number]).permutation(len(train)).tolist()
    first, total = (number - 1) * len(train), settings.epochs * len(train)
    for step, index in enumerate(track(order, f"recovery (epoch {number} of {settings.epochs})", progress), first):
        for group in state.optimizer.param_groups:
            group["lr"] = settings.learning_rate * pace(step, total)
        work = f"training on batch {index} of {len(train[index])} examples"
        with fitting(work, "lower scoring.batch_size, or set recovery.train to neurons"):
            with accelerator.autocast(), torch.enable_grad():
                loss, _ = objective.on(train[index])
            _refuse_not_finite(loss, index)
            accelerator.backward(loss)
        accelerator.clip_grad_norm_(state.parameters.values(), _LARGEST_GRADIENT)
        state.optimizer.step()
        state.optimizer.zero_grad()


def pace(step: int, total: int) -> float:
    """Share of the learning rate at a step counted from 0: a linear rise over the first tenth, then a linear fall."""
    rise = max(1, int(_WARM_UP_SHARE * total))
    return min((step + 1) / rise, (total - step) / max(1, total - rise))


def _standing(
    objective: Objective,
    batches: Sequence[Batch],
    settings: RecoverySettings,
    metric: str,
    progress: Progress,
    epoch: int,
) -> Epoch:
    """Where the student stands on validation, in the precision it will be used in."""
    what = f"recovery (validation, epoch {epoch} of {settings.epochs})"
    sums, labels, predicted = [], [], []
    with torch.no_grad():
        for number, batch in enumerate(track(batches, what, progress)):
            with fitting(f"validation on batch {number} of {len(batch)} examples", "lower scoring.batch_size"):
                loss, answers = objective.on(batch)
                _refuse_not_finite(loss, number)
                sums.append((float(loss) * len(answers), float(answers.losses().sum()), len(answers)))
                predicted.append(answers.choices().argmax(dim=-1).cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
    *totals, answered = np.sum(sums, axis=0)
    distance, task_loss = (float(total / answered) for total in totals)
    if metric == "loss":
        return Epoch(-task_loss, distance)
    return Epoch(METRICS[metric](np.concatenate(labels), np.concatenate(predicted)), distance)


def _refuse_not_finite(loss: torch.Tensor, number: int) -> None:
    if not bool(loss.isfinite()):
        raise DataError(f"the loss of the recovery is not finite in batch {number}; lower recovery.learning_rate")


def _precision(settings: RecoverySettings, student: PreTrainedModel) -> str:
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if student.device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"


@contextmanager
def _accelerated(precision: str) -> Iterator[Accelerator]:
    """accelerate for the time of the context; its precision is the whole process's, so it is given back."""
    theirs = is_initialized()
    try:
        yield Accelerator(mixed_precision=precision)
    finally:
        if not theirs:
            AcceleratorState._reset_state()

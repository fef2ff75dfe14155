"""Where a recovery stands, in memory and in a file it can go on from: safetensors, never a pickle.

accelerate's own ``save_state`` pickles optimiser and random states. Here no random state is needed, since the order of
batches follows from seed and epoch, and the step size from the number of the step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from skillprune.answers import TaskModel
from skillprune.data import Batch
from skillprune.errors import ResourceFailure
from skillprune.recovery.values import Epoch, Recovery, RecoverySettings

logger = logging.getLogger(__name__)

_FORMAT = "skillprune recovery 1"
_NOW, _BEST = "now", "best"


@dataclass(eq=False)
class State:
    """Training in progress, after some epochs.

    Attributes:
        parameters: what is trained, by name.
        optimizer: of these parameters.
        best: copies of the best epoch's parameters.
        so_far: the epochs until now.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: Optimizer
    best: dict[str, Tensor]
    so_far: Recovery

    def add(self, epoch: Epoch, seconds: float) -> None:
        """Takes note of an epoch, and of the parameters if it is the best."""
        done = self.so_far
        best = done.best
        if epoch.beats(done.epochs[best]):
            best, self.best = len(done.epochs), copies(self.parameters)
        self.so_far = Recovery((*done.epochs, epoch), best, done.seconds + seconds)

    def restore_best_(self) -> None:
        """Gives the parameters the best epoch's values."""
        _copy_(self.parameters, self.best)


@dataclass(frozen=True)
class StateFile:
    """The file that a state is kept in between epochs.

    Attributes:
        path: where it is.
        fingerprint: of all that the result depends on; a file with another one is not gone on from.
    """

    path: Path
    fingerprint: str

    def write(self, state: State) -> None:
        """Writes everything, whole or not at all; about four times the size of what is trained.

        Raises:
            ResourceFailure: the disk failed; an older file is intact.
        """
        tensors: dict[str, Tensor] = {f"{_NOW}.{name}": value for name, value in state.parameters.items()}
        tensors |= {f"{_BEST}.{name}": value for name, value in state.best.items()}
        for name, parameter in state.parameters.items():
            tensors |= {f"{kind}.{name}": value for kind, value in state.optimizer.state[parameter].items()}
        about = {"format": _FORMAT, "fingerprint": self.fingerprint, "recovery": json.dumps(asdict(state.so_far))}
        draft = self.path.with_name(f"{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, draft, about)
            os.replace(draft, self.path)
        except (OSError, SafetensorError) as failed:
            with suppress(OSError):
                draft.unlink()
            raise ResourceFailure(f"{self.path} could not be written: {failed}") from failed

    def resume_(self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> State | None:
        """The state in the file, with parameters and optimiser brought to it; None if there is none to go on from."""
        found = self._read()
        if found is None:
            return None
        done, tensors = found
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            parts.setdefault(kind, {})[name] = value.to(parameters[name].device)
        _copy_(parameters, parts.pop(_NOW))
        best = parts.pop(_BEST)
        for kind, values in parts.items():
            for name, value in values.items():
                optimizer.state[parameters[name]][kind] = value
        return State(parameters, optimizer, best, done)

    def _read(self) -> tuple[Recovery, dict[str, Tensor]] | None:
        """What the file holds; None if there is no file, or a damaged one, or one of another training."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata() or {}
                if (about.get("format"), about.get("fingerprint")) != (_FORMAT, self.fingerprint):
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except SafetensorError as damaged:
            logger.warning("%s is damaged (%s), so training starts anew", self.path, damaged)
            return None
        done = json.loads(about["recovery"])
        return Recovery(tuple(Epoch(**epoch) for epoch in done["epochs"]), done["best"], done["seconds"]), tensors


def fingerprint(
    objective: str,
    subjects: Sequence[TaskModel],
    train: Sequence[Batch],
    validation: Sequence[Batch],
    settings: RecoverySettings,
    metric: str,
) -> str:
    """SHA-256 in hexadecimal over all that the result depends on: settings, weights before training, examples."""
    kinds = [type(subject).__name__ for subject in subjects]
    versions = [version(name) for name in ("skillprune", "torch", "transformers")]
    digest = hashlib.sha256(json.dumps([asdict(settings), metric, objective, kinds, versions]).encode())
    weights = (pair for subject in subjects for pair in _weights(subject))
    for name, value in (*weights, *_contents(train), *_contents(validation)):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights(subject: TaskModel) -> Iterator[tuple[str, Tensor]]:
    # What accelerate keeps elsewhere has no values here; only a teacher can be spread like that.
    yield from ((name, value) for name, value in subject.model.named_parameters() if value.device.type != "meta")


def _contents(batches: Sequence[Batch]) -> Iterator[tuple[str, Tensor]]:
    for batch in batches:
        yield from batch.inputs.items()
        yield "labels", batch.labels
        if batch.targets is not None:
            yield "targets", batch.targets


def copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies of tensors."""
    return {name: value.detach().clone() for name, value in values.items()}


def _copy_(values: Mapping[str, Tensor], news: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            value.copy_(news[name])

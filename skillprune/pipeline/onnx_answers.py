"""ONNX files in the place of the models they were made from, so that one code judges both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skillprune.answers import TaskModel
from skillprune.benchmark import open_session, open_writer
from skillprune.data import Batch
from skillprune.evaluation import Outcome, judge_split
from skillprune.generation import generate_greedy
from skillprune.progress import Progress
from skillprune.recipe import BenchmarkSpec

CPU = torch.device("cpu")


def arrays_of(batch: Batch) -> dict[str, NDArray[np.int64]]:
    """A batch's inputs as ONNX Runtime takes them."""
    return _arrays(batch.inputs)


def answers(
    path: Path,
    subject: TaskModel,
    batches: Sequence[Batch],
    metric: str,
    spec: BenchmarkSpec,
    *,
    what: str,
    progress: Progress,
) -> Outcome:
    """Puts a split to a file, or to the directory of a writer, on the provider and with the threads of the recipe.

    Args:
        path: of the file or directory.
        subject: how the task is put to a model; the file takes its model's place.
        batches: the split.
        metric: decides what is asked for.
        spec: threads and provider.
        what: name of the work, for messages.
        progress: told about every batch.

    Raises:
        ProviderUnavailable: the provider asked for does not run the file.
        DataError: a logit is not finite.
    """
    opened = _OpenWriter(path, spec) if path.is_dir() else _OpenGraph(path, spec)
    stands_in = replace(subject, model=cast(Any, opened))
    return judge_split(stands_in, batches, metric, what=what, progress=progress)


class _OpenGraph(nn.Module):
    """A file that says all at once, called like the model it was made from."""

    device = CPU

    def __init__(self, path: Path, spec: BenchmarkSpec) -> None:
        super().__init__()
        self.session = open_session(path, threads=spec.threads, provider=spec.provider)
        self.names = {given.name for given in self.session.get_inputs()}

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        given = {name: array for name, array in _arrays(inputs).items() if name in self.names}
        return SimpleNamespace(logits=torch.from_numpy(self.session.run(["logits"], given)[0]))


class _OpenWriter(nn.Module):
    """The files of a model that writes, called like it."""

    device = CPU

    def __init__(self, path: Path, spec: BenchmarkSpec) -> None:
        super().__init__()
        self.writer = open_writer(path, threads=spec.threads, provider=spec.provider)
        self.generation_config = SimpleNamespace(eos_token_id=list(self.writer.signs.ends))

    def forward(self, *, use_cache: bool = False, **inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.from_numpy(self.writer.logits(_arrays(inputs))))

    def generate(self, *, max_new_tokens: int, do_sample: bool, num_beams: int, **inputs: Tensor) -> Tensor:
        """What is written after the token that starts it, and that token; always greedily."""
        written = generate_greedy(self.writer, _arrays(inputs), max_new_tokens)
        start = np.full((len(written), 1), self.writer.signs.start)
        return torch.from_numpy(np.concatenate([start, written], axis=1))


def _arrays(inputs: dict[str, Tensor]) -> dict[str, NDArray[np.int64]]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}

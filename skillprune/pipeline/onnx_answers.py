"""What an ONNX file of a classifier answers to a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skillprune.benchmark import open_session
from skillprune.data import Batch
from skillprune.evaluation import Predictions, predict_split
from skillprune.progress import Progress
from skillprune.recipe import BenchmarkSpec


def arrays_of(batch: Batch) -> dict[str, NDArray[np.int64]]:
    """A batch's inputs as ONNX Runtime takes them."""
    return {name: tensor.numpy() for name, tensor in batch.inputs.items()}


def answers(path: Path, batches: Sequence[Batch], spec: BenchmarkSpec, *, what: str, progress: Progress) -> Predictions:
    """Puts a split to the file, on the provider and with the threads of the recipe.

    Raises:
        ProviderUnavailable: the provider asked for does not run the file.
        DataError: a logit is not finite.
    """
    session = open_session(path, threads=spec.threads, provider=spec.provider)
    names = {given.name for given in session.get_inputs()}

    def predict(batch: Batch) -> NDArray[np.float32]:
        given = {name: array for name, array in arrays_of(batch).items() if name in names}
        logits: NDArray[np.float32] = session.run(["logits"], given)[0]
        return logits

    return predict_split(predict, batches, what=what, progress=progress)

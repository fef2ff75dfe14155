"""What is made of a pruned checkpoint for ONNX Runtime: files, each proven against PyTorch, and how fast they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from skillprune.benchmark import Latency, Subject, measure_latency, open_session
from skillprune.checkpoint import Attention, Source
from skillprune.data import Batch
from skillprune.evaluation import Predictions, predict_split
from skillprune.export import export_onnx
from skillprune.pipeline.inputs import parity_inputs, random_inputs
from skillprune.pipeline.planner import float32_model
from skillprune.pipeline.results import Exports
from skillprune.progress import Progress
from skillprune.recipe import Recipe


@dataclass(frozen=True)
class Exporter:
    """A recipe's ONNX files in one directory.

    Attributes:
        recipe: the request.
        source: the dense model.
        directory: where the files go.
        progress: told about long work.
    """

    recipe: Recipe
    source: Source
    directory: Path
    progress: Progress

    @property
    def paths(self) -> tuple[Path, Path]:
        """The files of the dense and of the pruned model."""
        dense, pruned = (self.directory / name / "model.onnx" for name in ("dense/fp32", "fp32"))
        return dense, pruned

    def export(self, final: Callable[[Attention], PreTrainedModel]) -> Exports:
        """Writes both files.

        Args:
            final: loads the final checkpoint.
        """
        inputs = parity_inputs(self.source.model, self.source.tokenizer, seed=self.recipe.seed)
        dense_path, pruned_path = self.paths
        self.progress("export", 0, 2)
        dense = export_onnx(float32_model(self.recipe, "eager"), inputs, dense_path)
        self.progress("export", 1, 2)
        pruned = export_onnx(final("eager"), inputs, pruned_path)
        self.progress("export", 2, 2)
        return Exports(dense, pruned)

    def here(self, found: Exports) -> Exports:
        """The same files; the directory may have been moved, or be called by another name, since they were made."""
        dense, pruned = self.paths
        return Exports(replace(found.dense, path=dense), replace(found.pruned, path=pruned))

    def bench(self, exports: Exports) -> Latency:
        """Dense against pruned, interleaved, with an identical-pair control."""
        spec = self.recipe.benchmark
        return measure_latency(
            [Subject("dense", "fp32", exports.dense.path), Subject("pruned", "fp32", exports.pruned.path)],
            spec.shapes,
            self._feeds,
            threads=spec.threads,
            provider=spec.provider,
            rounds=spec.rounds,
            seed=self.recipe.seed,
            progress=self.progress,
        )

    def judge(self, exports: Exports, batches: Sequence[Batch]) -> Predictions:
        """What the shipped file answers on the test split."""
        spec = self.recipe.benchmark
        session = open_session(exports.pruned.path, threads=spec.threads, provider=spec.provider)
        names = {given.name for given in session.get_inputs()}

        def predict(batch: Batch) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = session.run(
                ["logits"], {name: tensor.numpy() for name, tensor in batch.inputs.items() if name in names}
            )[0]
            return logits

        return predict_split(predict, batches, what="test (onnx)", progress=self.progress)

    def _feeds(self, batch: int, sequence: int) -> Mapping[str, NDArray[np.int64]]:
        return random_inputs(self.source.model, self.source.tokenizer, batch, sequence, seed=self.recipe.seed)

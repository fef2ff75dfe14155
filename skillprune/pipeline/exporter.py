"""What is made of a pruned checkpoint for ONNX Runtime: files, each proven against PyTorch, and how fast they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from skillprune.benchmark import Latency, Subject, measure_latency, profile_layers
from skillprune.checkpoint import Attention, Source
from skillprune.data import Batch
from skillprune.evaluation import Predictions
from skillprune.export import FUSIONS, Arrays, Candidates, OnnxArtifact, export_candidates, find_backend
from skillprune.pipeline.choice import PRUNED
from skillprune.pipeline.directory import replacing
from skillprune.pipeline.inputs import parity_inputs, random_inputs
from skillprune.pipeline.onnx_answers import answers
from skillprune.pipeline.planner import float32_model
from skillprune.pipeline.results import Exports, PartTime, Tried, Variant
from skillprune.pipeline.tournament import fastest
from skillprune.pipeline.variants import VariantMaker, asked_variants
from skillprune.progress import Progress
from skillprune.recipe import Recipe

DENSE = "dense"

PROFILED_RUNS = 20


def check_exporters(recipe: Recipe) -> None:
    """Refuses exporters that are asked for by name and not installed.

    Raises:
        MissingExtra: one of them is not.
    """
    for name in recipe.export.backends:
        if name != "auto":
            find_backend(name)


@dataclass(frozen=True, eq=False)
class Exporter:
    """A recipe's ONNX files in one directory.

    Attributes:
        recipe: the request.
        source: the dense model.
        calibration: batches that ranges of activations are taken from.
        validation: batches that number formats are judged on.
        directory: where the files go.
        progress: told about long work.
    """

    recipe: Recipe
    source: Source
    calibration: Sequence[Batch]
    validation: Sequence[Batch]
    directory: Path
    progress: Progress

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the files go: that of the dense model, then the pruned ones, fp32 first."""
        names = (f"{DENSE}/fp32", "fp32", *asked_variants(self.recipe))
        return tuple(self.directory / name / "model.onnx" for name in names)

    def export(self, final: Callable[[Attention], PreTrainedModel]) -> Exports:
        """Writes all files, the fastest exporter's.

        Args:
            final: loads the final checkpoint.

        Raises:
            VerificationFailed: no exporter wrote a file that computes what PyTorch does.
        """
        dense_path, fp32_path, *others = self.paths
        inputs = parity_inputs(self.source.model, self.source.tokenizer, seed=self.recipe.seed)
        self.directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.directory, prefix=".candidates.") as folder:
            dense, dense_tried, _ = self._fastest(DENSE, float32_model(self.recipe, "eager"), inputs, Path(folder))
            pruned, pruned_tried, plain = self._fastest(PRUNED, final("eager"), inputs, Path(folder))
            maker = VariantMaker(self.recipe, plain, self.calibration, self.validation, inputs, self.progress)
            made = [maker.make(path.parent.name, path) for path in others]
            fp32 = Variant(_placed(pruned, fp32_path), maker.fp32 if made else None)
            return Exports(_placed(dense, dense_path), (fp32, *made), (*dense_tried, *pruned_tried))

    def here(self, found: Exports) -> Exports:
        """The same files; the directory may have been moved, or be called by another name, since they were made."""
        dense, *pruned = self.paths
        variants = tuple(
            replace(variant, artifact=replace(variant.artifact, path=path))
            for variant, path in zip(found.variants, pruned, strict=True)
        )
        return replace(found, dense=replace(found.dense, path=dense), variants=variants)

    def bench(self, exports: Exports) -> Latency:
        """Dense against every variant of the pruned model and the references, with an identical-pair control."""
        spec = self.recipe.benchmark
        pruned = [Subject(PRUNED, each.name, each.artifact.path) for each in exports.variants]
        with TemporaryDirectory() as folder:
            return measure_latency(
                [Subject(DENSE, "fp32", exports.dense.path), *pruned, *self._references(Path(folder))],
                spec.shapes,
                self._feeds,
                threads=spec.threads,
                provider=spec.provider,
                rounds=spec.rounds,
                seed=self.recipe.seed,
                progress=self.progress,
            )

    def profile(self, exports: Exports, shipped: str) -> tuple[PartTime, ...]:
        """Where the time of the dense and of the shipped file goes, at the shape with the most tokens."""
        spec = self.recipe.benchmark
        batch, sequence = max(spec.shapes, key=lambda shape: shape[0] * shape[1])
        found: list[PartTime] = []
        for subject, file in ((DENSE, exports.dense), (PRUNED, exports.variant(shipped).artifact)):
            times = profile_layers(
                file.path,
                self._feeds(batch, sequence),
                threads=spec.threads,
                provider=spec.provider,
                runs=PROFILED_RUNS,
            )
            found += [
                PartTime(subject, file.variant, batch, sequence, each.name, each.kind, each.ms, each.share)
                for each in times
            ]
        return tuple(found)

    def _references(self, folder: Path) -> list[Subject]:
        """The dense model in the other runtimes that are asked for, saved for their processes to load."""
        runtimes = self.recipe.benchmark.references
        if not runtimes:
            return []
        model = float32_model(self.recipe, "sdpa")
        model.save_pretrained(folder)
        return [Subject(runtime, "fp32", folder, runtime, type(model).__name__) for runtime in runtimes]

    def judge(self, variant: Variant, batches: Sequence[Batch]) -> Predictions:
        """What a file answers on the test split."""
        what = f"test (onnx {variant.name})"
        return answers(variant.artifact.path, batches, self.recipe.benchmark, what=what, progress=self.progress)

    def _fastest(
        self, subject: str, model: PreTrainedModel, inputs: Sequence[Arrays], folder: Path
    ) -> tuple[OnnxArtifact, tuple[Tried, ...], OnnxArtifact]:
        """The fastest fp32 file, how all that were tried did, and the fastest one without fused operators."""
        spec = self.recipe.export
        found = export_candidates(
            model,
            inputs,
            folder / subject,
            backends=None if "auto" in spec.backends else spec.backends,
            fusions=FUSIONS if spec.fusion else (),
            progress=self.progress,
        )
        best, tried = fastest(
            subject, found, self._feeds, self.recipe.benchmark, seed=self.recipe.seed, progress=self.progress
        )
        return best, tried, _plain(best, found, tried)

    def _feeds(self, batch: int, sequence: int) -> Mapping[str, NDArray[np.int64]]:
        return random_inputs(self.source.model, self.source.tokenizer, batch, sequence, seed=self.recipe.seed)


def _plain(best: OnnxArtifact, found: Candidates, tried: Sequence[Tried]) -> OnnxArtifact:
    """The fastest file as an exporter wrote it; ``tried`` has the fastest first."""
    plain = {each.backend: each for each in found.passed if "+" not in each.backend}
    return next((plain[each.exporter] for each in tried if each.exporter in plain), best)


def _placed(artifact: OnnxArtifact, path: Path) -> OnnxArtifact:
    """The artefact at ``path``; what its directory held before stays until the copy is whole."""
    with replacing(path.parent) as fresh:
        shutil.copytree(artifact.path.parent, fresh)
        os.replace(fresh / artifact.path.name, fresh / path.name)
    return replace(artifact, path=path)

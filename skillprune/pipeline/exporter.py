"""What is made of a pruned checkpoint for ONNX Runtime: files, each proven against PyTorch, and how fast they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from skillprune.benchmark import Latency, Phase, Subject, measure_latency, profile_layers
from skillprune.checkpoint import Attention, Source
from skillprune.data import Batch
from skillprune.errors import Problem, RecipeError
from skillprune.evaluation import Outcome
from skillprune.export import BACKENDS, OnnxArtifact, check_opset, usable_of
from skillprune.export.generation import check_writable
from skillprune.generation import unheeded
from skillprune.pipeline.choice import PRUNED
from skillprune.pipeline.detection import Detection
from skillprune.pipeline.directory import replacing
from skillprune.pipeline.graphs import Graphs
from skillprune.pipeline.inputs import check_shapes, parity_inputs, parity_texts, random_inputs
from skillprune.pipeline.onnx_answers import answers
from skillprune.pipeline.planner import float32_model
from skillprune.pipeline.results import Exports, PartTime, Tried, Variant, Written
from skillprune.pipeline.variants import VariantMaker, asked_variants
from skillprune.pipeline.written import WriterFiles
from skillprune.progress import Progress
from skillprune.recipe import Recipe

DENSE = "dense"

PROFILED_RUNS = 20


def check_exporters(recipe: Recipe) -> None:
    """Refuses exporters that are asked for by name and not installed, and an operator set that they cannot write.

    Raises:
        MissingExtra: one of them is not.
        UnsupportedExport: one of them does not write it, or none of those that are installed.
    """
    spec = recipe.export
    if "auto" in spec.backends:
        check_opset({name: BACKENDS[name] for name in usable_of(None)}, spec.opset)
    else:
        for name in usable_of(spec.backends):
            BACKENDS[name].choose_opset(name, spec.opset)


def check_exportable(recipe: Recipe, source: Source) -> None:
    """Refuses models that cannot be exported, and shapes that they cannot run.

    Raises:
        UnsupportedArchitecture: no exporter can follow a model that writes.
        RecipeError: a sequence is longer than the model's inputs may be, or texts would be written otherwise than by
            transformers.
    """
    if recipe.task.writes:
        check_writable(source.model)
    if recipe.task.metric == "exact_match" and source.model.generation_config is not None:
        if odd := unheeded(source.model.generation_config.to_dict()):
            wanted = f"ONNX files do not heed {', '.join(odd)} of generation_config.json when they write; choose loss"
            raise RecipeError([Problem("task.metric", "exact_match", wanted)])
    check_shapes(source.tokenizer, recipe.benchmark.shapes, more=int(recipe.task.writes))


class Files(Protocol):
    """What a model becomes: one graph, or the directory of a writer."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What is timed of it."""

    def place(self, folder: Path) -> Path:
        """What an artefact in a folder of its own names as its path."""

    def write(self, subject: str, model: PreTrainedModel, folder: Path) -> Written:
        """Writes a model in fp32, below ``folder``.

        Raises:
            VerificationFailed: nothing that was written computes what PyTorch does.
        """

    def variants(self, source: OnnxArtifact, value: Callable[[Path], float]) -> VariantMaker:
        """What makes other number formats, judged by their ``value`` on validation."""


@dataclass(frozen=True, eq=False)
class Exporter:
    """A recipe's ONNX files in one directory.

    Attributes:
        recipe: the request.
        source: the dense model.
        detection: how the task is put to it, and the examples that formats are calibrated and judged on.
        directory: where the files go.
        progress: told about long work.
    """

    recipe: Recipe
    source: Source
    detection: Detection
    directory: Path
    progress: Progress

    @cached_property
    def files(self) -> Files:
        """What models of this kind of task become."""
        if self.recipe.task.writes:
            texts = parity_texts(self.source.model, self.source.tokenizer, seed=self.recipe.seed)
            return WriterFiles(self.recipe, texts, self.progress)
        inputs = parity_inputs(self.source.model, self.source.tokenizer, seed=self.recipe.seed)
        return Graphs(self.recipe, inputs, self._feeds, self.detection.data.calibration, self.progress)

    @property
    def paths(self) -> tuple[Path, Path]:
        """Where the fp32 files go: that of the dense model, and of the pruned one."""
        return self._path(f"{DENSE}/fp32"), self._path("fp32")

    def export(self, final: Callable[[Attention], PreTrainedModel]) -> Exports:
        """Writes all files, the fastest exporter's.

        Args:
            final: loads the final checkpoint.

        Raises:
            VerificationFailed: no exporter wrote a file that computes what PyTorch does.
        """
        dense_path, fp32_path = self.paths
        self.directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.directory, prefix=".candidates.") as folder:
            dense = self.files.write(DENSE, float32_model(self.recipe, "eager"), Path(folder))
            pruned = self.files.write(PRUNED, final("eager"), Path(folder))
            maker = self.files.variants(pruned.plain, self._value)
            found = [maker.attempt(name, self._path(name)) for name in asked_variants(self.recipe)]
            made = [each for each in found if isinstance(each, Variant)]
            failed = [each for each in found if isinstance(each, Tried)]
            fp32 = Variant(_placed(pruned.best, fp32_path), maker.fp32 if made else None)
            return Exports(_placed(dense.best, dense_path), (fp32, *made), (*dense.tried, *pruned.tried, *failed))

    def here(self, found: Exports) -> Exports:
        """The same files; the directory may have been moved, or be called by another name, since they were made."""
        variants = tuple(
            replace(variant, artifact=replace(variant.artifact, path=self._path(variant.name)))
            for variant in found.variants
        )
        return replace(found, dense=replace(found.dense, path=self.paths[0]), variants=variants)

    def _path(self, name: str) -> Path:
        return self.files.place(self.directory / name)

    def bench(self, exports: Exports) -> Latency:
        """Dense against every variant of the pruned model and the references, with an identical-pair control."""
        spec = self.recipe.benchmark
        pruned = [Subject(PRUNED, each.name, each.artifact.path) for each in exports.variants]
        with TemporaryDirectory() as folder:
            return measure_latency(
                [Subject(DENSE, "fp32", exports.dense.path), *pruned, *self._references(exports, Path(folder))],
                spec.shapes,
                self._feeds,
                threads=spec.threads,
                provider=spec.provider,
                rounds=spec.rounds,
                seed=self.recipe.seed,
                progress=self.progress,
                phases=self.files.phases,
            )

    def profile(self, exports: Exports, shipped: str) -> tuple[PartTime, ...]:
        """Where the time of the dense and of the shipped file goes, at the shape with the most tokens."""
        batch, sequence = max(self.recipe.benchmark.shapes, key=lambda shape: shape[0] * shape[1])
        files = ((DENSE, exports.dense), (PRUNED, exports.variant(shipped).artifact))
        return tuple(
            PartTime(subject, file.variant, batch, sequence, phase, each.name, each.kind, each.ms, each.share)
            for phase in self.files.phases
            for subject, file in files
            for each in profile_layers(
                file.path,
                self._feeds(batch, sequence),
                threads=self.recipe.benchmark.threads,
                provider=self.recipe.benchmark.provider,
                runs=PROFILED_RUNS,
                phase=phase,
            )
        )

    def judge(self, variant: Variant, batches: Sequence[Batch]) -> Outcome:
        """What a file answers on the test split."""
        return self._answers(variant.artifact.path, batches, f"test (onnx {variant.name})")

    def _value(self, path: Path) -> float:
        """The metric of a file on validation."""
        folder = path if path.is_dir() else path.parent
        outcome = self._answers(path, self.detection.data.validation, f"validation ({folder.name})")
        return outcome.value(self.recipe.task.metric)

    def _answers(self, path: Path, batches: Sequence[Batch], what: str) -> Outcome:
        metric, spec = self.recipe.task.metric, self.recipe.benchmark
        return answers(path, self.detection.subject, batches, metric, spec, what=what, progress=self.progress)

    def _references(self, exports: Exports, folder: Path) -> list[Subject]:
        """The dense model in the other runtimes that are asked for; for PyTorch it is saved to be loaded there."""
        runtimes = self.recipe.benchmark.references
        subjects = {each: Subject(each, "fp32", exports.dense.path, each) for each in runtimes}
        if in_torch := [each for each in runtimes if each.startswith("torch")]:
            model = float32_model(self.recipe, "sdpa")
            model.save_pretrained(folder)
            subjects |= {each: Subject(each, "fp32", folder, each, type(model).__name__) for each in in_torch}
        return list(subjects.values())

    def _feeds(self, batch: int, sequence: int) -> Mapping[str, NDArray[np.int64]]:
        return random_inputs(self.source.model, self.source.tokenizer, batch, sequence, seed=self.recipe.seed)


def _placed(artifact: OnnxArtifact, path: Path) -> OnnxArtifact:
    """The artefact at ``path``; what was there before stays until the copy is whole."""
    if artifact.path.is_dir():
        with replacing(path) as fresh:
            shutil.copytree(artifact.path, fresh)
    else:
        with replacing(path.parent) as fresh:
            shutil.copytree(artifact.path.parent, fresh)
            os.replace(fresh / artifact.path.name, fresh / path.name)
    return replace(artifact, path=path)

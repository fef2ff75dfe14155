"""Makes the pruned fp32 file smaller still, in other number formats; those that lose too much are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skillprune.benchmark import environment
from skillprune.data import Batch
from skillprune.evaluation import Predictions, drop, is_within
from skillprune.export import (
    Arrays,
    OnnxArtifact,
    Quantise,
    Quantised,
    Ranges,
    calibrate,
    keep_sensitive,
    largest_difference,
    quantise_dynamic,
    quantise_static,
    saturates,
    sensitivity,
    size_of,
    to_float16,
)
from skillprune.pipeline.onnx_answers import answers, arrays_of
from skillprune.pipeline.results import Variant
from skillprune.progress import Progress
from skillprune.recipe import Recipe

CALIBRATION_EXAMPLES, SENSITIVITY_EXAMPLES = 512, 64


def asked_variants(recipe: Recipe) -> tuple[str, ...]:
    """Names of the variants beside fp32 that a recipe wants; ``auto`` stands for those that suit its provider."""
    asked: tuple[str, ...] = recipe.export.variants
    if "auto" in asked:
        asked = ("int8-dynamic", "int8-static") if recipe.benchmark.provider == "cpu" else ("fp16",)
    return tuple(name for name in asked if name != "fp32")


@dataclass(frozen=True, eq=False)
class VariantMaker:
    """Quantises one fp32 file and judges what comes out on validation.

    Attributes:
        recipe: the request.
        source: the pruned fp32 file without fused operators, which quantisation would not find.
        calibration: batches whose activations set the ranges of int8-static.
        validation: batches that a format is judged on.
        inputs: inputs on which the files are compared.
        progress: told about long work.
    """

    recipe: Recipe
    source: OnnxArtifact
    calibration: Sequence[Batch]
    validation: Sequence[Batch]
    inputs: Sequence[Arrays]
    progress: Progress

    def make(self, name: str, path: Path) -> Variant:
        """The file in one format at ``path``; where it is refused the file is there all the same, to be measured."""
        if name == "fp16":
            return self._judged(name, to_float16(self.source.path, path), self._value(path))
        quantise = self._quantiser(name)
        whole = quantise(self.source.path, path, keep=())
        value = self._value(path)
        if self._holds(value):
            return self._judged(name, whole, value)
        feeds = self._feeds(SENSITIVITY_EXAMPLES)
        ranking = sensitivity(self.source.path, path, feeds, progress=self.progress)
        mended = keep_sensitive(
            self.source.path, path, quantise, ranking, lambda tried: self._holds(self._value(tried))
        )
        return self._judged(name, mended or whole, self._value(path))

    @cached_property
    def fp32(self) -> float:
        """The metric of the fp32 file on validation."""
        return self._value(self.source.path)

    def _quantiser(self, name: str) -> Quantise:
        seven_bits = saturates(str(environment()["cpu_flags"] or ""))
        if name == "int8-dynamic":
            return partial(quantise_dynamic, seven_bits=seven_bits)
        return partial(quantise_static, ranges=self._ranges, seven_bits=seven_bits)

    @cached_property
    def _ranges(self) -> Ranges:
        return calibrate(self.source.path, self._feeds(CALIBRATION_EXAMPLES), progress=self.progress)

    def _feeds(self, examples: int) -> list[Mapping[str, NDArray[np.int64]]]:
        """The first calibration batches, as many as hold so many examples."""
        sizes = np.cumsum([len(batch) for batch in self.calibration])
        enough = int(np.searchsorted(sizes, examples)) + 1
        names = self.inputs[0]
        batches = map(arrays_of, self.calibration[:enough])
        return [{name: array for name, array in each.items() if name in names} for each in batches]

    def _judged(self, name: str, made: Quantised, value: float) -> Variant:
        artifact = replace(
            self.source,
            variant=name,
            path=made.path,
            bytes=size_of(made.path),
            max_abs_diff=largest_difference(self.source.path, made.path, self.inputs),
            tolerance=None,
        )
        lost, limit = drop(self.recipe.task.metric, self.fp32, value), self.recipe.export.max_drop
        refused = f"on validation it is worse than fp32 by {lost:.4f}; {limit:g} is allowed"
        return Variant(artifact, value, made.kept, None if self._holds(value) else refused)

    def _holds(self, value: float) -> bool:
        return is_within(drop(self.recipe.task.metric, self.fp32, value), self.recipe.export.max_drop)

    def _value(self, path: Path) -> float:
        found: Predictions = answers(
            path,
            self.validation,
            self.recipe.benchmark,
            what=f"validation ({path.parent.name})",
            progress=self.progress,
        )
        return found.value(self.recipe.task.metric)

"""Makes the pruned fp32 file smaller still, in other number formats; those that lose too much are refused."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skillprune.benchmark import environment
from skillprune.data import Batch
from skillprune.errors import ResourceFailure
from skillprune.evaluation import drop, is_within
from skillprune.export import (
    Arrays,
    OnnxArtifact,
    Quantise,
    Quantised,
    Ranges,
    calibrate,
    first_line,
    keep_sensitive,
    largest_difference,
    quantise_dynamic,
    quantise_static,
    saturates,
    sensitivity,
    size_of,
    to_float16,
)
from skillprune.pipeline.choice import PRUNED
from skillprune.pipeline.onnx_answers import arrays_of
from skillprune.pipeline.results import Tried, Variant
from skillprune.progress import Progress
from skillprune.recipe import Recipe

CALIBRATION_EXAMPLES, SENSITIVITY_EXAMPLES = 512, 64


def asked_variants(recipe: Recipe) -> tuple[str, ...]:
    """Names of the variants beside fp32 that a recipe wants; ``auto`` stands for those that suit its provider."""
    asked = recipe.variants
    if "auto" in asked:
        on_cpu = ("int8-dynamic",) if recipe.task.writes else ("int8-dynamic", "int8-static")
        asked = on_cpu if recipe.benchmark.provider == "cpu" else ("fp16",)
    return tuple(name for name in asked if name != "fp32")


@dataclass(frozen=True, eq=False)
class VariantMaker(ABC):
    """Writes an fp32 file in other number formats and judges what comes out on validation.

    Attributes:
        recipe: the request.
        source: the pruned fp32 file without fused operators, which quantisation would not find.
        value: the metric of a file on validation.
        progress: told about long work.
    """

    recipe: Recipe
    source: OnnxArtifact
    value: Callable[[Path], float]
    progress: Progress

    @abstractmethod
    def make(self, name: str, path: Path) -> Variant:
        """The file in one format at ``path``; where it is refused the file is there all the same, to be measured."""

    def attempt(self, name: str, path: Path) -> Variant | Tried:
        """`make`, or why that failed, of which no file stays: no format is worth a run."""
        try:
            return self.make(name, path)
        except (ResourceFailure, MemoryError):
            raise
        except Exception as failed:  # converters fail in every way there is
            shutil.rmtree(path if path.is_dir() else path.parent, ignore_errors=True)
            return Tried(PRUNED, name, refused=first_line(failed))

    @cached_property
    def fp32(self) -> float:
        """The metric of the fp32 file on validation."""
        return self.value(self.source.path)

    @property
    def saturates(self) -> bool:
        """Whether this processor needs seven-bit weights."""
        flags = environment()["cpu_flags"]
        return saturates(None if flags is None else str(flags))

    def holds(self, value: float) -> bool:
        """Whether so much on validation is enough."""
        return is_within(drop(self.recipe.task.metric, self.fp32, value), self.recipe.export.max_drop)

    def judged(self, name: str, made: Quantised, value: float, size: int, difference: float) -> Variant:
        """What was made, with the reason why it must not be shipped if there is one.

        Args:
            name: of the format.
            made: the file.
            value: its metric on validation.
            size: its bytes.
            difference: largest difference of an output from the source's.
        """
        artifact = replace(
            self.source, variant=name, path=made.path, bytes=size, max_abs_diff=difference, tolerance=None
        )
        lost, limit = drop(self.recipe.task.metric, self.fp32, value), self.recipe.export.max_drop
        refused = f"on validation it is worse than fp32 by {lost:.4f}; {limit:g} is allowed"
        return Variant(artifact, value, made.kept, None if self.holds(value) else refused)


@dataclass(frozen=True, eq=False)
class GraphVariants(VariantMaker):
    """Changes one graph; what loses too much gets its most sensitive products back in fp32.

    Attributes:
        calibration: batches whose activations set the ranges of int8-static.
        inputs: inputs on which the files are compared.
    """

    calibration: Sequence[Batch]
    inputs: Sequence[Arrays]

    def make(self, name: str, path: Path) -> Variant:
        """See `VariantMaker.make`."""
        if name == "fp16":
            return self._judged(name, to_float16(self.source.path, path), self.value(path))
        quantise = self._quantiser(name)
        whole = quantise(self.source.path, path, keep=())
        value = self.value(path)
        if self.holds(value):
            return self._judged(name, whole, value)
        feeds = self._feeds(SENSITIVITY_EXAMPLES)
        ranking = sensitivity(self.source.path, path, feeds, progress=self.progress)
        mended = keep_sensitive(self.source.path, path, quantise, ranking, lambda tried: self.holds(self.value(tried)))
        return self._judged(name, mended or whole, self.value(path))

    def _judged(self, name: str, made: Quantised, value: float) -> Variant:
        difference = largest_difference(self.source.path, made.path, self.inputs)
        return self.judged(name, made, value, size_of(made.path), difference)

    def _quantiser(self, name: str) -> Quantise:
        if name == "int8-dynamic":
            return partial(quantise_dynamic, seven_bits=self.saturates)
        return partial(quantise_static, ranges=self._ranges, seven_bits=self.saturates)

    @cached_property
    def _ranges(self) -> Ranges:
        return calibrate(self.source.path, self._feeds(CALIBRATION_EXAMPLES), progress=self.progress)

    def _feeds(self, examples: int) -> list[Mapping[str, NDArray[np.int64]]]:
        """The first calibration batches, as many as hold so many examples."""
        sizes = np.cumsum([len(batch) for batch in self.calibration])
        enough = int(np.searchsorted(sizes, examples)) + 1
        return list(map(arrays_of, self.calibration[:enough]))

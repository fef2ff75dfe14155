"""Files of models that say all at once: one graph each, the fastest one that any exporter wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from skillprune.benchmark import Feeds, Phase
from skillprune.data import Batch
from skillprune.export import FUSIONS, Arrays, Candidates, OnnxArtifact, export_candidates
from skillprune.pipeline.results import Tried, Written
from skillprune.pipeline.tournament import fastest
from skillprune.pipeline.variants import GraphVariants
from skillprune.progress import Progress
from skillprune.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Graphs:
    """One graph for every model.

    Attributes:
        recipe: the request.
        inputs: inputs on which files are compared with PyTorch, and with each other.
        feeds: inputs of a batch and a sequence length to time.
        calibration: batches that ranges of activations are taken from.
        progress: told about long work.
    """

    recipe: Recipe
    inputs: Sequence[Arrays]
    feeds: Feeds
    calibration: Sequence[Batch]
    progress: Progress

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One pass."""
        return ("forward",)

    def place(self, folder: Path) -> Path:
        """The graph."""
        return folder / "model.onnx"

    def write(self, subject: str, model: PreTrainedModel, folder: Path) -> Written:
        """The fastest file of all exporters and fusions, see `Files.write`."""
        spec = self.recipe.export
        found = export_candidates(
            model,
            self.inputs,
            folder / subject,
            backends=None if "auto" in spec.backends else spec.backends,
            fusions=FUSIONS if spec.fusion else (),
            opset=spec.opset,
            progress=self.progress,
        )
        best, tried = fastest(
            subject, found, self.feeds, self.recipe.benchmark, seed=self.recipe.seed, progress=self.progress
        )
        return Written(best, tried, _plain(best, found, tried))

    def variants(self, source: OnnxArtifact, value: Callable[[Path], float]) -> GraphVariants:
        """What makes other number formats of a graph without fused operators."""
        return GraphVariants(self.recipe, source, value, self.progress, self.calibration, self.inputs)


def _plain(best: OnnxArtifact, found: Candidates, tried: Sequence[Tried]) -> OnnxArtifact:
    """The fastest file as an exporter wrote it; ``tried`` has the fastest first."""
    plain = {each.backend: each for each in found.passed if "+" not in each.backend}
    return next((plain[each.exporter] for each in tried if each.exporter in plain), best)

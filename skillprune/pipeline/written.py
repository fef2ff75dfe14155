"""Files of models that write: a directory each, of one graph with its cache or of an encoder and a decoder's steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from skillprune.benchmark import Phase, open_writer
from skillprune.export import OnnxArtifact, Quantised, quantise_dynamic, size_of, to_float16
from skillprune.export.generation import export_decoder, export_encoder_decoder, writers_apart
from skillprune.generation import Feeds
from skillprune.pipeline.directory import replacing
from skillprune.pipeline.results import Tried, Variant, Written
from skillprune.pipeline.variants import VariantMaker
from skillprune.progress import Progress
from skillprune.recipe import Recipe


@dataclass(frozen=True, eq=False)
class WriterFiles:
    """A directory for every model.

    Attributes:
        recipe: the request.
        texts: texts on which files are compared with PyTorch, and with each other.
        progress: told about long work.
    """

    recipe: Recipe
    texts: Sequence[Feeds]
    progress: Progress

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Time to the first token, and of every further one."""
        return ("first token", "next token")

    def place(self, folder: Path) -> Path:
        """The directory itself."""
        return folder

    def write(self, subject: str, model: PreTrainedModel, folder: Path) -> Written:
        """The one exporter's files, see `Files.write`."""
        export = export_encoder_decoder if model.config.is_encoder_decoder else export_decoder
        self.progress(f"exporting {subject}", 0, 1)
        artifact = export(model, self.texts, folder / subject)
        self.progress(f"exporting {subject}", 1, 1)
        return Written(artifact, (Tried(subject, artifact.backend),), artifact)

    def variants(self, source: OnnxArtifact, value: Callable[[Path], float]) -> WriterVariants:
        """What makes other number formats of a directory."""
        return WriterVariants(self.recipe, source, value, self.progress, self.texts)


@dataclass(frozen=True, eq=False)
class WriterVariants(VariantMaker):
    """Changes every graph of a directory.

    Attributes:
        texts: texts on which the directories are compared.
    """

    texts: Sequence[Feeds]

    def make(self, name: str, path: Path) -> Variant:
        """See `VariantMaker.make`."""
        change = to_float16 if name == "fp16" else partial(quantise_dynamic, seven_bits=self.saturates)
        with replacing(path) as fresh:
            fresh.mkdir()
            made = [change(graph, fresh / graph.name) for graph in sorted(self.source.path.glob("*.onnx"))]
            for config in self.source.path.glob("*.json"):
                shutil.copy(config, fresh)
        kept = tuple(product for each in made for product in each.kept)
        size = sum(size_of(graph) for graph in path.glob("*.onnx"))
        return self.judged(name, Quantised(path, (), kept), self.value(path), size, self._difference(path))

    def _difference(self, path: Path) -> float:
        first, second = (open_writer(each, threads=self.recipe.benchmark.threads) for each in (self.source.path, path))
        return writers_apart(first, second, self.texts)

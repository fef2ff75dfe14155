"""All files that could be a model's fp32 file, each proven right; which of them is fastest is measured elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from skillprune.errors import ResourceFailure, SkillPruneError, VerificationFailed
from skillprune.export.artifact import OnnxArtifact
from skillprune.export.backends import usable_of
from skillprune.export.fused import FUSIONS, fuse_onnx
from skillprune.export.onnx import export_onnx
from skillprune.export.signature import Arrays
from skillprune.progress import Progress, silent, track


@dataclass(frozen=True)
class Refused:
    """A file that did not come to be, or was wrong: its exporter, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Candidates:
    """Files of one model.

    Attributes:
        passed: those that compute what PyTorch does, at least one.
        failed: the others.
    """

    passed: tuple[OnnxArtifact, ...]
    failed: tuple[Refused, ...]


def export_candidates(
    model: PreTrainedModel,
    inputs: Sequence[Arrays],
    directory: Path,
    *,
    backends: Sequence[str] | None = None,
    fusions: Sequence[str] = FUSIONS,
    opset: int | None = None,
    what: str = "exporting",
    progress: Progress = silent,
) -> Candidates:
    """Has every exporter write its file, and fuses operators of each; files lie in a directory each.

    Args:
        model: as for `export_onnx`, with eager attention.
        inputs: as for `export_onnx`.
        directory: where the files go.
        backends: exporters by name; None takes all that are installed.
        fusions: what to fuse in further copies.
        opset: ONNX operator set; None takes every exporter's own.
        what: shown in progress.
        progress: told about every exporter.

    Raises:
        MissingExtra: an exporter that was named is not installed.
        UnsupportedExport: no exporter writes that operator set.
        VerificationFailed: no exporter wrote a file that computes what PyTorch does; says why for each.
        ResourceFailure: the disk failed.
    """
    attempts = _Attempts()
    for name in track(usable_of(backends), what, progress):
        path = directory / name / "model.onnx"
        attempts.add(name, partial(export_onnx, model, inputs, path, backend=name, opset=opset))
    for plain in tuple(attempts.passed):
        for fusion in fusions:
            name = f"{plain.backend}+{fusion}"
            attempts.add(name, partial(fuse_onnx, model, plain, inputs, directory / name / "model.onnx", fusion))
    if not attempts.passed:
        attempts.complain()
    return Candidates(tuple(attempts.passed), tuple(attempts.failed))


class _Attempts:
    """What came of every attempt; one that fails does not stop the others."""

    def __init__(self) -> None:
        self.passed: list[OnnxArtifact] = []
        self.failed: list[Refused] = []
        self._errors: list[SkillPruneError] = []

    def add(self, name: str, make: Callable[[], OnnxArtifact | None]) -> None:
        try:
            made = make()
        except ResourceFailure:
            raise
        except SkillPruneError as failed:
            self._errors.append(failed)
            self.failed.append(Refused(name, str(failed)))
        else:
            self.passed += [] if made is None else [made]

    def complain(self) -> None:
        """Raises what is wrong, when nothing passed."""
        told = "\n".join(f"  {each.name}: {each.why}" for each in self.failed)
        if not any(isinstance(error, VerificationFailed) for error in self._errors):
            raise self._errors[0]
        raise VerificationFailed(f"no exporter wrote a file that computes what PyTorch does:\n{told}")

"""The values that stages, and the steps within them, hand on; those of stages the run directory keeps as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from skillprune.benchmark import Phase
from skillprune.evaluation import Comparison
from skillprune.export import OnnxArtifact
from skillprune.recovery import Recovery


@dataclass(frozen=True)
class Tried:
    """A file that competed to be the fp32 file of a model, or a number format of it that could not be made.

    Attributes:
        subject: ``dense`` or ``pruned``.
        exporter: what wrote it, such as ``torchscript+attention``; the number format of what could not be made.
        speed: times the kept file's speed, the geometric mean over shapes; 1 for that file itself. None where it was
            refused, or was the only one.
        refused: why it did not compete.
    """

    subject: str
    exporter: str
    speed: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Written:
    """The fp32 file of a model.

    Attributes:
        best: the fastest one.
        tried: how all that were tried did.
        plain: the fastest one without fused operators, which other number formats are made from.
    """

    best: OnnxArtifact
    tried: tuple[Tried, ...]
    plain: OnnxArtifact


@dataclass(frozen=True)
class Variant:
    """The pruned model in one number format.

    Attributes:
        artifact: its file.
        validation: the metric of the file on validation; None where fp32 is the only format.
        kept: products that were left in fp32 because they hurt.
        refused: why it must not be shipped: it loses more than ``export.max_drop`` against fp32.
    """

    artifact: OnnxArtifact
    validation: float | None = None
    kept: tuple[str, ...] = ()
    refused: str | None = None

    @property
    def name(self) -> str:
        """Of the number format."""
        return self.artifact.variant


@dataclass(frozen=True)
class Exports:
    """The ONNX files of a run.

    Attributes:
        dense: the dense model in fp32, which everything is compared with.
        variants: the pruned model in every format; fp32 comes first.
        tried: how all files that were tried did, and formats that could not be made.
    """

    dense: OnnxArtifact
    variants: tuple[Variant, ...]
    tried: tuple[Tried, ...] = ()

    def variant(self, name: str) -> Variant:
        """The pruned model in a format."""
        return next(each for each in self.variants if each.name == name)

    @property
    def are_there(self) -> bool:
        """Whether all files are where they were written."""
        places = [self.dense.path, *(each.artifact.path for each in self.variants)]
        return all(place.is_file() or any(place.glob("*.onnx")) for place in places)

    def __str__(self) -> str:
        refused = [f"  {each.name} is refused: {each.refused}" for each in self.variants if each.refused]
        return "\n".join(map(str, [self.dense, *(each.artifact for each in self.variants), *refused]))


@dataclass(frozen=True)
class PartTime:
    """What a part of a file takes of a run.

    Attributes:
        subject: ``dense`` or ``pruned``.
        variant: of the file.
        batch: examples per run.
        sequence: tokens per example.
        phase: what a run does.
        part: its name, see `skillprune.benchmark.LayerTime`.
        kind: what it is, likewise.
        ms: milliseconds per run inside operators.
        share: of all operators' time.
    """

    subject: str
    variant: str
    batch: int
    sequence: int
    phase: Phase
    part: str
    kind: str
    ms: float
    share: float


@dataclass(frozen=True)
class PromptLosses:
    """Mean loss on validation of a soft prompt in front of the pruned model: as it was, and tuned again."""

    before: float
    after: float

    def __str__(self) -> str:
        return f"soft prompt: validation loss {self.before:.4f} -> {self.after:.4f}"


@dataclass(frozen=True)
class Recovered:
    """What was done to the pruned model after pruning.

    Attributes:
        training: how its training went; none if there was none.
        examples: how many examples it was trained on.
        prompts: the soft prompts that were tuned again.
    """

    training: Recovery | None = None
    examples: int = 0
    prompts: tuple[PromptLosses, ...] = ()

    def __str__(self) -> str:
        done = [*([] if self.training is None else [self.training]), *self.prompts]
        return "\n".join(map(str, done)) or "nothing to recover: recovery.epochs is 0, recovery.prompt is false"


@dataclass(frozen=True)
class Quality:
    """The metric on the test split.

    Attributes:
        dense: the model as it came, in PyTorch.
        pruned: the reloaded pruned checkpoint, without training, in PyTorch.
        comparison: what is shipped against dense: the best ONNX file, or the checkpoint where there is none.
        onnx: every ONNX file, by variant; empty where models are not exported.
        recovered: the reloaded checkpoint after training, in PyTorch; none without training.
    """

    dense: float
    pruned: float
    comparison: Comparison
    onnx: dict[str, float] = field(default_factory=dict)
    recovered: float | None = None

"""The values that stages hand on and the run directory keeps as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from skillprune.evaluation import Comparison
from skillprune.export import OnnxArtifact
from skillprune.recovery import Recovery


@dataclass(frozen=True)
class Exports:
    """The ONNX files of one variant, before and after pruning."""

    dense: OnnxArtifact
    pruned: OnnxArtifact

    def __str__(self) -> str:
        return f"{self.dense}\n{self.pruned}"


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
        comparison: what is shipped against dense: the ONNX file, or the checkpoint where there is none.
        onnx: the shipped ONNX file; none where models are not exported.
        recovered: the reloaded checkpoint after training, in PyTorch; none without training.
    """

    dense: float
    pruned: float
    comparison: Comparison
    onnx: float | None = None
    recovered: float | None = None

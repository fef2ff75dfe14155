"""How a model is recovered, and how that went; doing it is left to training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RecoverySettings:
    """How a pruned model learns from the dense one.

    Attributes:
        epochs: most passes over the training batches; 0 trains nothing.
        learning_rate: largest step size of AdamW, reached after warm-up.
        hidden_weight: weight of the hidden states beside the answers; 0 looks at the answers only.
        temperature: what logits are divided by before they are compared.
        label_weight: weight of the cross-entropy of the right answers, mean per answer, beside the teacher's; 0 learns
            from no label.
        train: whether every parameter that asks for a gradient is trained, or only FFN neurons: their rows of up and
            gate with the biases, and their columns of down. Everything else is frozen then, as in Leng & Xiong,
            arXiv 2407.06488.
        patience: epochs without improvement on validation after which training stops.
        precision: ``no`` computes in float32, ``bf16`` what allows for it in bfloat16, ``auto`` does that on a GPU that
            can. Never float16, whose range needs losses to be scaled.
        seed: of the order of batches.
    """

    epochs: int = 3
    learning_rate: float = 5e-5
    hidden_weight: float = 1.0
    temperature: float = 2.0
    label_weight: float = 0.0
    train: Literal["all", "neurons"] = "all"
    patience: int = 2
    precision: Literal["auto", "no", "bf16"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """Where the model stands on validation.

    Attributes:
        metric: the task's metric, higher is better; where that is the loss, minus its mean per answer.
        loss: mean distillation loss.
    """

    metric: float
    loss: float

    def beats(self, other: Epoch) -> bool:
        """Whether the metric is better or, where it is the same, the loss is lower."""
        return (self.metric, -self.loss) > (other.metric, -other.loss)


@dataclass(frozen=True)
class Recovery:
    """How a recovery went.

    Attributes:
        epochs: the model before training, then after every epoch.
        best: which of them the model is now; 0 is the one before training.
        seconds: time that training and validation took, interruptions left out.
    """

    epochs: tuple[Epoch, ...]
    best: int
    seconds: float = field(compare=False, default=0.0)

    def __str__(self) -> str:
        before, after = self.epochs[0], self.epochs[self.best]
        return (
            f"epoch {self.best} of {len(self.epochs) - 1} is kept: validation {before.metric:.4f} -> "
            f"{after.metric:.4f}, distillation loss {before.loss:.4f} -> {after.loss:.4f}"
        )

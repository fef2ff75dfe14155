"""A task model with a soft prompt, and the prompt itself as a value; where the vectors come from is left to tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from skillprune.answers import Answers, TaskModel
from skillprune.data import Batch
from skillprune.prompts.slots import check_fit, insert_slots
from skillprune.prompts.voices import Voice, make_voice, slots_after


@dataclass(frozen=True)
class PromptSettings:
    """How a soft prompt is tuned.

    Attributes:
        tokens: slots.
        epochs: passes over the training batches; the vectors of the best one on validation data are kept.
        learning_rate: largest step size of Adam.
        seed: seed of the first vectors and of the order of batches.
        train_head: whether a copy of the classification head is trained along, for checkpoints whose head is new.
    """

    tokens: int = 16
    epochs: int = 4
    learning_rate: float = 1e-3
    seed: int = 0
    train_head: bool = False


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """A tuned prompt; it belongs to one model and one way of putting the task to it.

    Attributes:
        vectors: what stands in the slots, ``(tokens, hidden)``, float32.
        settings: how they were tuned.
        head: parameters that stand in for those of the model's head, by name, float32; empty if it was not trained.
        losses: mean validation loss after every epoch; of a prompt that was tuned again, before the first one too.
    """

    vectors: Tensor
    settings: PromptSettings
    head: Mapping[str, Tensor] = field(default_factory=dict)
    losses: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Prompted(TaskModel):
    """A task model with a soft prompt; the model itself is not changed, and may be pruned or replaced.

    Attributes:
        subject: the task model as it is without a prompt.
        prompt: the prompt.
    """

    model: PreTrainedModel = field(init=False)
    subject: TaskModel
    prompt: SoftPrompt

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", self.subject.model)

    @property
    def labels(self) -> tuple[str, ...]:
        """Those of the task model without the prompt."""
        return self.subject.labels

    def prepare(self, batch: Batch) -> Batch:
        """The batch as the FFNs will see it: padded on the right, with the slots between or before its tokens.

        Raises:
            RecipeError: inputs and slots are more than the model has positions for.
        """
        config, tokens = self.model.config, len(self.prompt.vectors)
        check_fit(batch, config, tokens)
        # Any token that does not pad will do: the vectors replace what the model makes of it.
        filler = int(getattr(config, "pad_token_id", None) == 0)
        return insert_slots(self.subject.prepare(batch), tokens, slots_after(self.subject), filler)

    def ask(self, batch: Batch) -> Answers:
        """Runs the model on a prepared batch, with the vectors in its slots."""
        speaking: Any = self._voice
        return replace(self.subject, model=speaking).ask(batch)

    @cached_property
    def _voice(self) -> Voice:
        return make_voice(self.subject, self.prompt.vectors, self.prompt.head)

"""The recipe section on training after pruning; carrying it out is left to others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StrictBool, Tag

from skillprune.recipe.base import Name, Spec, StrictFloat, StrictInt
from skillprune.recipe.inputs import DataFile


class HubSplit(Spec):
    """One split of a data set on the Hugging Face hub."""

    hub: Name = Field(description="Id of the data set.", examples=["stanfordnlp/sst2"])
    config: Name | None = Field(
        default=None, description="Configuration of the data set, if it has any.", examples=["sst2"]
    )
    revision: Name | None = Field(default=None, description="Branch, tag or commit of the data set.", examples=["main"])
    split: Name = Field(default="train", description="Split expression of the datasets library.", examples=["train"])


def _kind_of_part(value: Any) -> str | None:
    if isinstance(value, (HubSplit, Mapping)):
        return "<split>"
    return "<file>" if isinstance(value, (str, Path)) else None


PART_KINDS = ("<file>", "<split>")
_Part = Annotated[
    Annotated[DataFile, Tag("<file>")] | Annotated[HubSplit, Tag("<split>")],
    Discriminator(
        _kind_of_part,
        custom_error_type="part_forms",
        custom_error_message="should be a file, or a split of a hub data set {hub, config, revision, split}",
    ),
]


class RecoverySpec(Spec):
    """Training after pruning: the pruned model learns to answer as the dense one does."""

    epochs: Annotated[StrictInt, Field(ge=0)] = Field(
        default=0,
        description="Most passes over the examples; the best epoch on validation is kept, which may be the state "
        "before training. 0 is no training.",
    )
    learning_rate: Annotated[StrictFloat, Field(gt=0)] = Field(
        default=5e-5, description="Largest step size of AdamW, reached after warm-up."
    )
    hidden_weight: Annotated[StrictFloat, Field(ge=0)] = Field(
        default=1.0,
        description="Weight of the hidden states in the loss: the share of the variance of the dense model's states "
        "that those of the pruned one miss. 0 compares answers only.",
    )
    temperature: Annotated[StrictFloat, Field(gt=0)] = Field(
        default=2.0, description="What both models' logits are divided by before they are compared."
    )
    label_weight: Annotated[StrictFloat, Field(ge=0)] = Field(
        default=0.0,
        description="Weight of the cross-entropy of the right answers in the loss, for dense models that make many "
        "mistakes on the train split. 0 learns from no label.",
    )
    train: Literal["all", "neurons"] = Field(
        default="all",
        description="Which parameters are trained: all of them, or only the kept FFN neurons, everything else frozen.",
    )
    patience: Annotated[StrictInt, Field(ge=1)] = Field(
        default=2, description="Epochs without improvement on validation after which training stops."
    )
    prompt: StrictBool = Field(
        default=False,
        description="Whether the soft prompts of `scoring.prompt` are tuned again on the pruned model.",
    )
    data: _Part | None = Field(
        default=None,
        description="Examples to train on, a file or a split of a hub data set with the columns of the task; null is "
        "the whole train split. A text that is in test too is an error.",
        examples=["data/more.csv"],
    )

"""The recipe section that names the task: kind, columns, labels, prompt and metric; examples are left to inputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from skillprune.recipe.base import Name, Spec, StrictInt, without_repeats
from skillprune.recipe.inputs import DataField
from skillprune.recipe.template import check_template

TaskType = Literal["text-classification", "masked-lm", "causal-lm", "language-modeling", "seq2seq"]
Metric = Literal["accuracy", "macro_f1", "loss", "perplexity", "exact_match"]
SHARES = ("accuracy", "macro_f1", "exact_match")
"""Metrics between 0 and 1, of which higher is better; of the others lower is."""

#: Kinds whose models say all at once; the others write, token after token.
ONE_PASS_TYPES = ("text-classification", "masked-lm")

#: Kinds whose classes are words that a language model predicts after a template.
PROMPT_TYPES = ("masked-lm", "causal-lm")
#: Kinds without classes, judged by the loss of the text itself.
GENERATIVE_TYPES = ("language-modeling", "seq2seq")

_METRICS = {"language-modeling": ("loss", "perplexity"), "seq2seq": ("loss", "perplexity", "exact_match")}
_EXAMPLES = {"masked-lm": "{text} It was {mask}.", "causal-lm": "{text} The sentiment is"}


def _columns(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


TextField = Annotated[
    tuple[Name, ...],
    Field(min_length=1, max_length=2),
    AfterValidator(without_repeats),
    BeforeValidator(_columns, json_schema_input_type=Name | Annotated[list[Name], Field(min_length=1, max_length=2)]),
]


def _bare(word: str) -> str:
    if word != word.strip():
        raise ValueError("starts or ends with a space; write the word alone")
    return word


def _each_word_once(words: dict[str, str]) -> dict[str, str]:
    without_repeats(tuple(words.values()))
    return words


LabelWords = Annotated[
    dict[Name, Annotated[Name, AfterValidator(_bare)]], Field(min_length=2), AfterValidator(_each_word_once)
]


def _metric_of_kind(value: Any, info: ValidationInfo) -> Any:
    if value is not None:
        return value
    return "loss" if info.data.get("type") in GENERATIVE_TYPES else "accuracy"


MetricField = Annotated[Metric, BeforeValidator(_metric_of_kind, json_schema_input_type=Metric | None)]


class TaskSpec(Spec):
    """What the checkpoint is for: examples, columns, labels, prompt, metric."""

    type: TaskType = Field(
        default="text-classification",
        description="Kind of task: classes from a classification head; classes as words that a language model "
        "predicts after a template (`masked-lm`, `causal-lm`); or the loss of the text itself "
        "(`language-modeling`) or of a target text (`seq2seq`).",
    )
    data: DataField = Field(
        description="Where the examples are: files {train, validation, test}, a hub data set "
        "{hub, config, revision, splits}, or `builtin:reviews`.",
        examples=[{"train": "train.csv", "test": "test.csv"}, "builtin:reviews"],
    )
    text: TextField = Field(
        default=("text",),
        description="Column of the text, or the two columns of a sentence pair.",
        examples=["text", ["premise", "hypothesis"]],
    )
    label: Name = Field(
        default="label",
        description="Column of the label: a label name or a class number. Not read where the loss is the task.",
    )
    labels: Annotated[tuple[Name, ...], Field(min_length=2), AfterValidator(without_repeats)] | None = Field(
        default=None,
        description="Label names in the order of the model's outputs; null takes the names in the checkpoint, or those "
        "of `label_words`.",
        examples=[["negative", "positive"]],
    )
    template: Name | None = Field(
        default=None,
        validate_default=True,
        description="Prompt of `masked-lm` and `causal-lm`, with every text column in braces and, for `masked-lm`, "
        "`{mask}` where the answer stands; for `causal-lm` the answer follows the end. Literal braces are doubled.",
        examples=list(_EXAMPLES.values()),
    )
    label_words: LabelWords | None = Field(
        default=None,
        validate_default=True,
        description="Word that stands for each label in `masked-lm` and `causal-lm`, one token each; without `labels` "
        "its order is the order of the classes.",
        examples=[{"negative": "terrible", "positive": "great"}],
    )
    target: Name | None = Field(
        default=None,
        validate_default=True,
        description="Column of the text that `seq2seq` should write; null is `target` there.",
        examples=["target"],
    )
    target_tokenizer: Name | None = Field(
        default=None,
        description="Directory of the tokenizer that writes the targets of `seq2seq`, looked up inside the checkpoint "
        "first; null is the model's own.",
        examples=["target_tokenizer"],
    )
    metric: MetricField = Field(
        default=None,
        validate_default=True,
        description="What quality is measured by: `accuracy` or `macro_f1` where there are classes; elsewhere `loss`, "
        "the mean loss per target token in nats, or `perplexity`, its exponential, of which lower is better; for "
        "`seq2seq` also `exact_match`, the share of targets that greedy decoding writes exactly. Null is `accuracy` or "
        "`loss`.",
    )
    max_length: Annotated[StrictInt, Field(ge=1)] = Field(
        default=128,
        description="Longest input in tokens; longer texts are truncated, a template is not. Longest target, too.",
    )

    @field_validator("text")
    @classmethod
    def _one_running_text(cls, text: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(text) > 1 and info.data.get("type") == "language-modeling":
            raise ValueError("language-modeling reads one column; name one")
        return text

    @field_validator("label")
    @classmethod
    def _not_a_text(cls, label: str, info: ValidationInfo) -> str:
        if label in info.data.get("text", ()) and info.data.get("type") not in GENERATIVE_TYPES:
            raise ValueError("is also a text column; the answer must not be part of the question")
        return label

    @field_validator("labels")
    @classmethod
    def _only_with_classes(cls, labels: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if labels is not None and info.data.get("type") in GENERATIVE_TYPES:
            raise ValueError(f"should be null; {info.data['type']} has no classes")
        return labels

    @field_validator("template")
    @classmethod
    def _fits_the_columns(cls, template: str | None, info: ValidationInfo) -> str | None:
        kind = _prompt_kind("template", template, info)
        if template is None or "text" not in info.data:
            return template
        return check_template(template, info.data["text"], masked=kind == "masked-lm") if kind else template

    @field_validator("label_words")
    @classmethod
    def _fit_the_labels(cls, words: dict[str, str] | None, info: ValidationInfo) -> dict[str, str] | None:
        _prompt_kind("label_words", words, info)
        labels = info.data.get("labels")
        if words is not None and labels is not None and set(words) != set(labels):
            raise ValueError(f"should have one word for each of task.labels: {', '.join(labels)}")
        return words

    @field_validator("target", "target_tokenizer")
    @classmethod
    def _only_for_seq2seq(cls, name: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("type")
        if kind != "seq2seq":
            if name is not None and kind is not None:
                raise ValueError(f"should be null; {kind} has no target text")
            return name
        if info.field_name == "target":
            name = name or "target"
            if name in info.data.get("text", ()):
                raise ValueError(f"the column {name!r} is also a text column; the target must not be part of the input")
        return name

    @field_validator("metric")
    @classmethod
    def _fits_the_kind(cls, metric: str, info: ValidationInfo) -> str:
        kind = info.data.get("type")
        fitting = _METRICS.get(str(kind), ("accuracy", "macro_f1"))
        if kind is not None and metric not in fitting:
            raise ValueError(f"does not fit {kind}; should be {', '.join(fitting[:-1])} or {fitting[-1]}")
        return metric

    @property
    def writes(self) -> bool:
        """Whether models of this kind write, token after token."""
        return self.type not in ONE_PASS_TYPES


def _prompt_kind(key: str, value: object, info: ValidationInfo) -> str | None:
    """The kind of task if it has a prompt, None if it has none or is not known.

    Raises:
        ValueError: ``value`` is missing though the kind needs it, or is there though it has no prompt.
    """
    kind: str | None = info.data.get("type")
    if kind in PROMPT_TYPES and value is None:
        example = f"{_EXAMPLES[kind]!r}" if key == "template" else "{negative: terrible, positive: great}"
        raise ValueError(f"is required for {kind}, as in {example}")
    if kind is not None and kind not in PROMPT_TYPES and value is not None:
        raise ValueError(f"should be null; {kind} has no prompt")
    return kind if kind in PROMPT_TYPES else None

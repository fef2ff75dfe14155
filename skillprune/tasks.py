"""What a checkpoint is for, with its labels settled, and the built-in tasks; reading examples is left to data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from skillprune.errors import DataError, Problem, RecipeError
from skillprune.recipe import BuiltinData, FileData, HubData, TaskSpec
from skillprune.recipe.task import GENERATIVE_TYPES, PROMPT_TYPES
from skillprune.recipe.template import MASK, template_parts

#: Label names, in the order of the model's outputs, of the tasks whose examples skillprune generates itself.
BUILTIN_LABELS: Mapping[str, tuple[str, ...]] = MappingProxyType({"reviews": ("negative", "positive")})

_LABELS_SHOWN = 10


@dataclass(frozen=True)
class Rendered:
    """A filled-in template: its text, and from where to where the text of each column stands in it, in characters."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Template:
    """A prompt as in the recipe, with the text columns that its placeholders name."""

    source: str
    columns: tuple[str, ...]

    def render(self, texts: Sequence[str], mask_token: str | None = None) -> Rendered:
        """The template with every placeholder filled in.

        Args:
            texts: One text per column, in the order of ``columns``.
            mask_token: What stands for ``{mask}``; only a template that has one needs it.

        Raises:
            ValueError: The template has a mask, but there is no mask token.
        """
        spans = [(0, 0)] * len(self.columns)
        rendered = ""
        for literal, name in template_parts(self.source):
            rendered += literal
            if name in self.columns:
                column = self.columns.index(name)
                spans[column] = (len(rendered), len(rendered) + len(texts[column]))
                rendered += texts[column]
            elif name == MASK:
                if mask_token is None:
                    raise ValueError(f"the template {self.source!r} needs a mask token")
                rendered += mask_token
        return Rendered(rendered, tuple(spans))

    @property
    def before_answer(self) -> str:
        """The literal text right before the answer: up to the mask or, without one, up to the end; may be empty."""
        for literal, name in template_parts(self.source):
            if name == MASK and name not in self.columns:
                return literal
        return literal if name is None else ""


@dataclass(frozen=True)
class Task:
    """A task ready to be read: where its examples are and what every label is called.

    Attributes:
        name: Short name for reports.
        type: Kind of task, as in the recipe.
        data: Where the examples are.
        text: One column, or the two of a sentence pair.
        label: Column of the label.
        labels: Label names; the position is the class number that the model puts out. None where the loss is the task.
        metric: What quality is measured by.
        max_length: Longest input in tokens.
        template: The prompt of tasks whose classes are words; none elsewhere.
        label_words: Those words, in the order of ``labels``.
        target: Column of the text to write; none where nothing but the text itself is predicted.
    """

    name: str
    type: str
    data: FileData | HubData | BuiltinData
    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metric: str
    max_length: int
    template: Template | None = None
    label_words: tuple[str, ...] = ()
    target: str | None = None

    @property
    def classifies(self) -> bool:
        """Whether examples have classes; otherwise the loss of a text is the task."""
        return self.type not in GENERATIVE_TYPES

    def label_id(self, value: str) -> int:
        """The class number of a label as it stands in the data.

        A label name counts first. A whole number in range counts as a class number, unless label names are themselves
        whole numbers: then a number that is no name is more likely a mistake.

        Raises:
            DataError: The value is neither.
        """
        if value in self.labels:
            return self.labels.index(value)
        number = _whole_number(value)
        if (
            number is not None
            and number < len(self.labels)
            and all(_whole_number(name) is None for name in self.labels)
        ):
            return number
        if self.labels == default_labels(len(self.labels)):
            raise DataError(
                f"unknown label {value!r}: the checkpoint does not name its {len(self.labels)} labels; "
                f"set task.labels to their names, in the order of the model's outputs"
            )
        raise DataError(f"unknown label {value!r}; should be one of {shown_labels(self.labels)}")


def default_labels(count: int) -> tuple[str, ...]:
    """The names that transformers gives to labels that have none."""
    return tuple(f"LABEL_{number}" for number in range(count))


def shown_labels(labels: Sequence[str]) -> str:
    """The first ten labels, and how many there are if there are more."""
    more = f", ... ({len(labels)} labels)" if len(labels) > _LABELS_SHOWN else ""
    return ", ".join(labels[:_LABELS_SHOWN]) + more


def resolve_task(spec: TaskSpec, checkpoint_labels: Sequence[str]) -> Task:
    """Settles the label names of a task.

    For a classification head, names in the recipe win over those in the checkpoint, and a built-in task names its own
    labels. Where classes are words, the recipe names them all, and what labels the checkpoint has does not matter.

    Args:
        spec: The recipe's task.
        checkpoint_labels: Label names in the order of the model's outputs, as in ``config.id2label``.

    Raises:
        RecipeError: The recipe and the checkpoint disagree on the number or on the order of the labels.
    """
    words = spec.label_words or {}
    labels = _labels(spec, checkpoint_labels)
    return Task(
        name=_name(spec.data),
        type=spec.type,
        data=spec.data,
        text=spec.text,
        label=spec.label,
        labels=labels,
        metric=spec.metric,
        max_length=spec.max_length,
        template=None if spec.template is None else Template(spec.template, spec.text),
        label_words=tuple(words[label] for label in labels) if words else (),
        target=spec.target,
    )


def _labels(spec: TaskSpec, checkpoint_labels: Sequence[str]) -> tuple[str, ...]:
    if spec.type in GENERATIVE_TYPES:
        return ()
    if spec.type in PROMPT_TYPES:
        return spec.labels or tuple(spec.label_words or ())
    return _head_labels(spec, checkpoint_labels)


def _head_labels(spec: TaskSpec, checkpoint_labels: Sequence[str]) -> tuple[str, ...]:
    labels = spec.labels
    if labels is None and isinstance(spec.data, BuiltinData):
        labels = BUILTIN_LABELS[spec.data.name]
    if labels is None:
        labels = tuple(checkpoint_labels)
    if len(labels) != len(checkpoint_labels):
        raise _wrong_labels(
            labels,
            f"names {len(labels)} labels, but the checkpoint puts out {len(checkpoint_labels)}: "
            f"{shown_labels(checkpoint_labels)}",
        )
    if set(labels) == set(checkpoint_labels) and labels != tuple(checkpoint_labels):
        raise _wrong_labels(
            labels, f"has another order than the checkpoint's outputs: {shown_labels(checkpoint_labels)}"
        )
    return labels


def _wrong_labels(labels: Sequence[str], message: str) -> RecipeError:
    return RecipeError([Problem("task.labels", shown_labels(labels), message)])


def _name(data: FileData | HubData | BuiltinData) -> str:
    if isinstance(data, FileData):
        return data.train.parent.name or data.train.stem
    if isinstance(data, HubData):
        return f"{data.hub}/{data.config}" if data.config else data.hub
    return data.name


def _whole_number(value: str) -> int | None:
    """The class number that a text writes in the plain way: ``"3"``, but not ``"03"``, ``"+3"`` or ``" 3"``."""
    plain = value.isascii() and value.isdigit() and len(value) < 10
    return int(value) if plain and str(int(value)) == value else None

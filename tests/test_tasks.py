"""Tasks: which labels win, what a label in the data means, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillprune.errors import DataError, RecipeError
from skillprune.recipe import TaskSpec
from skillprune.tasks import Rendered, Task, Template, default_labels, resolve_task


def spec(**values: Any) -> TaskSpec:
    return TaskSpec.model_validate({"data": {"hub": "someone/something"}, **values})


def task(*labels: str) -> Task:
    return resolve_task(spec(), labels)


def test_a_task_is_the_recipe_with_the_labels_of_the_checkpoint() -> None:
    asked = spec(text=["premise", "hypothesis"], label="gold", metric="macro_f1", max_length=64)
    found = resolve_task(asked, ["no", "yes"])
    assert found == Task(
        name="someone/something",
        type="text-classification",
        data=asked.data,
        text=("premise", "hypothesis"),
        label="gold",
        labels=("no", "yes"),
        metric="macro_f1",
        max_length=64,
    )


WORDS = {"negative": "terrible", "positive": "great", "neutral": "okay"}


def test_where_classes_are_words_the_recipe_names_them_in_order() -> None:
    asked = spec(type="masked-lm", template="{text} It was {mask}.", label_words=WORDS)
    found = resolve_task(asked, ["LABEL_0", "LABEL_1"])
    assert (found.labels, found.label_words) == (("negative", "positive", "neutral"), ("terrible", "great", "okay"))
    assert (found.template, found.metric) == (Template("{text} It was {mask}.", ("text",)), "accuracy")
    assert found.classifies
    assert found.label_id("neutral") == 2


def test_labels_order_the_label_words() -> None:
    labels = ["positive", "neutral", "negative"]
    found = resolve_task(spec(type="causal-lm", template="{text}", label_words=WORDS, labels=labels), [])
    assert (found.labels, found.label_words) == (tuple(labels), ("great", "okay", "terrible"))


@pytest.mark.parametrize(("kind", "target"), [("language-modeling", None), ("seq2seq", "target")])
def test_a_generative_task_has_no_labels_and_is_judged_by_its_loss(kind: str, target: str | None) -> None:
    found = resolve_task(spec(type=kind), ["LABEL_0", "LABEL_1"])
    assert (found.labels, found.label_words, found.template) == ((), (), None)
    assert (found.metric, found.target, found.classifies) == ("loss", target, False)


def test_a_template_says_where_the_texts_stand_in_it() -> None:
    template = Template("{{{b}}} or {a}: {mask}.", ("a", "b"))
    assert template.render(["one", "three"], "[MASK]") == Rendered("{three} or one: [MASK].", ((11, 14), (1, 6)))
    with pytest.raises(ValueError, match="needs a mask token"):
        template.render(["one", "three"])


@given(st.lists(st.text(), min_size=2, max_size=2), st.lists(st.text(), min_size=3, max_size=3))
def test_texts_are_put_in_as_they_are(texts: list[str], literals: list[str]) -> None:
    first, middle, last = (literal.replace("{", "{{").replace("}", "}}") for literal in literals)
    found = Template(f"{first}{{y}}{middle}{{x}}{last}", ("x", "y")).render(texts)
    assert found.text == f"{literals[0]}{texts[1]}{literals[1]}{texts[0]}{literals[2]}"
    assert [found.text[start:end] for start, end in found.spans] == texts


@pytest.mark.parametrize(
    ("source", "before"),
    [("{text} It was {mask}.", " It was "), ("{text}{mask}", ""), ("{mask} was {text}", ""), ("{text} was", " was")],
)
def test_a_template_says_what_stands_before_the_answer(source: str, before: str) -> None:
    assert Template(source, ("text",)).before_answer == before
    assert Template("It is {mask}", ("mask",)).before_answer == ""


def test_names_in_the_recipe_win_over_those_in_the_checkpoint() -> None:
    assert resolve_task(spec(labels=["bad", "good"]), ["LABEL_0", "LABEL_1"]).labels == ("bad", "good")


def test_a_builtin_task_names_its_own_labels() -> None:
    found = resolve_task(spec(data="builtin:reviews"), ["LABEL_0", "LABEL_1"])
    assert (found.name, found.labels) == ("reviews", ("negative", "positive"))


def test_a_file_task_is_called_after_its_folder(tmp_path: Any) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").touch()
    data = {"train": tmp_path / "train.csv", "test": tmp_path / "test.csv"}
    assert resolve_task(spec(data=data), ["a", "b"]).name == tmp_path.name


def test_a_different_number_of_labels_names_both_numbers() -> None:
    with pytest.raises(RecipeError, match="names 2 labels, but the checkpoint puts out 3: x, y, z") as caught:
        resolve_task(spec(labels=["a", "b"]), ["x", "y", "z"])
    assert caught.value.problems[0].field == "task.labels"


def test_the_checkpoints_names_in_another_order_would_swap_classes() -> None:
    with pytest.raises(RecipeError, match="another order"):
        resolve_task(spec(labels=["positive", "negative"]), ["negative", "positive"])


@given(st.lists(st.text(min_size=1), min_size=2, max_size=20, unique=True))
def test_every_name_is_the_number_of_its_output(labels: list[str]) -> None:
    assert [task(*labels).label_id(label) for label in labels] == list(range(len(labels)))


@given(st.integers(2, 30), st.data())
def test_numbers_in_range_are_class_numbers(count: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, count - 1))
    assert task(*default_labels(count)).label_id(str(number)) == number
    assert task(*(f"name {index}" for index in range(count))).label_id(str(number)) == number


@pytest.mark.parametrize("value", ["3", "-1", "01", "+1", " 1", "1.0", "1_0", "²", "٣", "Yes", "9" * 5000])
def test_everything_else_is_refused_with_the_labels_there_are(value: str) -> None:
    with pytest.raises(DataError) as caught:
        task("no", "maybe", "yes").label_id(value)
    assert repr(value) in str(caught.value)
    assert "no, maybe, yes" in str(caught.value)


def test_many_labels_are_counted_instead_of_listed() -> None:
    with pytest.raises(DataError, match=r"n0, n1, .*n9, \.\.\. \(150 labels\)$"):
        task(*(f"n{index}" for index in range(150))).label_id("other")


def test_a_name_for_a_checkpoint_without_names_asks_for_them() -> None:
    with pytest.raises(DataError, match=r"'good'.*set task\.labels"):
        task("LABEL_0", "LABEL_1").label_id("good")


def test_labels_that_are_numbers_are_names_only() -> None:
    stars = task("1", "2", "3")
    assert stars.label_id("1") == 0
    with pytest.raises(DataError):
        stars.label_id("0")

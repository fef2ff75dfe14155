"""Tasks: which labels win, what a label in the data means, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillprune.errors import DataError, RecipeError
from skillprune.recipe import TaskSpec
from skillprune.tasks import Task, default_labels, resolve_task


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

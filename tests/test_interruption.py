"""Ctrl-C, failures in mid write and lost files: nothing half-written is left, and the run goes on where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import VIEWS, Finished, assert_same_results, assert_whole, finished, read_json, set_up, times, tree

import skillprune
from skillprune.errors import ResourceFailure
from skillprune.pipeline import STAGES, Run
from skillprune.pipeline.directory import replacing

NAMES = ("score", "plan", "prune", "export", "bench", "profile", "test")


@pytest.fixture(scope="module")
def done() -> Finished:
    return finished()


class Interrupted:
    """A progress callback that presses Ctrl-C when a piece of work has come so far."""

    def __init__(self, what: str, done: int) -> None:
        self.point = (what, done)

    def __call__(self, what: str, done: int, total: int) -> None:
        if (what, done) == self.point:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), OSError(28, "No space left on device")])
def test_a_failed_replacement_leaves_the_old_one(tmp_path: Path, kind: str, error: BaseException) -> None:
    path = tmp_path / "thing"

    def fill(fresh: Path, text: str) -> None:
        if kind == "directory":
            fresh.mkdir()
        (fresh / "inner" if kind == "directory" else fresh).write_text(text, encoding="utf-8")

    with replacing(path) as fresh:
        fill(fresh, "old")
    before = tree(tmp_path)
    with pytest.raises(ResourceFailure if isinstance(error, OSError) else type(error)), replacing(path) as fresh:
        fill(fresh, "new")
        raise error
    assert tree(tmp_path) == before
    with replacing(path) as fresh:
        fill(fresh, "newest")
    assert list(tree(tmp_path).values()) == [b"newest"]


@pytest.fixture(scope="module")
def resumed(done: Finished) -> Iterator[Path]:
    """A run of the same recipe, interrupted at ever later points and resumed every time, until it is done."""
    output = done.recipe.parent / "resumed"
    recipe = skillprune.load_recipe(done.recipe)
    points = [
        ("scoring (calibration)", 0),
        ("scoring (calibration)", 2),
        ("scoring (validation)", 1),
        ("repair (embeddings)", 0),
        ("repair (encoder layer 1)", 1),
        ("reload in a fresh process", 0),
        ("exporting", 0),
        ("exporting", 1),
        ("measuring 1 x 8", 4),
        ("measuring 2 x 16", 10),
        ("test (dense)", 0),
        ("test (onnx fp32)", 1),
    ]
    for point in points:
        with pytest.raises(KeyboardInterrupt):
            skillprune.run(recipe, output, progress=Interrupted(*point))
        assert_whole(output)
        assert not any((output / view).exists() for view in VIEWS), "a report of a run that did not end"
    skillprune.run(recipe, output)
    yield output
    shutil.rmtree(output)


def test_an_interrupted_run_ends_like_one_that_was_not(resumed: Path, done: Finished) -> None:
    assert_whole(resumed)
    assert_same_results(resumed, done.output)
    stages = read_json(resumed / "report.json")["stages"]
    assert {stage["name"]: stage["cached"] for stage in stages} == {name: name != "test" for name in NAMES}


def test_without_the_checkpoint_pruning_and_all_after_it_is_done_again(resumed: Path, done: Finished) -> None:
    before = times(resumed)
    shutil.rmtree(resumed / "model")
    report = skillprune.run(skillprune.load_recipe(done.recipe), resumed)
    assert {stage.name: stage.cached for stage in report.stages} == {name: name in ("score", "plan") for name in NAMES}
    after = times(resumed)
    assert after["scores.safetensors"] == before["scores.safetensors"]
    assert after["onnx/fp32/model.onnx"] > before["onnx/fp32/model.onnx"]
    assert_same_results(resumed, done.output)


def test_a_checkpoint_without_weights_does_not_count_as_done(done: Finished, tmp_path: Path) -> None:
    """The directory is there, but what makes it a checkpoint is not."""
    output = tmp_path / "out"
    shutil.copytree(done.output, output)
    (output / "model" / "model.safetensors").unlink()
    run = Run(skillprune.load_recipe(done.recipe), output, progress=Interrupted("repair (embeddings)", 0))
    with pytest.raises(KeyboardInterrupt):
        STAGES["prune"](run)


def test_an_interrupted_run_object_can_go_on(tmp_path: Path) -> None:
    """In a notebook the same object is asked again; a half-pruned model must not be taken for the dense one."""
    recipe = set_up(tmp_path)
    run = Run(skillprune.load_recipe(recipe), tmp_path / "out", progress=Interrupted("repair (encoder layer 1)", 1))
    predicted = run.predict()
    with pytest.raises(KeyboardInterrupt):
        STAGES["prune"](run)
    assert run.predict() == predicted
    run.progress = Interrupted("reload in a fresh process", 0)  # that far it has to come this time
    with pytest.raises(KeyboardInterrupt):
        STAGES["prune"](run)
    assert_whole(tmp_path / "out")

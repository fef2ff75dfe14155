"""The run directory: what counts as done, what is done again, what is refused, and what an interruption leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import LABELS, VIEWS, Finished, finished, invoke, make_model, read_csv, read_json, set_up, tree, write_csv
from runs import write_recipe
from safetensors.numpy import load_file

import skillprune
from skillprune.errors import OutputError, ResourceFailure, SkillPruneError
from skillprune.pipeline import STAGES, Run
from skillprune.pipeline.directory import RunDirectory, replacing, write_text
from skillprune.progress import silent

DEMO = skillprune.Recipe.model_validate({"model": "builtin:reviews-tiny", "task": {"data": "builtin:reviews"}})
NAMES = ("score", "plan", "prune", "export", "bench", "test")


@pytest.fixture(scope="module")
def done() -> Finished:
    return finished()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Model, data and recipe of its own, for tests that change them."""
    set_up(tmp_path)
    return tmp_path


def carry_out(folder: Path, stage: str = "plan", *, cache: bool = True) -> dict[str, bool]:
    """Asks for a stage in ``folder/out`` and says of every stage that took part whether it was cached."""
    run = Run(skillprune.load_recipe(folder / "recipe.yaml"), folder / "out", cache=cache)
    STAGES[stage](run)
    return {record.name: record.cached for record in run.directory.records}


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in tree(folder)}


def assert_whole(output: Path) -> None:
    """No temporary file is left, every file can be read to its end, and no stage claims files that are not there."""
    files = tree(output)
    hidden = [name for name in files if any(part.startswith(".") for part in Path(name).parts)]
    assert all(name.startswith(".stages/") for name in hidden), hidden
    for name in files:
        path = output / name
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            assert load_file(path)
        elif path.suffix == ".onnx":
            onnx.checker.check_model(str(path), full_check=True)
    for stage, left in (("score", "scores.safetensors"), ("plan", "plan.json"), ("export", "onnx/fp32/model.onnx")):
        assert f".stages/{stage}.json" not in files or left in files
    if (output / "model").exists():
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(tree(output / "model"))


def assert_same_results(output: Path, reference: Path) -> None:
    """Everything that does not depend on the clock is equal."""
    assert tree(output).keys() == tree(reference).keys()
    assert (output / "plan.json").read_bytes() == (reference / "plan.json").read_bytes()
    for name in ("scores.safetensors", "model/model.safetensors"):
        found, expected = load_file(output / name), load_file(reference / name)
        assert found.keys() == expected.keys()
        for key, array in found.items():
            np.testing.assert_allclose(array, expected[key], rtol=1e-4, atol=1e-5)
    mine, other = read_json(output / "report.json"), read_json(reference / "report.json")
    for section in ("model", "task", "quality"):
        assert mine[section] == other[section]


class Interrupted:
    """A progress callback that presses Ctrl-C when a piece of work has come so far."""

    def __init__(self, what: str, done: int) -> None:
        self.point = (what, done)

    def __call__(self, what: str, done: int, total: int) -> None:
        if (what, done) == self.point:
            raise KeyboardInterrupt


def test_a_second_run_does_nothing_again(done: Finished) -> None:
    before = times(done.output)
    report = skillprune.run(skillprune.load_recipe(done.recipe), done.output)
    assert [(stage.name, stage.cached) for stage in report.stages] == [(name, True) for name in NAMES]
    after = times(done.output)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= VIEWS


def test_a_cached_stage_keeps_the_time_it_took(done: Finished) -> None:
    first = skillprune.run(skillprune.load_recipe(done.recipe), done.output)
    second = skillprune.run(skillprune.load_recipe(done.recipe), done.output)
    assert first.stages == second.stages and all(stage.seconds > 0 for stage in first.stages)
    assert first.latency == second.latency and first.scoring == second.scoring


def test_the_directory_may_be_named_another_way(done: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, absolute, or through a link: it is the same directory."""
    monkeypatch.chdir(done.output.parent)
    again = skillprune.run(skillprune.load_recipe(done.recipe), "out")
    assert all(stage.cached for stage in again.stages)
    assert again.artifacts[0].path == "onnx/fp32/model.onnx"


def test_a_moved_directory_is_still_done(done: Finished, tmp_path: Path) -> None:
    shutil.copytree(done.output, tmp_path / "moved")
    moved = skillprune.run(skillprune.load_recipe(done.recipe), tmp_path / "moved")
    assert moved.artifacts[0].path == "onnx/fp32/model.onnx"
    assert_whole(tmp_path / "moved")


def test_without_the_cache_everything_is_done_again(folder: Path) -> None:
    assert carry_out(folder) == {"score": False, "plan": False}
    before = times(folder / "out")
    assert carry_out(folder) == {"score": True, "plan": True}
    assert times(folder / "out") == before
    assert carry_out(folder, cache=False) == {"score": False, "plan": False}
    changed = {name for name, time in times(folder / "out").items() if time != before[name]}
    assert changed == {"scores.safetensors", "plan.json", ".stages/score.json", ".stages/plan.json"}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_other_examples_invalidate(folder: Path, split: str) -> None:
    carry_out(folder)
    path = folder / "data" / f"{split}.csv"
    rows = read_csv(path)
    write_csv(path, [("word9 word8 word7", rows[0][1]), *rows[1:]])
    assert carry_out(folder) == {"score": False, "plan": False}


def test_another_label_invalidates(folder: Path) -> None:
    carry_out(folder)
    path = folder / "data" / "test.csv"
    (text, label), *rows = read_csv(path)
    write_csv(path, [(text, LABELS[1 - LABELS.index(label)]), *rows])
    assert carry_out(folder) == {"score": False, "plan": False}


def test_other_weights_invalidate(folder: Path) -> None:
    carry_out(folder)
    before = tree(folder / "out")
    make_model(seed=5).save_pretrained(folder / "model")
    assert carry_out(folder) == {"score": False, "plan": False}
    assert tree(folder / "out")["scores.safetensors"] != before["scores.safetensors"]


def test_another_tokenizer_invalidates(folder: Path) -> None:
    """It decides which token ids the model sees, as the examples do."""
    carry_out(folder)
    path = folder / "model" / "tokenizer.json"
    content = read_json(path)
    words = content["model"]["vocab"]
    words["word10"], words["word40"] = words["word40"], words["word10"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert carry_out(folder) == {"score": False, "plan": False}


def test_touching_a_file_without_changing_it_invalidates_nothing(folder: Path) -> None:
    carry_out(folder)
    for path in [*folder.glob("model/*"), *folder.glob("data/*")]:
        path.write_bytes(path.read_bytes())
    assert carry_out(folder) == {"score": True, "plan": True}


def test_a_lost_file_is_made_again_with_all_that_follows(folder: Path) -> None:
    carry_out(folder)
    (folder / "out" / "plan.json").unlink()
    assert carry_out(folder) == {"score": True, "plan": False}
    (folder / "out" / "scores.safetensors").unlink()
    assert carry_out(folder) == {"score": False, "plan": False}


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 5), data=st.data())
def test_a_stage_done_again_makes_all_later_ones_stale(
    count: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the reason: its file is gone, its record is gone, or the inputs changed before it."""
    path = tmp_path_factory.mktemp("stages") / "out"
    lost = data.draw(st.integers(0, count - 1))
    kind = data.draw(st.sampled_from(["file", "record"]))

    def carry_out_all(inputs: str) -> list[bool]:
        directory = RunDirectory(path, DEMO)
        directory.depend_on(inputs)
        for number in range(count):
            made = path / f"made{number}"
            value = directory.stage(
                f"s{number}", int, lambda made=made, number=number: write_number(made, number), [made]
            )
            assert value == number
        return [record.cached for record in directory.records]

    assert carry_out_all("a") == [False] * count
    assert carry_out_all("a") == [True] * count
    (path / f"made{lost}" if kind == "file" else path / ".stages" / f"s{lost}.json").unlink()
    assert carry_out_all("a") == [number < lost for number in range(count)]
    assert carry_out_all("b") == [False] * count


def write_number(path: Path, number: int) -> int:
    write_text(path, str(number))
    return number


def test_another_recipe_in_the_same_directory_is_refused(done: Finished) -> None:
    before, stamps = tree(done.output), times(done.output)
    other = write_recipe(done.recipe.parent, "other", seed=1)
    said = invoke("run", other, "--output", done.output)
    assert said.code == 2 and "another recipe" in said.text and str(done.output) in said.text
    assert "Traceback" not in said.text and said.out == ""
    assert tree(done.output) == before and times(done.output) == stamps


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "sub/deep.txt", "report.json"])
def test_a_directory_that_holds_something_else_is_refused(done: Finished, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="not empty"):
        skillprune.run(skillprune.load_recipe(done.recipe), tmp_path)
    assert tree(tmp_path) == {name: b"mine"}


def test_somebody_elses_recipe_yaml_is_refused(done: Finished, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes("name: café\n".encode("latin-1"))
    with pytest.raises(OutputError):
        skillprune.run(skillprune.load_recipe(done.recipe), tmp_path)
    assert tree(tmp_path) == {"recipe.yaml": b"name: caf\xe9\n"}


def test_a_file_as_output_is_refused(done: Finished, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="is a file"):
        skillprune.run(skillprune.load_recipe(done.recipe), tmp_path / "out")
    with pytest.raises(SkillPruneError):
        skillprune.run(skillprune.load_recipe(done.recipe), tmp_path / "out" / "below")
    assert tree(tmp_path) == {"out": b"mine"}


def test_an_empty_directory_is_taken(folder: Path) -> None:
    (folder / "out").mkdir()
    assert carry_out(folder) == {"score": False, "plan": False}


def test_creating_a_run_writes_nothing(folder: Path) -> None:
    before = tree(folder)
    Run(skillprune.load_recipe(folder / "recipe.yaml"), folder / "out").predict()
    assert tree(folder) == before


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
        ("export", 0),
        ("export", 1),
        ("measuring 1 x 8", 4),
        ("measuring 2 x 16", 10),
        ("test (dense)", 0),
        ("test (onnx)", 1),
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


def test_an_interrupted_run_object_can_go_on(folder: Path) -> None:
    """In a notebook the same object is asked again; a half-pruned model must not be taken for the dense one."""
    run = Run(
        skillprune.load_recipe(folder / "recipe.yaml"),
        folder / "out",
        progress=Interrupted("repair (encoder layer 1)", 1),
    )
    with pytest.raises(KeyboardInterrupt):
        STAGES["prune"](run)
    run.progress = silent
    assert len(STAGES["prune"](run)) == 3
    assert_whole(folder / "out")

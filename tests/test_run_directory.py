"""The run directory: what counts as done, what is done again, what is refused, and what an interruption leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import (
    LABELS,
    VIEWS,
    Finished,
    assert_whole,
    finished,
    invoke,
    make_model,
    read_csv,
    read_json,
    set_up,
    times,
    tree,
    write_csv,
    write_recipe,
)

import skillprune
from skillprune.errors import OutputError, SkillPruneError
from skillprune.pipeline import STAGES, Run
from skillprune.pipeline.directory import RunDirectory, write_text

DEMO = skillprune.Recipe.model_validate({"model": "builtin:reviews-tiny", "task": {"data": "builtin:reviews"}})
NAMES = ("score", "plan", "prune", "export", "bench", "profile", "test")


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


def test_the_directory_may_be_named_another_way(
    done: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative, absolute, or through a link: it is the same directory."""
    shutil.copytree(done.output, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
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

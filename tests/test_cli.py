"""The command line on good input: what it prints where, its exit codes, and commands that only show something."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from runs import (
    KEPT,
    LAYERS,
    ROOT,
    SHAPES,
    WIDTH,
    Finished,
    Output,
    assert_same_results,
    assert_whole,
    command,
    environment,
    finished,
    invoke,
    make_model,
    read_json,
    set_up,
    spawn,
    tree,
)
from safetensors.numpy import load_file

import skillprune
from skillprune.errors import RecipeError
from skillprune.pipeline import STAGES

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
OTHER_RECIPES = sorted((ROOT / "benchmarks" / "recipes").rglob("*.yaml"))
STAGE_OPTIONS = ("--output", "--set", "--no-cache", "--debug", "RECIPE")
OPTIONS = {
    "run": (*STAGE_OPTIONS, "--dry-run", "--json"),
    "score": STAGE_OPTIONS,
    "plan": STAGE_OPTIONS,
    "prune": STAGE_OPTIONS,
    "recover": STAGE_OPTIONS,
    "export": STAGE_OPTIONS,
    "bench": STAGE_OPTIONS,
    "gate": (
        *(
            "RUN",
            "--min-speedup",
            "--max-drop",
            "--max-p50-ms",
            "--baseline",
            "--max-slowdown",
            "--markdown",
            "--junit",
        ),
        *("--json-file", "--benchmark", "--json", "--debug"),
    ),
    "validate": ("--set", "--debug", "RECIPE"),
    "schema": (),
    "recipes": ("list", "show", "copy"),
    "recipes list": (),
    "recipes show": ("NAME",),
    "recipes copy": ("NAME", "FILE"),
}


@pytest.fixture(scope="module")
def done() -> Finished:
    return finished()


@pytest.fixture(scope="module")
def interrupted(done: Finished) -> dict[str, Any]:
    """A run as a process of its own, stopped by Ctrl-C in mid work, with what it had left behind by then."""
    output = done.recipe.parent / "by-hand"
    process = subprocess.Popen(
        command("run", done.recipe, "--output", output),
        env=environment(),
        # Whoever runs the tests in the background of a shell has Ctrl-C switched off, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = next((line for line in process.stderr if "scoring (calibration)" in line), "")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert_whole(output)
    return {"code": process.returncode, "first": first, "out": out, "err": err, "left": tree(output), "output": output}


@pytest.fixture(scope="module")
def stages(done: Finished, interrupted: dict[str, Any]) -> dict[str, tuple[str, dict[str, bytes]]]:
    """The stage commands one after the other where the interrupted run stopped: what each printed and left."""
    found = {}
    for stage in ("score", "plan", "prune", "export", "bench"):
        said = invoke(stage, done.recipe, "--output", interrupted["output"])
        assert said.code == 0, said.err
        found[stage] = (said.out, tree(interrupted["output"]))
    return found


def test_ctrl_c_is_code_130_and_leaves_no_half_file(interrupted: dict[str, Any]) -> None:
    assert interrupted["first"], interrupted["err"]
    assert interrupted["code"] == 130, interrupted["err"]
    assert "Traceback" not in interrupted["err"] and "interrupted" in interrupted["err"]
    assert interrupted["out"] == ""
    assert {*interrupted["left"]} <= {"recipe.yaml"}  # in the first stage, so nothing else can be whole yet


def test_the_stage_commands_reach_what_run_reaches(
    done: Finished, interrupted: dict[str, Any], stages: dict[str, tuple[str, dict[str, bytes]]]
) -> None:
    assert "scores.safetensors" in stages["score"][1]
    assert "plan.json" in stages["plan"][1]
    assert "model/model.safetensors" in stages["prune"][1] and "onnx/fp32/model.onnx" not in stages["prune"][1]
    assert {"onnx/fp32/model.onnx", "onnx/dense/fp32/model.onnx"} <= stages["export"][1].keys()
    assert "report.json" not in stages["bench"][1]
    said = invoke("run", done.recipe, "--output", interrupted["output"])
    assert said.code in (0, 1), said.err  # 1 where the machine is too busy for its control
    assert_same_results(interrupted["output"], done.output)
    cached = {stage["name"]: stage["cached"] for stage in read_json(interrupted["output"] / "report.json")["stages"]}
    assert [name for name, was in cached.items() if not was] == ["profile", "test"]


def test_every_stage_prints_its_value(stages: dict[str, tuple[str, dict[str, bytes]]]) -> None:
    assert all(text.strip() for text, _ in stages.values())
    assert stages["score"][0].count(f"{WIDTH} neurons") == 2 * LAYERS  # two criteria
    assert len(re.findall(rf"{WIDTH} -> +{KEPT} neurons", stages["plan"][0])) == LAYERS
    assert stages["prune"][0].count("encoder") == LAYERS
    assert "onnx/dense/fp32/model.onnx" in stages["export"][0] and "onnx/fp32/model.onnx" in stages["export"][0]
    assert {"1 x 8", "2 x 16"} <= {" ".join(found.split()) for found in re.findall(r"\d+ x \d+", stages["bench"][0])}


@pytest.fixture(scope="module")
def everything_kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Output]:
    """A run that keeps all neurons: from nothing, as a process, with the output directory left to its default."""
    folder = tmp_path_factory.mktemp("everything")
    recipe = set_up(folder, plan={"keep_ratio": 1.0, "round_to": 8}, repair={"method": "zero"})
    return folder / "runs" / "recipe", spawn("run", recipe.name, "--json", cwd=folder)


def test_json_is_one_object_on_stdout_and_progress_is_on_stderr(everything_kept: tuple[Path, Output]) -> None:
    output, said = everything_kept
    report = json.loads(said.out)
    assert report == read_json(output / "report.json")
    assert said.code == (0 if report["verdict"]["ok"] else 1)
    for work in ("scoring (calibration)", "export", "measuring 2 x 16", "test (onnx fp32)"):
        assert any(line.startswith(work) for line in said.err.splitlines()), said.err
    assert "error" not in said.err


def test_keeping_everything_is_legal_and_changes_nothing(everything_kept: tuple[Path, Output]) -> None:
    output, said = everything_kept
    report = json.loads(said.out)
    assert not any("smaller" in reason for reason in report["verdict"]["reasons"])
    assert report["model"]["parameters_after"] == report["model"]["parameters_before"]
    assert report["quality"]["difference"] == 0 and report["quality"]["agreement"] == 1
    dense, found = make_model().state_dict(), load_file(output / "model" / "model.safetensors")
    assert found.keys() <= dense.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, dense[name].numpy())


def test_run_prints_the_verdict_and_where_everything_is(done: Finished) -> None:
    said = invoke("run", done.recipe, "--output", done.output)
    report = done.report
    assert said.code == (0 if report["verdict"]["ok"] else 1)
    assert str(done.output) in said.text and "report.md" in said.out
    for accuracy in (report["quality"]["test"]["dense"], report["quality"]["test"]["onnx"]["fp32"]):
        assert f"{100 * accuracy:.1f} %" in said.out
    assert "done (" not in said.out


def test_a_dry_run_writes_nothing_and_predicts_what_happens(done: Finished) -> None:
    before = tree(done.recipe.parent)
    said = invoke("run", done.recipe, "--output", done.recipe.parent / "dry", "--dry-run", "--json")
    assert said.code == 0, said.err
    assert tree(done.recipe.parent) == before
    predicted, model = json.loads(said.out), done.report["model"]
    for when in ("before", "after"):
        assert predicted[f"width_{when}"] == {"encoder": model["stacks"][0][f"width_{when}"]}
        for name, key in (("parameters", "parameters"), ("ffn_parameters", "ffn_parameters"), ("macs", "macs")):
            assert predicted[when][name] == model[f"{key}_{when}"]
    assert [(each["batch"], each["sequence"]) for each in predicted["latency"]] == list(SHAPES)
    assert all(0 < each["after_ms"] <= each["before_ms"] for each in predicted["latency"])
    text = invoke("run", done.recipe, "--output", done.recipe.parent / "dry", "--dry-run").out
    assert f"{model['parameters_after']:,}" in text and tree(done.recipe.parent) == before


def test_every_command_shows_the_warnings_of_its_own_run_once(tmp_path: Path) -> None:
    """The second command of one process must not log to the first one's stream, which is closed by then."""
    recipe = set_up(tmp_path)
    test = tmp_path / "data" / "test.csv"
    test.write_text(test.read_text() + (tmp_path / "data" / "train.csv").read_text().splitlines()[1] + "\n")
    for name in ("score", "plan"):
        said = invoke(name, recipe, "--output", tmp_path / "out")
        assert said.code == 0 and "Traceback" not in said.err
        assert re.findall("WARNING: .*", said.err) == [
            "WARNING: dropped 1 of 40 train examples whose text is also in test"
        ]


def test_set_overrides_the_recipe(done: Finished) -> None:
    said = invoke("run", done.recipe, "--dry-run", "--json", "--set", "plan.keep_ratio=0.5", "-s", "plan.round_to=1")
    assert json.loads(said.out)["width_after"] == {"encoder": [WIDTH // 2] * LAYERS}


def test_validate_prints_the_recipe_with_every_default(done: Finished, tmp_path: Path) -> None:
    said = invoke("validate", done.recipe, "--set", "seed=7")
    assert said.code == 0 and said.err == ""
    (tmp_path / "again.yaml").write_text(said.out, encoding="utf-8")
    assert skillprune.load_recipe(tmp_path / "again.yaml") == skillprune.load_recipe(done.recipe, ["seed=7"])
    assert yaml.safe_load(said.out)["repair"]["sequential"] is True


def test_names_are_printed_as_they_are(done: Finished, tmp_path: Path) -> None:
    """Terminal libraries have names for pictures and mark-up of their own."""
    names = [":smile:", "[bold]x[/bold]", "a  b", "[link=x]"]
    said = invoke("validate", done.recipe, "--set", f"task.labels={json.dumps(names)}")
    assert yaml.safe_load(said.out)["task"]["labels"] == names


def test_schema_is_a_schema_that_the_shipped_recipes_fit() -> None:
    schema = json.loads(invoke("schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    for path in (*RECIPES, *OTHER_RECIPES):
        jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model": "x", "task": {"data": "builtin:reviews"}, "purne": {}}, schema)


def test_there_are_recipes() -> None:
    assert RECIPES and OTHER_RECIPES


@pytest.mark.parametrize("path", [*RECIPES, *OTHER_RECIPES], ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    """Files that a recipe reads may be absent here; nothing else may be wrong."""
    try:
        skillprune.load_recipe(path)
    except RecipeError as error:
        assert all("there is no such" in problem.message for problem in error.problems), str(error)
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")


def test_recipes_list_names_every_shipped_recipe_with_its_first_line() -> None:
    said = invoke("recipes", "list")
    lines = dict(line.split(maxsplit=1) for line in said.out.splitlines())
    assert lines == {
        path.stem: path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").strip() for path in RECIPES
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_show_and_copy_give_the_file(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert invoke("recipes", "show", path.stem).out.strip() == text.strip()
    assert invoke("recipes", "copy", path.stem, tmp_path / "mine.yaml").code == 0
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == text


def test_recipes_copy_takes_the_recipes_name_and_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("recipes", "copy", "quickstart").code == 0
    (tmp_path / "quickstart.yaml").write_text("mine", encoding="utf-8")
    said = invoke("recipes", "copy", "quickstart")
    assert said.code == 2 and "quickstart.yaml exists" in said.text and "Traceback" not in said.text
    assert tree(tmp_path) == {"quickstart.yaml": b"mine"}


def test_recipes_copy_into_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    said = invoke("recipes", "copy", "quickstart", tmp_path / "gone" / "mine.yaml")
    assert said.code in (2, 3) and str(tmp_path / "gone") in said.text and "Traceback" not in said.err
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("verb", ["show", "copy"])
def test_an_unknown_recipe_name_lists_the_known_ones(verb: str) -> None:
    said = invoke("recipes", verb, "quickstrat")
    assert said.code == 2 and "'quickstrat'" in said.text and all(path.stem in said.text for path in RECIPES)
    assert "Traceback" not in said.err


def test_version_is_that_of_the_package() -> None:
    assert invoke("--version").out == f"skillprune {version('skillprune')}\n"


@pytest.mark.parametrize("name", OPTIONS)
def test_help_names_every_option(name: str) -> None:
    said = invoke(*name.split(), "--help")
    text = re.sub(r"\x1b\[[0-9;]*m", "", said.out)
    assert said.code == 0
    assert all(option in text for option in OPTIONS[name]), text
    assert len(text.split()) > 5


def test_help_names_every_command() -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", invoke("--help").out)
    assert all(re.search(rf"\b{name}\b", text) for name in {name.split()[0] for name in OPTIONS})
    assert invoke().code == 2 and "Usage" in invoke().text


@pytest.mark.parametrize("name", ["run", *STAGES])
def test_the_stages_of_the_contract_are_commands(name: str) -> None:
    assert invoke(name, "--help").code == 0

"""The action and the workflow for GitHub: valid and consistent; with a fake skillprune the scripts do what they say."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import Output
from test_docs import parse

ROOT = Path(__file__).resolve().parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
WORKFLOW = yaml.safe_load((ROOT / "docs" / "ci" / "skillprune-gate.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
JOB: list[dict[str, Any]] = WORKFLOW["jobs"]["gate"]["steps"]

# Writes down what it was asked and leaves what the command would leave.
FAKE = """#!/bin/sh
printf '%s\\n' "skillprune $*" >> "$ASKED"
if [ "$1" = run ]; then mkdir -p "$4"; [ -n "$NO_REPORT" ] || echo '{}' > "$4/report.json"; exit "$RUN_CODE"; fi
while [ $# -gt 0 ]; do [ "$1" = --markdown ] && echo '## Gate' >> "$2"; shift; done
exit "$GATE_CODE"
"""


def step(name: str) -> dict[str, Any]:
    """The step of the action with this id."""
    (found,) = [each for each in STEPS if each.get("id") == name]
    return found


@pytest.fixture
def runner(tmp_path: Path) -> dict[str, str]:
    """What a step finds on a runner, and a fake skillprune in front of everything."""
    fake = tmp_path / "bin" / "skillprune"
    fake.parent.mkdir()
    fake.write_text(FAKE, encoding="utf-8")
    fake.chmod(0o755)
    names = {"GITHUB_OUTPUT": "output", "GITHUB_STEP_SUMMARY": "summary", "ASKED": "asked", "FOLDER": "folder"}
    (tmp_path / "folder").mkdir()
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    files = {name: str(tmp_path / file) for name, file in names.items()}
    return {"PATH": path, "RUNNER_TEMP": str(tmp_path), "RUN_CODE": "0", "GATE_CODE": "0", "NO_REPORT": "", **files}


def carry_out(name: str, runner: dict[str, str], **variables: str) -> Output:
    """Runs the script of a step as GitHub does, with every variable that it declares."""
    empty = dict.fromkeys(step(name).get("env", ()), "")
    script = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step(name)["run"]]
    done = subprocess.run(script, env=empty | runner | variables, capture_output=True, text=True, timeout=60)
    return Output(done.returncode, done.stdout, done.stderr)


def read(path: str) -> str:
    """A file's text; nothing where there is none."""
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""


def test_other_actions_are_named_with_a_major_version() -> None:
    used = [each["uses"] for each in (*STEPS, *JOB) if "uses" in each]
    names = {name.partition("@")[0] for name in used}
    assert {"actions/checkout", "actions/setup-python", "actions/upload-artifact", "OWNER/skillprune"} == names
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+|OWNER/skillprune@main", name) for name in used)


def test_the_action_uses_what_it_declares_and_nothing_else() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"inputs\.([a-z0-9-]+)", text)) == set(ACTION["inputs"])
    assert set(re.findall(r"steps\.([a-z]+)\.", text)) == {each["id"] for each in STEPS if "id" in each}
    assert all(each["description"] for each in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))
    for each in STEPS:
        assert "uses" in each or each["shell"] == "bash"
        assert "${{" not in each.get("run", ""), "what a user gives must reach a script as a variable"


def test_the_workflow_asks_the_action_for_what_it_knows() -> None:
    (used,) = [each for each in JOB if each["uses"].startswith("OWNER/")]
    assert set(used["with"]) <= set(ACTION["inputs"])
    text = (ROOT / "docs" / "ci" / "skillprune-gate.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"# (baseline|max-slowdown):", text)) <= set(ACTION["inputs"])
    assert set(re.findall(r"outputs\.([a-z-]+)", text)) <= set(ACTION["outputs"])


def test_the_pinned_versions_are_there() -> None:
    assert (ROOT / "constraints" / ACTION["inputs"]["constraints"]["default"]).is_file()


def test_a_recipe_is_run_into_a_new_folder_with_its_overrides(runner: dict[str, str]) -> None:
    said = carry_out("run", runner, RECIPE="my recipe.yaml", OVERRIDES="seed=1\n\nplan.keep_ratio=0.5")
    assert said.code == 0, said.err
    folder = f"{runner['FOLDER']}-run"
    asked = read(runner["ASKED"]).strip()
    assert asked == f"skillprune run my recipe.yaml --output {folder} --set seed=1 --set plan.keep_ratio=0.5"
    parse(asked.replace("my recipe", "my-recipe"))
    assert read(runner["GITHUB_OUTPUT"]) == f"run={folder}\n"


@pytest.mark.parametrize(
    ("code", "no_report", "expected"), [(0, "", 0), (1, "", 0), (1, "yes", 1), (2, "yes", 2), (3, "", 3)]
)
def test_only_a_run_with_a_report_goes_on_to_the_gate(
    runner: dict[str, str], code: int, no_report: str, expected: int
) -> None:
    said = carry_out("run", runner, RECIPE="r.yaml", RUN_CODE=str(code), NO_REPORT=no_report)
    assert said.code == expected
    assert ("run=" in read(runner["GITHUB_OUTPUT"])) == (expected == 0)


def test_a_finished_run_is_taken_as_it_is_and_one_of_the_two_must_be_named(runner: dict[str, str]) -> None:
    assert carry_out("run", runner, RUN="runs/ci").code == 0
    assert read(runner["GITHUB_OUTPUT"]) == "run=runs/ci\n" and read(runner["ASKED"]) == ""
    assert carry_out("run", runner).code == 2
    assert carry_out("run", runner, RUN="runs/ci", RECIPE="r.yaml").code == 2


@pytest.mark.parametrize("code", [0, 1, 4])
def test_the_gate_is_asked_for_what_was_given_and_ends_the_job(runner: dict[str, str], code: int) -> None:
    given = {"MIN_SPEEDUP": "1.3", "MAX_DROP": "0.02", "MAX_P50_MS": "20", "BASELINE": "b.json", "MAX_SLOWDOWN": "0.1"}
    said = carry_out("gate", runner, RUN="runs/ci", GATE_CODE=str(code), **given)
    assert said.code == code
    asked = read(runner["ASKED"]).strip()
    start = "skillprune gate runs/ci --min-speedup 1.3 --max-drop 0.02 --max-p50-ms 20 --baseline b.json "
    assert asked.startswith(f"{start}--max-slowdown 0.1 --markdown ")
    parse(asked)
    assert read(runner["GITHUB_STEP_SUMMARY"]) == "## Gate\n"
    assert read(runner["GITHUB_OUTPUT"]) == f"exit-code={code}\n"


def test_what_was_not_given_is_not_asked(runner: dict[str, str]) -> None:
    run = Path(runner["RUNNER_TEMP"], "run")
    run.mkdir()
    (run / "report.json").touch()
    assert carry_out("gate", runner, RUN=str(run)).code == 0
    asked = read(runner["ASKED"])
    assert [word for word in asked.split() if word.startswith("--m") or word == "--baseline"] == ["--markdown"]
    assert Path(runner["FOLDER"], "report.json").exists()


def test_every_use_has_a_folder_of_its_own(runner: dict[str, str]) -> None:
    for _ in range(2):
        assert carry_out("place", runner).code == 0
    folders = re.findall(r"folder=(.+)", read(runner["GITHUB_OUTPUT"]))
    assert len(set(folders)) == 2 and all(Path(folder).is_dir() for folder in folders)

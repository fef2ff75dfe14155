"""Every family from plan to checkpoint and back; and `verified.json` says what is checked, no more and no less."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from runs import ROOT, invoke
from safetensors.torch import load_file, save_file
from zoo import ZOO
from zoo_checks import CHECKS, LINE, check_read_back, known, output_of, plan_of, prepare, read_back, says_widths, write

import skillprune
from skillprune.checkpoint import Attention, load_model
from skillprune.families import FAMILIES
from skillprune.recipe import Form

VERIFIED: dict[str, dict[str, list[str]]] = json.loads(
    (ROOT / "skillprune" / "families" / "verified.json").read_text(encoding="utf-8")
)
CASES = [(check, name) for check in CHECKS for name in known() if CHECKS[check].applies(ZOO[name])]

LOADS_OTHERWISE = {
    "5.x": {"biogpt", "cohere", "persimmon", "mt5", "qwen3_moe", "gemma3_text"},
    "4.57": {"biogpt"},
}
"""Types that transformers itself reads differently from a checkpoint of the line named, in the other line."""


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every specimen that a selected test is about, written in every form and read in fresh processes."""
    cases = (getattr(item, "callspec", None) for item in request.session.items if item.path == request.path)
    names = {case.params["name"] for case in cases if case is not None and "name" in case.params}
    path = tmp_path_factory.mktemp("zoo")
    prepare(sorted(names), path)
    return path


@pytest.mark.parametrize(("check", "name"), CASES)
def test_the_family(check: str, name: str, folder: Path) -> None:
    CHECKS[check].run(ZOO[name], folder)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in known() if ZOO[name].reads in ("text", "text to text")])
def test_runs_can_load_it_whatever_attention_it_has(name: str, attention: Attention, folder: Path) -> None:
    head, directory = ZOO[name].head, folder / "per-layer" / name
    task = "seq2seq" if ZOO[name].reads == "text to text" else "language-modeling"
    task = "text-classification" if head.endswith("ForSequenceClassification") else task
    model = load_model(directory / "model", dtype="float32", task_type=task, attention=attention)
    made = load_file(directory / "made.safetensors")["head"]
    torch.testing.assert_close(output_of(model, ZOO[name]), made, atol=1e-3, rtol=1e-3)


def test_what_is_verified_is_said_of_exactly_the_families_there_are() -> None:
    assert VERIFIED.keys() == FAMILIES.keys()


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_what_is_said_to_be_verified_is_what_these_tests_check(model_type: str) -> None:
    cases = [(check, name) for check, name in CASES if ZOO[name].model_type == model_type]
    checked = [check for check in CHECKS if check in {check for check, _ in cases}]
    assert VERIFIED[model_type].get(LINE, []) == checked, "run python docs/verify_families.py"


def test_every_family_has_a_specimen_and_every_specimen_a_family() -> None:
    assert {specimen.model_type for specimen in ZOO.values()} == FAMILIES.keys()


def test_a_wrong_answer_and_a_failed_load_are_found(tmp_path: Path) -> None:
    directory = tmp_path / "per-layer" / "bert"
    write(ZOO["bert"], "per-layer", directory)
    read_back([directory], plugin=True)
    check_read_back(directory)
    read_back([directory], plugin=False, answer="without")
    with pytest.raises(AssertionError, match="mismatched|size mismatch"):
        check_read_back(directory, "without")
    found = load_file(directory / "found.safetensors")
    save_file({**found, "head": found["head"] + 1e-3}, directory / "found.safetensors")
    with pytest.raises(AssertionError, match="not close"):
        check_read_back(directory)


@pytest.mark.parametrize("form", ["uniform", "padded", "per-layer"])
def test_the_other_line_of_transformers_reads_what_this_one_wrote(form: Form, tmp_path: Path) -> None:
    other = os.environ.get("SKILLPRUNE_OTHER_PYTHON")
    if not other:
        pytest.skip("SKILLPRUNE_OTHER_PYTHON names no interpreter with the other line of transformers")
    odd = LOADS_OTHERWISE[LINE]
    types = {model_type for model_type, lines in VERIFIED.items() if len(lines) == 2} - odd
    names = [name for name in known() if ZOO[name].model_type in types]
    names = [name for name in names if form != "uniform" or says_widths(ZOO[name])]
    assert len(names) > 50
    for name in names:
        write(ZOO[name], form, tmp_path / form / name)
    read_back([tmp_path / form / name for name in names], plugin=form == "per-layer", python=other)
    failed = {}
    for name in names:
        try:
            check_read_back(tmp_path / form / name, atol=1e-3)  # the lines do not round alike
        except AssertionError as wrong:
            failed[name] = str(wrong)
    assert failed == {}


def test_the_command_prints_the_table() -> None:
    said = invoke("families")
    assert said.code == 0, said.err
    rows = {line.split()[0]: " ".join(line.split()) for line in said.out.splitlines() if line[:1].strip()}
    assert FAMILIES.keys() <= rows.keys()
    assert rows["bert"].startswith("bert encoder plain intermediate_size")
    assert rows["phi3"].startswith("phi3 decoder fused intermediate_size")
    assert rows["albert"].startswith("albert encoder plain shared intermediate_size")
    assert "plain, plain parallel" in rows["falcon"]
    assert f"{LINE} ({len(VERIFIED['bert'][LINE])})" in rows["bert"]
    assert all(check in said.text for check in CHECKS)
    bart = said.out[said.out.index("\nbart ") :].splitlines()[1:3]
    assert ["decoder", "plain", "decoder_ffn_dim"] == bart[1].split()[:3]


def test_the_command_speaks_json_and_python_says_the_same() -> None:
    found = json.loads(invoke("families", "--json").out)
    assert [entry["model_type"] for entry in found] == sorted(FAMILIES)
    assert [family.model_type for family in skillprune.list_families()] == sorted(FAMILIES)
    assert {entry["model_type"]: entry["verified"] for entry in found} == VERIFIED
    (bloom,) = (entry for entry in found if entry["model_type"] == "bloom")
    assert bloom["stacks"] == [{"name": "decoder", "kinds": ["plain"], "width_attribute": None}]


def test_specimens_are_cut_unevenly() -> None:
    """Otherwise half of the above would check nothing."""
    for name in known():
        for layers in plan_of(ZOO[name]).keep.values():
            assert ZOO[name].shared or len(set(map(len, layers))) > 1

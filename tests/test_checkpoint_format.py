"""`checkpoint.format` in recipes: what is written, what the record and the report say of it, and pruning again."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from runs import KEPT, LAYERS, WIDTH, invoke, read_json, set_up, write_recipe
from transformers import AutoModelForSequenceClassification

from skillprune.checkpoint import load_stored
from skillprune.families import find_ffns
from skillprune.recipe import load_recipe

UNEVEN = {"keep_ratio": KEPT / WIDTH, "round_to": 8, "keep_layers": [0]}
WIDTHS = [WIDTH, KEPT, KEPT]


def carried_out(folder: Path, command: str = "prune", **sections: Any) -> Path:
    recipe = set_up(folder, **sections)
    said = invoke(command, recipe, "--output", folder / "out")
    assert said.code == 0, said.err
    return folder / "out"


def widths_at(directory: Path) -> list[int]:
    return [ffn.width for ffn in find_ffns(load_stored(directory)[0])]


@pytest.mark.parametrize(
    ("asked", "plan", "written"),
    [
        ("auto", {"keep_ratio": KEPT / WIDTH, "round_to": 8}, "uniform"),
        ("auto", UNEVEN, "per-layer"),
        ("auto_map", UNEVEN, "auto_map"),
        ("per-layer", {"keep_ratio": KEPT / WIDTH, "round_to": 8}, "per-layer"),
    ],
)
def test_a_run_writes_the_form_that_is_asked_for(
    tmp_path: Path, asked: str, plan: dict[str, Any], written: str
) -> None:
    output = carried_out(tmp_path, plan=plan, checkpoint={"format": asked})
    assert read_json(output / "model" / "skillprune.json")["form"] == written
    assert widths_at(output / "model") == (WIDTHS if "keep_layers" in plan else [KEPT] * LAYERS)
    assert ("quantization_config" in read_json(output / "model" / "config.json")) == (written == "per-layer")


def test_a_padded_checkpoint_is_a_stock_one_and_the_onnx_file_is_not_padded(tmp_path: Path) -> None:
    output = carried_out(tmp_path, "run", plan=UNEVEN, checkpoint={"format": "padded"})
    loaded = AutoModelForSequenceClassification.from_pretrained(output / "model", dtype=torch.float32)
    assert [ffn.width for ffn in find_ffns(loaded)] == [WIDTH] * LAYERS
    assert widths_at(output / "model") == WIDTHS
    shapes = [tuple(each.dims) for each in onnx.load(output / "onnx" / "fp32" / "model.onnx").graph.initializer]
    assert len([shape for shape in shapes if KEPT in shape]) >= 2 * (LAYERS - 1)
    report = read_json(output / "report.json")
    assert report["model"]["checkpoint_format"] == "padded"
    assert report["quality"]["test"]["pruned"] == pytest.approx(report["quality"]["test"]["onnx"]["fp32"])
    for page in (output / "report.md", output / "model" / "README.md"):
        assert "import skillprune" not in page.read_text(encoding="utf-8")


def test_the_record_says_how_the_model_was_pruned_and_a_pruned_model_can_be_pruned_again(tmp_path: Path) -> None:
    first = carried_out(tmp_path, plan=UNEVEN, checkpoint={"format": "padded"})
    again = {"keep_ratio": 0.5, "round_to": 4}
    recipe = write_recipe(tmp_path, "again", model=str(first / "model"), plan=again, seed=3)
    said = invoke("prune", recipe, "--output", tmp_path / "again")
    assert said.code == 0, said.err
    one, two = read_json(tmp_path / "again" / "model" / "skillprune.json")["history"]
    assert [one] == read_json(first / "model" / "skillprune.json")["history"]
    assert one["width_before"] == {"encoder": [WIDTH] * LAYERS}
    assert one["width_after"] == two["width_before"] == {"encoder": WIDTHS}
    assert two["width_after"] == {"encoder": [WIDTH // 2, KEPT // 2, KEPT // 2]}
    assert widths_at(tmp_path / "again" / "model") == two["width_after"]["encoder"]
    assert (one["criterion"], one["source"], one["seed"], two["seed"]) == ("wanda", "model", 0, 3)
    assert two["budget"]["keep_ratio"] == 0.5
    assert one["skillprune_version"] == version("skillprune")
    assert one["fingerprint"] != two["fingerprint"]
    assert str(tmp_path) not in json.dumps([one, two])


@pytest.mark.parametrize(
    ("plan", "wanted"), [({"keep_layers": [0]}, "plan.keep_layers"), ({"allocation": "global"}, "allocation: global")]
)
def test_uniform_is_refused_where_the_plan_makes_layers_differ(
    tmp_path: Path, plan: dict[str, Any], wanted: str
) -> None:
    recipe = set_up(tmp_path, plan={"keep_ratio": 0.5, **plan}, checkpoint={"format": "uniform"})
    said = invoke("prune", recipe, "--output", tmp_path / "out")
    assert said.code == 2 and wanted in said.text and "per-layer, padded or auto_map" in said.text
    assert f"{recipe}:" in said.err and not (tmp_path / "out").exists()
    plain = write_recipe(tmp_path, plan={"keep_ratio": 0.5}, checkpoint={"format": "uniform"})
    assert load_recipe(plain).checkpoint.format == "uniform"

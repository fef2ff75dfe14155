"""A real run of a tiny model: what lies in the run directory, and whether every number in the report is true."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from runs import (
    KEPT,
    LABELS,
    LAYERS,
    ROOT,
    SHAPES,
    SIZES,
    WIDTH,
    Finished,
    Output,
    environment,
    finished,
    invoke,
    make_model,
    make_tokenizer,
    read_csv,
    read_json,
    set_up,
)
from safetensors import safe_open
from safetensors.numpy import load_file

import skillprune

UP, DOWN = "bert.encoder.layer.{}.intermediate.dense", "bert.encoder.layer.{}.output.dense"


@pytest.fixture(scope="module")
def done() -> Finished:
    return finished()


@pytest.fixture(scope="module")
def report(done: Finished) -> dict[str, Any]:
    return done.report


def predictions(path: Path) -> tuple[list[int], list[int]]:
    """Right and answered classes of an ONNX file on the test sentences, one sentence at a time and without padding."""
    tokenizer = make_tokenizer()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}
    rows = read_csv(finished().recipe.parent / "data" / "test.csv")
    answers = []
    for text, _ in rows:
        encoded = tokenizer(text, truncation=True, max_length=32, return_tensors="np")
        (logits,) = session.run(["logits"], {name: encoded[name].astype(np.int64) for name in names})
        answers.append(int(logits[0].argmax()))
    return [LABELS.index(label) for _, label in rows], answers


def share(labels: list[int], answers: list[int]) -> float:
    return sum(label == answer for label, answer in zip(labels, answers, strict=True)) / len(labels)


def weights(output: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    return load_file(output / "model" / "model.safetensors")


def initialiser_sizes(path: Path) -> Counter[int]:
    """How many initialisers of an ONNX file have a dimension of a size; FFN widths occur three times a layer."""
    tensors = onnx.load(str(path)).graph.initializer
    return Counter(size for tensor in tensors for size in set(tensor.dims))


def kept_widths(output: Path) -> tuple[int, ...]:
    return tuple(map(len, read_json(output / "plan.json")["keep"]["encoder"]))


def test_the_run_directory_has_every_file_of_the_contract(done: Finished) -> None:
    files = {
        "recipe.yaml",
        "scores.safetensors",
        "plan.json",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/README.md",
        "model/skillprune.json",
        "onnx/fp32/model.onnx",
        "onnx/dense/fp32/model.onnx",
        "report.json",
        "report.md",
    }
    found = {path.relative_to(done.output).as_posix() for path in done.output.rglob("*") if path.is_file()}
    assert files <= found
    strangers = {
        name for name in found - files if not name.startswith((".stages/", "model/tokenizer", "model/special"))
    }
    assert not strangers
    assert all((done.output / name).stat().st_size > 0 for name in files)


def test_recipe_yaml_is_the_whole_recipe(done: Finished) -> None:
    asked = skillprune.load_recipe(done.recipe)
    assert skillprune.load_recipe(done.output / "recipe.yaml") == asked
    written = yaml.safe_load((done.output / "recipe.yaml").read_text(encoding="utf-8"))
    assert written["repair"] == {
        "method": "least_squares",
        "ridge": None,
        "sequential": True,
        "attention": True,
    }  # a default, which the recipe did not say
    assert written["model"]["name"] == str(done.recipe.parent / "model")


def test_report_json_fits_the_published_schema(report: dict[str, Any]) -> None:
    schema = read_json(ROOT / "docs" / "report.schema.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(report, schema, format_checker=jsonschema.FormatChecker())
    wanted = (
        "schema_version skillprune_version created seed environment model task scoring quality artifacts best latency"
    )
    assert {*wanted.split(), "controls", "repair", "stages", "verdict"} <= report.keys()


def test_the_report_reads_back_equal_to_what_run_returned(done: Finished) -> None:
    returned = skillprune.run(skillprune.load_recipe(done.recipe), done.output)
    assert skillprune.read_report(done.output) == returned


def test_widths_agree_everywhere(done: Finished, report: dict[str, Any]) -> None:
    assert report["model"]["stacks"] == [
        {"name": "encoder", "width_before": [WIDTH] * LAYERS, "width_after": [KEPT] * LAYERS}
    ]
    plan = read_json(done.output / "plan.json")
    assert plan["width_before"]["encoder"] == [WIDTH] * LAYERS
    assert kept_widths(done.output) == (KEPT,) * LAYERS
    assert read_json(done.output / "model" / "config.json")["intermediate_size"] == KEPT
    scores = {score.criterion: score.widths for score in skillprune.load_scores(done.output / "scores.safetensors")}
    assert scores == dict.fromkeys(("wanda", "predictivity"), {"encoder": (WIDTH,) * LAYERS})
    found = weights(done.output)
    for layer in range(LAYERS):
        assert found[f"{UP.format(layer)}.weight"].shape[0] == found[f"{UP.format(layer)}.bias"].shape[0] == KEPT
        assert found[f"{DOWN.format(layer)}.weight"].shape[1] == KEPT
    pruned = initialiser_sizes(done.output / "onnx" / "fp32" / "model.onnx")
    dense = initialiser_sizes(done.output / "onnx" / "dense" / "fp32" / "model.onnx")
    assert (pruned[KEPT], pruned[WIDTH]) == (dense[WIDTH], dense[KEPT]) == (3 * LAYERS, 0)


def test_the_plan_keeps_the_best_neurons_of_the_scores_and_the_checkpoint_has_their_weights(done: Finished) -> None:
    with safe_open(str(done.output / "scores.safetensors"), framework="numpy") as file:
        scores = [file.get_tensor(f"wanda/encoder/{layer}") for layer in range(LAYERS)]
    dense, pruned = make_model().state_dict(), weights(done.output)
    keep = read_json(done.output / "plan.json")["keep"]["encoder"]
    for layer, (kept, vector) in enumerate(zip(keep, scores, strict=True)):
        assert kept == sorted(np.argsort(-vector, kind="stable")[:KEPT].tolist())
        whole, rows = dense[f"{UP.format(layer)}.weight"].numpy(), pruned[f"{UP.format(layer)}.weight"]
        if layer == 0:  # nothing below has changed
            np.testing.assert_array_equal(rows, whole[kept])
            np.testing.assert_array_equal(pruned[f"{UP.format(layer)}.bias"], dense[f"{UP.format(layer)}.bias"][kept])
        # Above, repair has turned all rows a little; each is still nearest to its own.
        nearest = np.argmin(np.linalg.norm(rows[:, None] - whole[None], axis=2), axis=1)
        assert nearest.tolist() == kept


def test_parameters_are_those_of_the_saved_checkpoint(done: Finished, report: dict[str, Any]) -> None:
    found, model = weights(done.output), report["model"]
    assert model["parameters_after"] == sum(array.size for array in found.values())
    assert model["parameters_before"] == sum(parameter.numel() for parameter in make_model().parameters())
    ffn = [name for layer in range(LAYERS) for path in (UP, DOWN) for name in found if path.format(layer) in name]
    ffn = [name for name in ffn if "attention" not in name]
    assert len(ffn) == 4 * LAYERS
    assert model["ffn_parameters_after"] == sum(found[name].size for name in ffn)


def test_macs_are_those_of_the_matrix_products(report: dict[str, Any]) -> None:
    """Per layer four projections, scores and mixture of attention, and the FFN; then pooler and classifier once."""
    tokens, hidden = report["model"]["macs_sequence"], 16
    for when, width in (("before", WIDTH), ("after", KEPT)):
        layer = tokens * (4 * hidden**2 + 2 * tokens * hidden + 2 * hidden * width)
        assert report["model"][f"macs_{when}"] == LAYERS * layer + hidden**2 + hidden * len(LABELS)


def test_the_accuracies_are_those_of_the_files(done: Finished, report: dict[str, Any]) -> None:
    labels, dense = predictions(done.output / "onnx" / "dense" / "fp32" / "model.onnx")
    _, shipped = predictions(done.output / "onnx" / "fp32" / "model.onnx")
    assert len(set(dense)) == len(set(shipped)) == 2 and dense != shipped  # or equal accuracies would prove little
    quality = report["quality"]
    assert quality["test"]["dense"] == pytest.approx(share(labels, dense))
    assert quality["test"]["onnx"] == {"fp32": pytest.approx(share(labels, shipped))}
    assert quality["test"]["pruned"] == pytest.approx(share(labels, shipped))
    assert quality["difference"] == pytest.approx(share(labels, shipped) - share(labels, dense))
    assert quality["agreement"] == pytest.approx(share(dense, shipped))
    assert quality["ci_low"] <= quality["difference"] <= quality["ci_high"]
    assert quality["labels"] == {name: labels.count(number) for number, name in enumerate(LABELS)}


def test_mcnemar_is_the_binomial_test_on_the_disagreements(done: Finished, report: dict[str, Any]) -> None:
    labels, dense = predictions(done.output / "onnx" / "dense" / "fp32" / "model.onnx")
    _, shipped = predictions(done.output / "onnx" / "fp32" / "model.onnx")
    lost = sum(a == y != b for y, a, b in zip(labels, dense, shipped, strict=True))
    won = sum(b == y != a for y, a, b in zip(labels, dense, shipped, strict=True))
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1)) / 2 ** (lost + won)
    assert report["quality"]["p_value"] == pytest.approx(min(1.0, 2 * tail))


def test_files_are_as_large_and_as_exact_as_the_report_says(done: Finished, report: dict[str, Any]) -> None:
    (artifact,) = report["artifacts"]
    path = done.output / artifact["path"]
    dense = done.output / "onnx" / "dense" / "fp32" / "model.onnx"
    assert path == done.output / "onnx" / "fp32" / "model.onnx"
    assert (artifact["bytes"], artifact["dense_bytes"]) == (path.stat().st_size, dense.stat().st_size)
    assert artifact["bytes"] < artifact["dense_bytes"]
    assert onnx.load(str(path)).opset_import[0].version == artifact["opset"]
    assert 0 <= artifact["max_abs_diff"] <= artifact["tolerance"] < 0.1
    assert report["best"]["variant"] == artifact["variant"] == "fp32"


def test_the_onnx_file_computes_what_the_checkpoint_computes(done: Finished) -> None:
    """At shapes that neither the trace nor the run's own check has seen."""
    model = skillprune.checkpoint.load_model(done.output / "model", dtype="float32")
    session = onnxruntime.InferenceSession(str(done.output / "onnx" / "fp32" / "model.onnx"))
    rng = np.random.default_rng(5)
    for shape in ((1, 3), (5, 41)):
        arrays = {each.name: np.ones(shape, np.int64) for each in session.get_inputs()}
        arrays["input_ids"] = rng.integers(3, 60, shape)
        if "token_type_ids" in arrays:
            arrays["token_type_ids"] = rng.integers(0, 2, shape)
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(array) for name, array in arrays.items()}).logits.numpy()
        np.testing.assert_allclose(session.run(["logits"], arrays)[0], expected, rtol=1e-4, atol=1e-4)


def test_every_shape_is_timed_for_dense_and_pruned_and_has_a_control(report: dict[str, Any]) -> None:
    rows = report["latency"]
    assert [(row["subject"], (row["batch"], row["sequence"])) for row in rows] == [
        (subject, shape) for shape in SHAPES for subject in ("dense", "pruned")
    ]
    for row in rows:
        assert (row["runtime"], row["provider"], row["provider_asked"]) == ("onnxruntime", "cpu", "cpu")
        assert (row["variant"], row["threads"]) == ("fp32", 1)
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["throughput"] == pytest.approx(1000 * row["batch"] / row["p50_ms"])
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert row["subject"] == "pruned" or row["speedup"] == row["speedup_low"] == row["speedup_high"] == 1.0
    assert [(control["batch"], control["sequence"]) for control in report["controls"]] == list(SHAPES)
    for control in report["controls"]:
        assert control["low"] <= control["ratio"] <= control["high"]
        rounds = {
            row["rounds"] for row in rows if (row["batch"], row["sequence"]) == (control["batch"], control["sequence"])
        }
        assert rounds == {control["rounds"]} == {12 * 2 ** control["retries"]}  # ten, evenly over six openings
        assert control["openings"] == 6 * 2 ** control["retries"]


def test_split_sizes_labels_and_scoring_are_those_of_the_recipe(report: dict[str, Any]) -> None:
    task, scoring = report["task"], report["scoring"]
    assert task["splits"] == {"calibration": 24, "validation": SIZES["validation"], "test": SIZES["test"]}
    assert task["labels"] == list(LABELS)
    assert (scoring["criterion"], scoring["examples"]) == ("wanda", 24)
    assert scoring["best_per_layer"].keys() == {"wanda", "predictivity"}


def test_repair_reduces_the_error_of_every_layer(report: dict[str, Any]) -> None:
    layers = report["repair"]["encoder"]
    assert [row["layer"] for row in layers] == list(range(LAYERS))
    assert all(0 < row["error_after"] < row["error_before"] for row in layers)
    assert report["repair_method"] == "least_squares"


def test_the_views_say_the_same_as_the_json(done: Finished, report: dict[str, Any]) -> None:
    page = (done.output / "report.md").read_text(encoding="utf-8")
    card = (done.output / "model" / "README.md").read_text(encoding="utf-8")
    shipped = f"{100 * report['quality']['test']['onnx']['fp32']:.1f} %"
    for text in (page, card):
        assert shipped in text
    assert f"from {WIDTH} to {KEPT} neurons" in page
    assert "import skillprune" not in card  # equal widths make a stock checkpoint


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Output]:
    """Layer 0 untouched, demands that cannot be met, and another seed; through the command line."""
    folder = tmp_path_factory.mktemp("uneven")
    recipe = set_up(
        folder,
        plan={"keep_ratio": KEPT / WIDTH, "round_to": 8, "keep_layers": [0]},
        repair={"method": "zero"},
        demand={"min_speedup": 1000.0, "max_drop": 1.0},
    )
    said = invoke("run", recipe, "--output", folder / "out")
    return Finished(recipe, folder / "out"), said


def test_an_unmet_demand_ends_with_code_1_and_leaves_everything(uneven: tuple[Finished, Output]) -> None:
    done, said = uneven
    assert said.code == 1, said.err
    verdict = done.report["verdict"]
    assert not verdict["ok"]
    missed = [reason for reason in verdict["reasons"] if "1000" in reason]
    assert [re.search(r"\d+ x \d+", reason)[0] for reason in missed] == ["1 x 8", "2 x 16"]  # type: ignore[index]
    assert all(" ".join(reason.split()) in said.text.replace("\\", "") for reason in missed)
    assert verdict["demand"] == {"min_speedup": 1000.0, "max_drop": 1.0}
    for name in ("model/model.safetensors", "onnx/fp32/model.onnx", "report.md", "plan.json"):
        assert (done.output / name).is_file()


def test_uneven_widths_are_named_in_the_config_and_agree_everywhere(uneven: tuple[Finished, Output]) -> None:
    output, widths = uneven[0].output, [WIDTH, KEPT, KEPT]
    config = read_json(output / "model" / "config.json")["quantization_config"]
    assert config["widths"] == {"encoder": widths}
    assert uneven[0].report["model"]["stacks"][0]["width_after"] == widths
    assert kept_widths(output) == tuple(widths)
    found = weights(output)
    assert [found[f"{UP.format(layer)}.weight"].shape[0] for layer in range(LAYERS)] == widths
    sizes = initialiser_sizes(output / "onnx" / "fp32" / "model.onnx")
    assert (sizes[WIDTH], sizes[KEPT]) == (3, 6)
    assert "import skillprune" in (output / "model" / "README.md").read_text(encoding="utf-8")
    assert skillprune.read_report(output).model.stacks[0].width_after == tuple(widths)


def test_a_fresh_process_loads_uneven_widths_after_import_skillprune(uneven: tuple[Finished, Output]) -> None:
    script = (
        "import sys, skillprune\n"
        "from transformers import AutoModelForSequenceClassification\n"
        "model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])\n"
        "print(*(layer.intermediate.dense.out_features for layer in model.bert.encoder.layer))\n"
        "print(sum(parameter.numel() for parameter in model.parameters()))\n"
    )
    command = [sys.executable, "-c", script, str(uneven[0].output / "model")]
    said = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    parameters = uneven[0].report["model"]["parameters_after"]
    assert said.stdout.split() == [str(WIDTH), str(KEPT), str(KEPT), str(parameters)]

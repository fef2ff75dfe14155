"""Whole runs that export models of every kind of task but classifiers: what is written, judged, timed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import invoke, make_tokenizer, read_json
from test_language_runs import MODELS, kinds, perplexity_of, set_up
from tiny import VOCABULARY
from zoo import ZOO

from skillprune.benchmark import open_writer
from skillprune.generation import generate_greedy

QUICK: dict[str, Any] = {
    "export": {
        "variants": ["fp32", "int8-dynamic", "fp16"],
        "backends": "torchscript",
        "fusion": False,
        "max_drop": 100.0,
    },
    "benchmark": {"shapes": [[2, 6]], "threads": 1, "rounds": 10},
}
ONE_GRAPH = ("masked-lm",)


@pytest.fixture(scope="module", params=list(MODELS))
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """A kind of task, and a run of it with its report."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = set_up(folder, request.param, **QUICK)
    found = invoke("run", recipe, "--output", folder / "out")
    report = read_json(folder / "out" / "report.json")
    # A tiny model is neither smaller nor faster in int8, nor faster in fp16, which is told, as they were asked for.
    reasons = [reason for reason in report["verdict"]["reasons"] if "too busy" not in reason]
    assert reasons and all("int8-dynamic" in reason or "fp16" in reason for reason in reasons), reasons
    assert found.code == 1, found.text
    return request.param, folder, report


def test_files_answer_the_test_split_like_the_checkpoint(done: tuple[str, Path, dict[str, Any]]) -> None:
    kind, folder, report = done
    test = report["quality"]["test"]
    assert test["onnx"].keys() == {"fp32", "int8-dynamic", "fp16"}
    assert test["onnx"]["fp32"] == pytest.approx(test["pruned"], rel=1e-5)
    assert test["pruned"] != pytest.approx(test["dense"], rel=1e-5) or report["quality"]["metric"] != "perplexity"
    if kind == "language-modeling":
        expected = perplexity_of(folder / "out" / "model", folder / "data" / "test.csv")
        assert test["onnx"]["fp32"] == pytest.approx(expected, rel=1e-5)
        assert test["onnx"]["int8-dynamic"] != test["onnx"]["fp32"]
    artifacts = {each["variant"]: each for each in report["artifacts"]}
    assert artifacts["fp32"]["bytes"] < artifacts["fp32"]["dense_bytes"]
    assert artifacts["int8-dynamic"]["max_abs_diff"] > artifacts["fp32"]["max_abs_diff"]
    assert 0 < artifacts["fp16"]["max_abs_diff"] < 0.05
    assert test["onnx"]["fp16"] == pytest.approx(test["pruned"], rel=0.05)


def test_what_writes_is_timed_by_token(done: tuple[str, Path, dict[str, Any]]) -> None:
    kind, folder, report = done
    phases = ["forward"] if kind in ONE_GRAPH else ["first token", "next token"]
    timed = [(row["subject"], row["variant"], row["phase"]) for row in report["latency"]]
    columns = [("dense", "fp32"), ("pruned", "fp32"), ("pruned", "int8-dynamic"), ("pruned", "fp16")]
    assert timed == [(*column, phase) for phase in phases for column in columns]
    assert [control["phase"] for control in report["controls"]] == phases
    for row in report["latency"]:
        assert row["throughput"] == pytest.approx(1000 * row["batch"] / row["p50_ms"])
        assert row["peak_rss_mib"] > 10
    page = (folder / "out" / "report.md").read_text(encoding="utf-8")
    assert ("2 x 6, next token" in page) == (kind not in ONE_GRAPH)
    judged = invoke("gate", folder / "out", "--min-speedup", "0.001")
    if all(control["ok"] for control in report["controls"]):
        assert judged.text.count("speed-up at 2 x 6") == len(phases), judged.text


def test_a_profile_tells_what_runs_in_each_phase(done: tuple[str, Path, dict[str, Any]]) -> None:
    """With `seq2seq` the encoder reads before the first token, and has nothing to do with any other."""
    kind, _, report = done
    parts: dict[str, set[str]] = {}
    for row in report["profile"]:
        parts.setdefault(row["phase"], set()).add(row["part"])
    blocks = {"layer 0 attention", "layer 0 ffn", "layer 1 attention", "layer 1 ffn"}
    above = {f"decoder {block}" for block in blocks} if kind == "seq2seq" else blocks
    expected = {"forward": blocks} if kind in ONE_GRAPH else {"first token": blocks | above, "next token": above}
    ends = ("attention", "ffn")
    assert {phase: {name for name in names if name.endswith(ends)} for phase, names in parts.items()} == expected
    for phase in parts:
        for subject in ("dense", "pruned"):
            rows = [row for row in report["profile"] if (row["phase"], row["subject"]) == (phase, subject)]
            assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_what_is_exported_writes_what_transformers_writes(done: tuple[str, Path, dict[str, Any]]) -> None:
    kind, folder, _ = done
    if kind in ONE_GRAPH:
        pytest.skip("writes nothing")
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (2, 6))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found = generate_greedy(open_writer(folder / "out" / "onnx" / "fp32", threads=1), feeds, 5)
    model = MODELS[kind][1].from_pretrained(folder / "out" / "model")
    given = {name: torch.from_numpy(array) for name, array in feeds.items()}
    whole = model.generate(**given, max_new_tokens=5, do_sample=False, num_beams=1).numpy()
    np.testing.assert_array_equal(found, whole[:, 1 if kind == "seq2seq" else ids.shape[1] :])


def test_a_second_run_does_nothing_again(done: tuple[str, Path, dict[str, Any]]) -> None:
    _, folder, report = done
    assert [stage["name"] for stage in report["stages"]][-4:] == ["export", "bench", "profile", "test"]
    invoke("run", folder / "recipe.yaml", "--output", folder / "out")
    assert all(stage["cached"] for stage in read_json(folder / "out" / "report.json")["stages"])


@pytest.mark.parametrize(
    ("kind", "sections", "words"),
    [
        ("language-modeling", {"export": {"variants": ["int8-static"]}}, "choose int8-dynamic"),
        ("seq2seq", {"export": {"variants": "auto", "backends": "native"}}, "only torchscript exports"),
        ("seq2seq", {"export": {"variants": "auto", "opset": 18}}, "opset cannot be chosen"),
        ("causal-lm", {**QUICK, "benchmark": {"references": ["torch"]}}, "leave them out for causal-lm"),
        ("causal-lm", {**QUICK, "plan": {"speedup": 1.2}}, "models that say all at once"),
        ("masked-lm", {**QUICK, "benchmark": {"provider": "cuda"}}, "does not compute int8-dynamic"),
        ("masked-lm", {"plan": {"speedup": 1.2}}, "plan.speedup needs files to time"),
        ("seq2seq", {"demand": {"min_speedup": 1.2}}, "min_speedup needs ONNX files to time"),
    ],
)
def test_what_cannot_be_exported_so_is_refused(tmp_path: Path, kind: str, sections: dict[str, Any], words: str) -> None:
    refused = invoke("run", set_up(tmp_path, kind, **sections), "--output", tmp_path / "out")
    assert refused.code == 2 and words in refused.text, refused.text
    assert not (tmp_path / "out").exists()


def test_a_mixture_of_experts_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    recipe = set_up(tmp_path, "language-modeling", **QUICK)
    ZOO["mixtral"].model().save_pretrained(tmp_path / "model")
    refused = invoke("run", recipe, "--output", tmp_path / "out")
    assert refused.code == 2 and "sends tokens to experts" in refused.text, refused.text
    assert not (tmp_path / "out").exists()


def test_a_shape_needs_room_for_the_token_that_is_written(tmp_path: Path) -> None:
    limit = make_tokenizer().model_max_length
    benchmark = {"shapes": [[1, limit]], "threads": 1, "rounds": 10}
    recipe = set_up(tmp_path, "language-modeling", **(QUICK | {"benchmark": benchmark}))
    refused = invoke("run", recipe, "--output", tmp_path / "out")
    assert refused.code == 2 and f"at most {limit} tokens, 1 of which is written" in refused.text, refused.text


def test_what_would_be_written_otherwise_is_refused(tmp_path: Path) -> None:
    recipe = set_up(tmp_path, "seq2seq", **QUICK)
    config = tmp_path / "model" / "generation_config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "no_repeat_ngram_size": 3, "min_length": 0, "repetition_penalty": 1.0}))
    refused = invoke("run", recipe, "--output", tmp_path / "out")
    assert refused.code == 2 and "do not heed no_repeat_ngram_size of generation_config" in refused.text, refused.text
    assert invoke("run", recipe, "--set", "task.metric=loss", "--dry-run").code == 0


@kinds
def test_variants_are_none_unless_they_are_asked_for(tmp_path: Path, kind: str) -> None:
    recipe = set_up(tmp_path, kind)
    shown = invoke("validate", recipe)
    assert shown.code == 0 and "variants: []" in shown.text

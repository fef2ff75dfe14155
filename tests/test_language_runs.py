"""Whole runs of models that predict tokens: what is written, what the numbers mean, what is refused."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import SIZES, WORDS, invoke, make_tokenizer, read_json, tree, write_recipe
from tiny import tiny_bart, tiny_bert_masked_lm, tiny_llama
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer
from zoo import ZOO

from skillprune.families import find_ffns

WIDTH, KEPT = 32, 16
WORDS_OF = {"dull": WORDS[3], "bright": WORDS[4]}
MODELS: dict[str, Any] = {
    "language-modeling": (tiny_llama, AutoModelForCausalLM),
    "causal-lm": (tiny_llama, AutoModelForCausalLM),
    "masked-lm": (tiny_bert_masked_lm, AutoModelForMaskedLM),
    "seq2seq": (tiny_bart, AutoModelForSeq2SeqLM),
}
TASKS: dict[str, dict[str, Any]] = {
    "language-modeling": {"metric": "perplexity"},
    "causal-lm": {"label_words": WORDS_OF, "template": f"{{text}} {WORDS[5]}"},
    "masked-lm": {"label_words": WORDS_OF, "template": f"{{text}} {WORDS[5]} {{mask}}"},
    "seq2seq": {"target": "target", "metric": "exact_match"},
}
METRIC = {"language-modeling": "perplexity", "causal-lm": "accuracy", "masked-lm": "accuracy", "seq2seq": "exact_match"}

kinds = pytest.mark.parametrize("kind", list(MODELS))


def set_up(folder: Path, kind: str, **sections: Any) -> Path:
    """Model, data and recipe of a kind."""
    build, _ = MODELS[kind]
    build(layers=2).save_pretrained(folder / "model")
    tokenizer = make_tokenizer()
    if kind == "masked-lm":
        tokenizer.mask_token = WORDS[-1]
    tokenizer.save_pretrained(folder / "model")
    rng = random.Random(0)
    (folder / "data").mkdir()
    for split, size in SIZES.items():
        with (folder / "data" / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label", "target"])
            for number in range(size):
                text, target = (" ".join(rng.choices(WORDS[6:-1], k=rng.randint(3, 9))) for _ in range(2))
                rows.writerow([text, ("dull", "bright")[number % 2], target])
    task = {"type": kind, "data": {split: f"data/{split}.csv" for split in SIZES}, "text": "text", "max_length": 24}
    wanted = {
        "task": task | TASKS[kind],
        "scoring": {"criterion": "skill", "examples": 24, "batch_size": 8},
        "plan": {"keep_ratio": KEPT / WIDTH, "round_to": 8},
        "benchmark": None,
    }
    return write_recipe(folder, **(wanted | sections))


@kinds
def test_a_run_leaves_a_checkpoint_that_stock_transformers_loads_and_no_trace_of_onnx(
    tmp_path: Path, kind: str
) -> None:
    recipe = set_up(tmp_path, kind, recovery={"epochs": 1})
    done = invoke("run", recipe, "--output", tmp_path / "out")
    assert done.code == 0, done.text
    report = read_json(tmp_path / "out" / "report.json")
    assert (report["task"]["type"], report["quality"]["metric"]) == (kind, METRIC[kind])
    assert report["best"] is None
    assert report["artifacts"] == report["latency"] == report["controls"] == []
    assert report["quality"]["test"]["onnx"] == {} and report["quality"]["test"]["recovered"] is not None
    assert not (tmp_path / "out" / "onnx").exists()
    assert [stage["name"] for stage in report["stages"]] == ["score", "plan", "prune", "recover", "test"]
    loaded = MODELS[kind][1].from_pretrained(tmp_path / "out" / "model")
    assert {ffn.width for ffn in find_ffns(loaded) if ffn.stack.name != "decoder" or kind != "seq2seq"} == {KEPT}
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "model").vocab_size == make_tokenizer().vocab_size
    pages = (tmp_path / "out" / "report.md").read_text() + (tmp_path / "out" / "model" / "README.md").read_text()
    assert "ONNX" not in pages and "speed" not in pages.lower() and "MACs" in pages


@kinds
def test_the_same_recipe_goes_on_where_it_stopped(tmp_path: Path, kind: str) -> None:
    recipe = set_up(tmp_path, kind)
    assert invoke("prune", recipe, "--output", tmp_path / "out").code == 0
    before = tree(tmp_path / "out" / "model")
    assert invoke("run", recipe, "--output", tmp_path / "out").code == 0
    after = tree(tmp_path / "out" / "model")
    assert {name: content for name, content in after.items() if name != "README.md"} == before
    stages = read_json(tmp_path / "out" / "report.json")["stages"]
    assert {stage["name"]: stage["cached"] for stage in stages} == {
        "score": True,
        "plan": True,
        "prune": True,
        "test": False,
    }


@kinds
@pytest.mark.parametrize("command", ["export", "bench"])
def test_what_is_not_exported_is_neither_written_nor_timed(tmp_path: Path, kind: str, command: str) -> None:
    recipe = set_up(tmp_path, kind)
    refused = invoke(command, recipe, "--output", tmp_path / "out")
    assert refused.code == 2 and "no ONNX file is asked for" in refused.text, refused.text
    assert not (tmp_path / "out").exists()


def losses_of(directory: Path, texts: Path) -> np.ndarray:
    """Text by text, token by token: the sum of the losses and how many there are, ``(texts, 2)``."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory).eval(), make_tokenizer()
    found = []
    with texts.open(newline="") as file, torch.no_grad():
        for row in csv.DictReader(file):
            ids = tokenizer(row["text"], return_tensors="pt")["input_ids"]
            chances = model(input_ids=ids).logits[0].double().log_softmax(dim=-1)
            lost = [-float(chances[place, token]) for place, token in enumerate(ids[0, 1:].tolist())]
            found.append((sum(lost), len(lost)))
    return np.array(found)


def perplexity(losses: np.ndarray) -> float:
    total, count = losses.sum(axis=0)
    return math.exp(total / count)


def perplexity_of(directory: Path, texts: Path) -> float:
    return perplexity(losses_of(directory, texts))


def test_perplexity_is_what_a_loop_over_stock_models_finds(tmp_path: Path) -> None:
    recipe = set_up(tmp_path, "language-modeling")
    assert invoke("run", recipe, "--output", tmp_path / "out").code == 0
    quality = read_json(tmp_path / "out" / "report.json")["quality"]
    texts = tmp_path / "data" / "test.csv"
    dense, pruned = (perplexity_of(directory, texts) for directory in (tmp_path / "model", tmp_path / "out" / "model"))
    assert quality["test"]["dense"] == pytest.approx(dense, rel=1e-5)
    assert quality["test"]["pruned"] == pytest.approx(pruned, rel=1e-5)
    assert quality["difference"] == pytest.approx(pruned - dense, rel=1e-2)
    assert quality["drop"] == pytest.approx(pruned / dense - 1, rel=1e-2)
    assert quality["ci_low"] <= quality["difference"] <= quality["ci_high"]


def test_a_demand_on_perplexity_is_a_share_of_the_dense_models(tmp_path: Path) -> None:
    options: dict[str, Any] = {"plan": {"keep_ratio": 0.25, "round_to": 8}, "repair": {"method": "zero"}}
    scoring = {"criterion": "wanda", "examples": 24, "batch_size": 8}
    recipe = set_up(tmp_path, "language-modeling", scoring=scoring, **options)
    assert invoke("run", recipe, "--output", tmp_path / "out").code == 0
    drop = read_json(tmp_path / "out" / "report.json")["quality"]["drop"]
    assert drop > 1e-3
    for number, (factor, code) in enumerate(((1.01, 0), (0.99, 1))):
        limit = f"demand.max_drop={factor * drop}"
        judged = invoke("run", recipe, "--output", tmp_path / f"{number}", "--set", limit)
        assert judged.code == code, judged.text
    assert "perplexity is worse by" in judged.text


def test_the_smallest_model_within_a_floor_of_perplexity(tmp_path: Path) -> None:
    scoring = {"criterion": "wanda", "examples": 24, "batch_size": 8}
    recipe = set_up(tmp_path, "language-modeling", scoring=scoring)
    texts, lost = tmp_path / "data" / "validation.csv", {}
    dense, rng = losses_of(tmp_path / "model", texts), np.random.default_rng(0)
    draws = [rng.integers(len(dense), size=len(dense)) for _ in range(4000)]
    for width in (8, 16, 24):
        out = tmp_path / str(width)
        assert invoke("prune", recipe, "--output", out, "--set", f"plan.keep_ratio={width / WIDTH}").code == 0
        pruned = losses_of(out / "model", texts)
        margin = np.std([perplexity(pruned[rows]) / perplexity(dense[rows]) for rows in draws])
        lost[width] = perplexity(pruned) / perplexity(dense) - 1 + margin
    assert lost[24] < lost[16] < lost[8]
    floors = {16: (lost[16] + lost[8]) / 2, 24: (lost[24] + lost[16]) / 2}
    for width, floor in floors.items():
        out = tmp_path / f"within {floor}"
        options = ("--set", "plan.keep_ratio=null", "--set", f"plan.max_drop={floor}")
        planned = invoke("plan", recipe, "--output", out, *options)
        assert planned.code == 0, planned.text
        assert {len(kept) for kept in json.loads((out / "plan.json").read_text())["keep"]["decoder"]} == {width}


def test_a_form_that_no_config_has_a_place_for_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    recipe = set_up(tmp_path, "language-modeling", checkpoint={"format": "uniform"})
    ZOO["bloom"].model().save_pretrained(tmp_path / "model")
    refused = invoke("run", recipe, "--output", tmp_path / "out")
    assert refused.code == 2 and not (tmp_path / "out").exists()
    assert "no config of bloom can say how wide the layers of its decoder are" in refused.text


def test_the_tokenizer_of_targets_goes_with_the_checkpoint(tmp_path: Path) -> None:
    recipe = set_up(tmp_path, "seq2seq")
    other = make_tokenizer()
    other.save_pretrained(tmp_path / "model" / "writes")
    options = ["--set", "task.target_tokenizer=writes"]
    assert invoke("prune", recipe, "--output", tmp_path / "out", *options).code == 0
    pruned, converted = tmp_path / "out" / "model", tmp_path / "padded"
    assert invoke("convert", pruned, "--format", "padded", "--output", converted).code == 0
    for checkpoint in (pruned, converted):
        kept = AutoTokenizer.from_pretrained(checkpoint / "target_tokenizer")
        assert kept.get_vocab() == other.get_vocab()

"""Recipes: what is accepted, what is refused and where, overrides, paths, the round trip and the schema."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from skillprune import recipe as recipe_module
from skillprune.errors import Problem, RecipeError
from skillprune.recipe import (
    BuiltinData,
    FileData,
    HubData,
    HubSplit,
    Recipe,
    dump_recipe,
    load_recipe,
    recipe_schema,
)

CONTRACT = """\
model: model
task:
  type: text-classification
  data: {train: train.csv, validation: dev.csv, test: test.csv}
  text: text
  label: label
  template: null
scoring: {criterion: predictivity, examples: 2048, position: mean, also: []}
plan: {keep_ratio: 0.25, round_to: 16, keep_layers: []}
repair: {method: least_squares}
recovery: {epochs: 0}
export: {variants: [fp32]}
benchmark: {shapes: [[1, 32], [8, 128]], threads: 2, provider: cpu}
demand: {min_speedup: 1.3, max_drop: 0.02}
seed: 0
"""
MINIMAL = "model: builtin:reviews-tiny\ntask: {data: builtin:reviews}\n"


def make_inputs(folder: Path) -> Path:
    (folder / "model").mkdir()
    for name in ("train", "dev", "test"):
        (folder / f"{name}.csv").write_text("text,label\n", encoding="utf-8")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_inputs(tmp_path)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return caught.value.problems


def only(folder: Path, text: str, *overrides: str) -> Problem:
    (problem,) = problems(folder, text, *overrides)
    return problem


def test_the_contract_example_is_read_as_written(home: Path) -> None:
    recipe = load_recipe(write(home, CONTRACT))
    assert recipe.model.name == str(home / "model")
    assert recipe.task.data == FileData(train=home / "train.csv", validation=home / "dev.csv", test=home / "test.csv")
    assert (recipe.task.text, recipe.task.template) == (("text",), None)
    assert recipe.benchmark.shapes == ((1, 32), (8, 128))
    assert (recipe.demand.min_speedup, recipe.demand.max_drop) == (1.3, 0.02)


def test_everything_but_model_and_task_has_its_documented_default(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.model_dump(mode="json") == {
        "model": {"name": "builtin:reviews-tiny", "revision": None, "dtype": "float32", "device_map": None},
        "task": {
            "type": "text-classification", "data": "builtin:reviews", "text": ["text"], "label": "label",
            "labels": None, "template": None, "label_words": None, "target": None, "target_tokenizer": None,
            "metric": "accuracy", "max_length": 128,
        },
        "scoring": {
            "criterion": "skill", "examples": 2048, "prompt": None, "position": "mean", "include_special": True,
            "include_prompt": False, "multiclass": "ovr", "reduce": "max", "balanced": True, "also": [],
            "batch_size": 32,
        },
        "plan": {
            "keep_ratio": 0.25,
            "parameters": None,
            "macs": None,
            "speedup": None,
            "max_drop": None,
            "allocation": "uniform",
            "selection": "once",
            "round_to": 16,
            "keep_layers": [],
        },
        "repair": {"method": "least_squares", "ridge": None, "sequential": True, "attention": True},
        "recovery": {
            "epochs": 0, "learning_rate": 5e-5, "hidden_weight": 1.0, "label_weight": 0.0, "temperature": 2.0,
            "train": "all", "patience": 2, "prompt": False, "data": None,
        },
        "checkpoint": {"format": "auto"},
        "export": {"variants": ["fp32"], "backends": ["auto"], "fusion": True, "opset": None, "max_drop": 0.01},
        "benchmark": {
            "shapes": [[1, 32], [1, 128], [8, 128]], "threads": 2, "provider": "cpu", "rounds": 60, "references": [],
        },
        "demand": {"min_speedup": None, "max_drop": None},
        "seed": 0,
    }  # fmt: skip


def test_python_and_yaml_make_the_same_recipe(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    files = {"train": "train.csv", "test": "test.csv"}
    built = Recipe(model="model", task={"data": files, "text": ["a", "b"]}, plan={"keep_layers": [0, -1]})
    text = "model: model\ntask: {data: {train: train.csv, test: test.csv}, text: [a, b]}\nplan: {keep_layers: [0, -1]}"
    assert built == load_recipe(write(home, text))


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe(model="builtin:reviews-tiny", task={"data": "builtin:reviews"}).seed = 1


def test_python_gets_all_problems_as_one_recipe_error() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(model="builtin:reviews-tiny", task={"data": "builtin:reviews", "txet": "a"}, seed="0")
    assert [(p.field, p.value, p.line) for p in caught.value.problems] == [("task.txet", "", 0), ("seed", "'0'", 0)]


# The value, where it is put, and the column it must be reported at; {} marks the spot.
WRONG = [
    ("plan: {keep_ratio: {}}", "0", "plan.keep_ratio", "greater than 0"),
    ("plan: {keep_ratio: {}}", "1.01", "plan.keep_ratio", "less than or equal to 1"),
    ("plan: {keep_ratio: {}}", '"0.5"', "plan.keep_ratio", "a number"),
    ("plan: {keep_ratio: {}}", "true", "plan.keep_ratio", "a number"),
    ("plan: {keep_ratio: {}}", ".nan", "plan.keep_ratio", "finite"),
    ("plan: {round_to: {}}", "16.0", "plan.round_to", "whole number"),
    ("plan: {round_to: {}}", "0", "plan.round_to", "greater than or equal to 1"),
    ("plan: {keep_layers: {}}", "1.0", "plan.keep_layers", "less than 1"),
    ("plan: {keep_layers: {}}", "first", "plan.keep_layers", "a list of layer numbers"),
    ("plan: {keep_layers: [0, {}]}", "true", "plan.keep_layers[1]", "whole number"),
    ("plan: {}", "[]", "plan", "a mapping with the keys keep_ratio, parameters, macs, speedup, max_drop"),
    ("plan: {}", "{keep_ratio: 0.5, speedup: 1.6}", "plan", "names 2 budgets, keep_ratio and speedup"),
    ("plan: {parameters: {}}", "0", "plan.parameters", "greater than 0"),
    ("plan: {speedup: {}}", "1.0", "plan.speedup", "greater than 1"),
    ("plan: {allocation: {}}", "even", "plan.allocation", "'uniform'"),
    ("scoring: {criterion: {}}", "wandaa", "scoring.criterion", "'wanda'"),
    ("scoring: {also: {}}", "[skill]", "scoring.also", "repeats the criterion 'skill'"),
    ("scoring: {also: {}}", "[random, random]", "scoring.also", "twice"),
    ("scoring: {examples: {}}", "1e3", "scoring.examples", "whole number"),
    ("repair: {ridge: {}}", "0", "repair.ridge", "greater than 0"),
    ("recovery: {epochs: {}}", "-1", "recovery.epochs", "greater than or equal to 0"),
    ("recovery: {epochs: {}}", "false", "recovery.epochs", "whole number"),
    ("recovery: {patience: {}}", "0", "recovery.patience", "greater than or equal to 1"),
    ("recovery: {temperature: {}}", "0", "recovery.temperature", "greater than 0"),
    ("recovery: {train: {}}", "ffn", "recovery.train", "'neurons'"),
    ("recovery: {data: {}}", "3", "recovery.data", "a file, or a split of a hub data set"),
    ("recovery: {data: {}}", "more.csv", "recovery.data", "there is no such file"),
    ("recovery: {data: {hub: {}}}", "3", "recovery.data.hub", "should be text"),
    ("recovery: {}", "{prompt: true}", "recovery", "add scoring.prompt"),
    ("benchmark: {rounds: {}}", "9", "benchmark.rounds", "greater than or equal to 10"),
    ("benchmark: {shapes: [{}]}", "[1, 32, 3]", "benchmark.shapes[0]", "at most 2"),
    ("benchmark: {shapes: [[1, 2], [1, {}]]}", "0", "benchmark.shapes[1][1]", "greater than or equal to 1"),
    ("benchmark: {shapes: {}}", "[[1, 2], [1, 2]]", "benchmark.shapes", "twice"),
    ("demand: {max_drop: {}}", "-0.1", "demand.max_drop", "greater than or equal to 0"),
    ("demand: {min_speedup: {}}", "fast", "demand.min_speedup", "a number"),
    ("seed: {}", "-1", "seed", "greater than or equal to 0"),
    ("seed: {}", "2020-13-45", "seed", "cannot be read"),
    ("seed: {}", "!!python/name:os.system x", "seed", "only plain values"),
]


@pytest.mark.parametrize(("pattern", "value", "field", "words"), WRONG, ids=[f"{w[2]}={w[1]}" for w in WRONG])
def test_a_wrong_value_is_reported_where_it_stands(
    tmp_path: Path, pattern: str, value: str, field: str, words: str
) -> None:
    problem = only(tmp_path, MINIMAL + pattern.replace("{}", value))
    place = (str(tmp_path / "recipe.yaml"), 3, pattern.index("{}") + 1)
    assert (problem.file, problem.line, problem.column) == place
    assert (problem.field, problem.value) == (field, value)
    assert words in problem.message


@pytest.mark.parametrize(
    ("task", "field", "words"),
    [
        ("{data: nowhere}", "task.data", "files {train, validation, test}"),
        ("{data: builtin:nothing}", "task.data", "builtin:reviews"),
        ("{data: 3}", "task.data", "files {train, validation, test}"),
        ("{data: {train: train.csv}}", "task.data.test", "is required"),
        ("{data: {train: train.csv, test: none.csv}}", "task.data.test", "no such file"),
        ("{data: {train: train.csv, test: model}}", "task.data.test", ".csv, .tsv, .jsonl, .json, .parquet"),
        ("{data: {train: train.csv, test: ./model/../train.csv}}", "task.data.test", "the same file as train"),
        ("{data: {hub: x/y, splits: {test: train}}}", "task.data.splits.test", "the same split as train"),
        ("{data: {hub: x/y, train: a.csv}}", "task.data.train", "unknown key"),
        ("{data: builtin:reviews, text: [a, b, c]}", "task.text", "at most 2"),
        ("{data: builtin:reviews, text: [a, a]}", "task.text", "twice"),
        ("{data: builtin:reviews, text: a, label: a}", "task.label", "also a text column"),
        ("{data: builtin:reviews, labels: [a]}", "task.labels", "at least 2"),
        ("{data: builtin:reviews, labels: [a, no]}", "task.labels[1]", "put it in quotes"),
        ("{data: builtin:reviews, template: x}", "task.template", "should be null; text-classification has no prompt"),
        ("{data: builtin:reviews, label_words: {a: b, c: d}}", "task.label_words", "should be null"),
        ("{data: builtin:reviews, target: y}", "task.target", "should be null; text-classification has no target"),
        ("{data: builtin:reviews, target_tokenizer: y}", "task.target_tokenizer", "should be null"),
        ("{data: builtin:reviews, metric: loss}", "task.metric", "should be accuracy or macro_f1"),
        (
            "{data: builtin:reviews, metric: bleu}",
            "task.metric",
            "'accuracy', 'macro_f1', 'loss', 'perplexity' or 'exact_match'",
        ),
        ("{data: builtin:reviews, type: summarization}", "task.type", "'seq2seq'"),
        ("{data: builtin:reviews, type: summarization, template: x, metric: loss}", "task.type", "'seq2seq'"),
    ],
)
def test_a_wrong_task_is_refused(home: Path, task: str, field: str, words: str) -> None:
    problem = only(home, f"model: model\ntask: {task}\n")
    assert (problem.field, problem.line) == (field, 2)
    assert words in problem.message


WORDS = "label_words: {bad: terrible, good: great}"
MASKED = f'type: masked-lm, template: "{{text}} It was {{mask}}.", {WORDS}'
CAUSAL = f'type: causal-lm, template: "{{text}} It was", {WORDS}'


@pytest.mark.parametrize(
    ("keys", "field", "words"),
    [
        (f'type: masked-lm, template: "{{text}} was.", {WORDS}', "task.template", "has no {mask}"),
        (f'type: masked-lm, template: "{{text}} {{mask}} {{mask}}", {WORDS}', "task.template", "has 2 times {mask}"),
        (f'type: masked-lm, template: "It was {{mask}}.", {WORDS}', "task.template", "has no {text}"),
        (f'type: masked-lm, template: "{{text}} {{text}} {{mask}}", {WORDS}', "task.template", "has 2 times {text}"),
        (f'type: masked-lm, template: "{{txt}} {{text}} {{mask}}", {WORDS}', "task.template", "placeholder {txt}"),
        (f'type: masked-lm, template: "{{}} {{text}} {{mask}}", {WORDS}', "task.template", "placeholder {}; there is"),
        (f'type: masked-lm, template: "{{text!r}} {{mask}}", {WORDS}', "task.template", "placeholder {text!r}"),
        (f'type: masked-lm, template: "{{text:>9}} {{mask}}", {WORDS}', "task.template", "placeholder {text:>9}"),
        (f'type: masked-lm, template: "{{text {{mask}}", {WORDS}', "task.template", "cannot be read"),
        (f'type: masked-lm, template: "text}} {{mask}}", {WORDS}', "task.template", "cannot be read"),
        (f'type: masked-lm, text: mask, template: "{{mask}}", {WORDS}', "task.template", "rename the column"),
        (f'type: causal-lm, template: "{{text}} was {{mask}}", {WORDS}', "task.template", "follows the end"),
        (f'type: causal-lm, text: [a, b], template: "{{a}}", {WORDS}', "task.template", "has no {b}"),
        (f"type: causal-lm, template: 3, {WORDS}", "task.template", "should be text"),
        ('type: causal-lm, template: "{text}"', "task.label_words", "is required for causal-lm"),
        (f"type: masked-lm, {WORDS}", "task.template", "is required for masked-lm, as in '{text} It was {mask}.'"),
        ('type: causal-lm, template: "{text}", label_words: [a, b]', "task.label_words", "should be a mapping"),
        ('type: causal-lm, template: "{text}", label_words: {a: b}', "task.label_words", "at least 2"),
        ('type: causal-lm, template: "{text}", label_words: {a: b, c: b}', "task.label_words", "twice"),
        ('type: causal-lm, template: "{text}", label_words: {bad: "", c: b}', "task.label_words.bad", "at least 1"),
        ('type: causal-lm, template: "{text}", label_words: {bad: " x", c: b}', "task.label_words.bad", "a space"),
        ('type: causal-lm, template: "{text}", label_words: {bad: no, c: b}', "task.label_words.bad", "in quotes"),
        (f"{CAUSAL}, labels: [bad, fine]", "task.label_words", "one word for each of task.labels: bad, fine"),
        (f"{CAUSAL}, labels: [bad, good, fine]", "task.label_words", "one word for each"),
        (f"{MASKED}, metric: loss", "task.metric", "does not fit masked-lm; should be accuracy or macro_f1"),
        (f"{MASKED}, target: y", "task.target", "masked-lm has no target text"),
        ("type: language-modeling, labels: [a, b]", "task.labels", "language-modeling has no classes"),
        ("type: language-modeling, text: [a, b]", "task.text", "one column"),
        ("type: language-modeling, template: x", "task.template", "should be null"),
        ("type: language-modeling, target: y", "task.target", "should be null"),
        ("type: language-modeling, metric: accuracy", "task.metric", "should be loss"),
        ("type: seq2seq, labels: [a, b]", "task.labels", "seq2seq has no classes"),
        (f"type: seq2seq, {WORDS}", "task.label_words", "seq2seq has no prompt"),
        ("type: seq2seq, text: [target, b]", "task.target", "the column 'target' is also a text column"),
        ("type: seq2seq, text: a, target: a", "task.target", "the column 'a' is also a text column"),
    ],
)
def test_a_wrong_task_of_another_kind_is_refused(home: Path, keys: str, field: str, words: str) -> None:
    text = f"model: model\ntask: {{data: builtin:reviews, {keys}}}\n"
    problem = only(home, text)
    assert (problem.field, problem.line) == (field, 2)
    assert words in problem.message
    key = f"{field.rpartition('.')[2]}: "
    line = text.splitlines()[1]
    column = line.index(key) + len(key) if key in line else len("task: ")
    assert problem.column == column + 1


def test_every_problem_of_a_prompt_comes_at_once(home: Path) -> None:
    text = """\
model: model
task:
  type: masked-lm
  data: builtin:reviews
  template: "{text}"
  label_words: {a: b}
  target_tokenizer: x
  metric: loss
"""
    found = [(p.field, p.line, p.column) for p in problems(home, text)]
    keys = ("template", "label_words", "target_tokenizer", "metric")
    columns = (13, 16, 21, 11)
    assert found == [
        (f"task.{key}", 5 + at, column) for at, (key, column) in enumerate(zip(keys, columns, strict=True))
    ]


@pytest.mark.parametrize(
    ("keys", "metric", "target"),
    [
        (MASKED, "accuracy", None),
        (f"{CAUSAL}, metric: macro_f1, labels: [good, bad]", "macro_f1", None),
        ("type: language-modeling", "loss", None),
        ("type: language-modeling, text: label, metric: null", "loss", None),
        ("type: seq2seq, metric: loss, target_tokenizer: target_tokenizer", "loss", "target"),
        ("type: seq2seq, text: [a, b], target: phonemes", "loss", "phonemes"),
    ],
)
def test_every_kind_of_task_has_its_metric_and_target(home: Path, keys: str, metric: str, target: str | None) -> None:
    recipe = load_recipe(write(home, f"model: model\ntask: {{data: builtin:reviews, {keys}}}\n"))
    assert (recipe.task.metric, recipe.task.target) == (metric, target)
    jsonschema.validate(yaml.safe_load((home / "recipe.yaml").read_text(encoding="utf-8")), recipe_schema())
    assert load_recipe(write(home, dump_recipe(recipe))) == recipe


def test_label_words_can_be_overridden_one_by_one(home: Path) -> None:
    path = write(home, f"model: model\ntask: {{data: builtin:reviews, {MASKED}}}\n")
    words = load_recipe(path, ["task.label_words.bad=awful"]).task.label_words
    assert list((words or {}).items()) == [("bad", "awful"), ("good", "great")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nowhere", "no such directory"),
        ("../nowhere/at/all", "no such directory"),
        ("/nowhere/at/all", "no such directory"),
        ("~/nowhere-at-all", "no such directory"),
        ("train.csv", "is a file"),
        ("two words", "neither an existing directory nor a hub id"),
        ("builtin:nothing", "builtin:reviews-tiny"),
        ("{name: model, revision: main}", "only a hub id has revisions"),
    ],
)
def test_a_wrong_model_is_refused(home: Path, name: str, words: str) -> None:
    assert words in only(home, f"model: {name}\ntask: {{data: builtin:reviews}}\n").message


def test_a_name_that_is_no_directory_is_a_hub_id(home: Path) -> None:
    text = "model: {name: distilbert/sst-2, revision: main}\ntask: {data: {hub: stanfordnlp/sst2, splits: {test: dev}}}"
    recipe = load_recipe(write(home, text))
    assert recipe.model.name == "distilbert/sst-2"
    assert isinstance(recipe.task.data, HubData)
    assert (recipe.task.data.splits.train, recipe.task.data.splits.test) == ("train", "dev")


def test_all_problems_come_at_once_in_the_order_of_the_file(home: Path) -> None:
    text = """\
modle: model
task:
  data: {train: nowhere.csv, test: test.csv}
  label: 3
scoring: {critereon: random, batch_size: 1, batch_size: 2}
seed: x
"""
    found = problems(home, text, "plan.keep_ratio=2")
    assert [(p.field, p.line, p.column) for p in found] == [
        ("model", 1, 1),
        ("modle", 1, 1),
        ("task.data.train", 3, 17),
        ("task.label", 4, 10),
        ("scoring.critereon", 5, 11),
        ("scoring.batch_size", 5, 45),
        ("seed", 6, 7),
        ("plan.keep_ratio", 0, 0),
    ]
    assert "did you mean 'criterion'?" in found[4].message
    assert "twice" in found[5].message
    assert str(found[-1]).startswith("--set plan.keep_ratio=2: plan.keep_ratio: ")
    with pytest.raises(RecipeError) as caught:
        load_recipe(home / "recipe.yaml")
    assert len(str(caught.value).splitlines()) == 7


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        (b"", 1, 1, "is empty"),
        (b"# only a comment\n", 1, 1, "is empty"),
        (b"- a\n- b\n", 1, 1, "a mapping"),
        (b"just text", 1, 1, "a mapping"),
        (b"model: a\ntask: [1,\n", 3, 1, "is not YAML"),
        (b"model: a\n---\nmodel: b\n", 2, 1, "is not YAML"),
        (b"model: a\ntask: \x07\n", 2, 7, "not allowed"),
        (b"model: a\ntask: caf\xe9\n", 2, 10, "is not UTF-8"),
        (b"[" * 3000, 1, 1, "nested too deeply"),
    ],
)
def test_what_is_no_recipe_at_all(tmp_path: Path, text: bytes, line: int, column: int, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text)
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (line, column)


def test_a_file_that_is_not_there_and_one_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_examples_for_recovery_are_a_file_or_a_split(home: Path, monkeypatch: Any) -> None:
    recipe = load_recipe(write(home, MINIMAL + "recovery: {data: train.csv}\n"))
    assert recipe.recovery.data == home / "train.csv"
    assert load_recipe(write(home, dump_recipe(recipe))) == recipe
    monkeypatch.chdir(home)
    assert load_recipe(write(home, MINIMAL), ["recovery.data=dev.csv"]).recovery.data == home / "dev.csv"
    recipe = load_recipe(write(home, MINIMAL + "recovery: {data: {hub: someone/texts, split: 'train[:9]'}}\n"))
    assert recipe.recovery.data == HubSplit(hub="someone/texts", split="train[:9]")
    assert load_recipe(write(home, dump_recipe(recipe))) == recipe
    problem = only(home, MINIMAL + "recovery: {data: {hub: someone/texts, spilt: test}}\n")
    assert (problem.field, problem.line) == ("recovery.data.spilt", 3) and "did you mean 'split'" in problem.message


def test_prompts_are_tuned_again_only_if_there_are_any(tmp_path: Path) -> None:
    text = MINIMAL + "scoring: {prompt: {tokens: 4}}\nrecovery: {prompt: true}\n"
    assert load_recipe(write(tmp_path, text)).recovery.prompt


def test_aliases_and_odd_keys_are_refused(tmp_path: Path) -> None:
    assert "alias" in only(tmp_path, MINIMAL + "plan: &p {keep_ratio: 0.5}\nrepair: *p\n").message
    assert "alias" in only(tmp_path, MINIMAL + "plan: &p {keep_layers: [*p]}\n").message
    assert "not plain text" in only(tmp_path, MINIMAL + "? [a, b]\n: 1\n").message


def test_numbers_with_an_exponent_need_no_point(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, MINIMAL + "repair: {ridge: 1e-3}")).repair.ridge == 0.001


def test_overrides_win_and_may_add_keys(home: Path) -> None:
    overrides = [
        "plan.keep_ratio=1", "repair.ridge=1e-3", "model.dtype=bfloat16", "benchmark.shapes=[[2, 16]]", "seed=1",
        "seed=2", "task.labels=[a=b, c]",
    ]  # fmt: skip
    recipe = load_recipe(write(home, CONTRACT), overrides)
    assert (recipe.plan.keep_ratio, recipe.repair.ridge, recipe.model.dtype) == (1.0, 0.001, "bfloat16")
    assert (recipe.benchmark.shapes, recipe.seed, recipe.task.labels) == (((2, 16),), 2, ("a=b", "c"))
    assert recipe.model.name == str(home / "model")


def test_an_override_replaces_what_was_wrong(home: Path) -> None:
    text = CONTRACT.replace("seed: 0", "seed: x\nseed: 2020-13-45").replace(
        "train: train.csv", "train: nowhere.csv, tarin: 1"
    )
    assert isinstance(load_recipe(write(home, text), ["seed=1", "task.data=builtin:reviews"]).task.data, BuiltinData)


@pytest.mark.parametrize(
    ("override", "field", "words"),
    [
        ("seed", "seed", "should be key.path=value"),
        ("=1", "--set", "should be key.path=value"),
        ("plan..round_to=1", "plan..round_to", "should be key.path=value"),
        ("seed.more=1", "seed.more", "seed is no mapping"),
        ("plan.keep_layers=[1", "plan.keep_layers", "is not YAML"),
        ("plan.keep_ration=1", "plan.keep_ration", "did you mean 'keep_ratio'?"),
        ("plan={keep_ratio: 0.5, keep_ratio: 1}", "plan.keep_ratio", "twice"),
        ("seed=", "seed", "whole number"),
    ],
)
def test_a_wrong_override_names_itself(home: Path, override: str, field: str, words: str) -> None:
    problem = only(home, CONTRACT, override)
    assert (problem.file, problem.line, problem.field) == (f"--set {override}", 0, field)
    assert words in problem.message


def test_paths_start_where_they_were_written(home: Path, tmp_path_factory: Any, monkeypatch: Any) -> None:
    elsewhere = make_inputs(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.chdir(elsewhere)
    overrides = ["task.data.test=test.csv", "model=model"]
    recipe = load_recipe(write(home, CONTRACT), overrides)
    assert isinstance(recipe.task.data, FileData)
    assert (recipe.task.data.train, recipe.task.data.test) == (home / "train.csv", elsewhere / "test.csv")
    assert recipe.model.name == str(elsewhere / "model")
    assert load_recipe(Path("..") / home.relative_to(elsewhere.parent) / "recipe.yaml").model.name == str(
        home / "model"
    )


NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
TRICKY = st.sampled_from(
    [
        "yes",
        "null",
        "1e-3",
        "0x1",
        "1:30",
        "~",
        " a",
        "a: b",
        "#",
        "- x",
        "2020-01-01",
        ".5",
        "=",
        "a\x85b",
        "\u2028",
        "<<",
    ]
)
TEXTS = NAMES | TRICKY


def each_value_once(words: dict[str, str]) -> bool:
    return len({*words.values()}) == len(words)


@st.composite
def recipes(draw: st.DrawFn, folder: str) -> Recipe:
    columns = draw(st.lists(TEXTS, min_size=3, max_size=3, unique=True))
    files = FileData(train=f"{folder}/train.csv", test=f"{folder}/test.csv")
    hub = {"hub": draw(TEXTS), "config": draw(st.none() | TEXTS), "splits": {"train": "train[:1]", "test": "dev"}}
    criteria = draw(
        st.lists(st.sampled_from(["wanda", "magnitude", "random", "predictivity"]), min_size=1, unique=True)
    )
    positive = st.integers(1, 10**6)
    layers = st.lists(st.integers(-99, 99), unique=True) | st.floats(0, 1, exclude_max=True)
    bare = TEXTS.filter(lambda word: word == word.strip())
    prompt: dict[str, Any] = {}
    if draw(st.booleans()):
        columns[:2] = ["text", "a.b"]
        literal = draw(TEXTS).replace("{", "{{").replace("}", "}}")
        prompt = {
            "type": "masked-lm",
            "template": f"{literal}{{a.b}}{literal}{{mask}}{{text}}",
            "label_words": draw(st.dictionaries(TEXTS, bare, min_size=2, max_size=3).filter(each_value_once)),
        }
    return Recipe.model_validate(
        {
            "model": {"name": draw(st.sampled_from([f"{folder}/model", "a/b", "builtin:reviews-tiny"]))},
            "task": {
                "data": draw(st.sampled_from([files, "builtin:reviews", hub])),
                "text": columns[: 2 if prompt else draw(st.integers(1, 2))],
                "label": columns[2],
                "labels": None if prompt else draw(st.none() | st.lists(TEXTS, min_size=2, max_size=4, unique=True)),
                **prompt,
            },
            "scoring": {"criterion": criteria[0], "also": criteria[1:], "examples": draw(positive)},
            "plan": {"keep_ratio": draw(st.floats(0, 1, exclude_min=True)), "keep_layers": draw(layers)},
            "repair": {"ridge": draw(st.floats(0, 1e300, exclude_min=True))},
            "benchmark": {"shapes": draw(st.lists(st.tuples(positive, positive), min_size=1, max_size=3, unique=True))},
            "demand": {"max_drop": draw(st.none() | st.floats(0, 1e9))},
            "seed": draw(st.integers(0, 2**32 - 1)),
        }
    )


@pytest.fixture(scope="module")
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name))
        yield name


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_dumped_loads_back_equal(folder: str, data: st.DataObject) -> None:
    recipe = data.draw(recipes(folder))
    loaded = load_recipe(write(Path(folder), dump_recipe(recipe)))
    assert loaded == recipe
    assert list(loaded.task.label_words or ()) == list(recipe.task.label_words or ())


@pytest.mark.parametrize("text", [MINIMAL, CONTRACT.replace("train: train", "train: x")])
def test_the_schema_accepts_recipe_files(text: str) -> None:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(text), schema)


@pytest.mark.parametrize(
    "change", [{"seed": "0"}, {"model": 3}, {"task": {"data": "builtin:x"}}, {"plan": {"keep_layers": "all"}}, {"x": 1}]
)
def test_the_schema_refuses_what_the_loader_refuses(change: dict[str, Any]) -> None:
    wrong = {**yaml.safe_load(MINIMAL), **change}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, recipe_schema())
    with pytest.raises(RecipeError):
        Recipe.model_validate(wrong)


def test_the_schema_accepts_every_dumped_recipe(home: Path) -> None:
    values = yaml.safe_load(dump_recipe(load_recipe(write(home, CONTRACT))))
    jsonschema.validate(values, recipe_schema())
    assert json.loads(json.dumps(values)) == values


def test_every_field_is_described_and_its_examples_are_of_its_type() -> None:
    sections = [
        value for value in vars(recipe_module).values() if isinstance(value, type) and issubclass(value, BaseModel)
    ]
    assert len(sections) > 10
    for section in sections:
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            if not {"train", "validation", "test", "name"} & {name}:  # those must exist on disk
                schema = section.model_json_schema()
                for example in field.examples or ():
                    part = {"$defs": schema.get("$defs", {}), **schema["properties"][name]}
                    jsonschema.validate(example, part)


def test_importing_the_recipe_loads_no_torch() -> None:
    code = (
        "import sys, skillprune.recipe, skillprune.tasks; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

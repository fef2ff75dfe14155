"""Input that cannot be used: exit code 2, one clear message that says where, nothing written, never a traceback."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    ROOT,
    SIZES,
    VOCABULARY,
    Output,
    environment,
    invoke,
    make_model,
    make_tokenizer,
    read_csv,
    read_json,
    set_up,
    tree,
    write_csv,
    write_recipe,
)
from transformers import CTRLConfig, CTRLForSequenceClassification, PreTrainedModel

import skillprune.checkpoint.load

DATA = {split: f"data/{split}.csv" for split in SIZES}
TASK = {"data": DATA, "text": "text", "label": "label", "max_length": 32}


@pytest.fixture
def folder(tmp_path: Path, original: Path) -> Path:
    """A set-up that works; tests break it."""
    shutil.copytree(original, tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original")
    set_up(path)
    return path


def refuse(folder: Path, command: str = "run", *arguments: object) -> Output:
    """Runs the recipe of ``folder``, sees that it is refused as user input is, and gives what was said."""
    before = tree(folder)
    said = invoke(command, folder / "recipe.yaml", "--output", folder / "out", *arguments)
    assert "Traceback" not in said.err, said.err
    assert said.code == 2, said.text
    assert said.err.count("error: ") == 1 and said.out == ""
    assert tree(folder) == before, "something was written"
    return said


def place(recipe: Path, text: str) -> str:
    """FILE:LINE:COLUMN of the first occurrence of ``text``, where it has a bar."""
    before, _, after = text.rpartition("|")
    for number, content in enumerate(recipe.read_text(encoding="utf-8").splitlines(), start=1):
        if before + after in content:
            return f"{recipe}:{number}:{content.index(before + after) + len(before) + 1}"
    raise AssertionError(f"{text!r} is not in the recipe")


# What is wrong with the recipe alone: the sections that replace good ones, where it stands, and what is said of it.
RECIPES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "unknown key": (
        {"plan": {"keep_ration": 0.5}},
        "|keep_ration",
        ["plan.keep_ration", "unknown key", "did you mean 'keep_ratio'"],
    ),
    "unknown section": ({"purne": {}}, "|purne", ["purne", "unknown key", "known: model, task"]),
    "wrong type": (
        {"scoring": {"examples": "many"}},
        "examples: |many",
        ["scoring.examples", "whole number", "many"],
    ),
    "no list": ({"benchmark": {"shapes": 8}}, "shapes: |8", ["benchmark.shapes", "should be a list", "found 8"]),
    "missing file": (
        {"task": {"data": DATA | {"test": "gone.csv"}}},
        "test: |gone.csv",
        ["task.data.test", "no such"],
    ),
    "missing model": ({"model": "./gone"}, "model: |./gone", ["model", "no such directory", "found ./gone"]),
    "keep_ratio 0": ({"plan": {"keep_ratio": 0}}, "keep_ratio: |0", ["plan.keep_ratio", "greater than 0", "found 0"]),
    "keep_ratio 1.5": (
        {"plan": {"keep_ratio": 1.5}},
        "keep_ratio: |1.5",
        ["plan.keep_ratio", "equal to 1", "1.5"],
    ),
    "keep_ratio NaN": ({"plan": {"keep_ratio": float("nan")}}, "keep_ratio: |.nan", ["plan.keep_ratio", "found .nan"]),
    "unknown criterion": (
        {"scoring": {"criterion": "magic"}},
        "criterion: |magic",
        ["scoring.criterion", "'wanda'", "found magic"],
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_wrong_recipe_says_file_line_column_field_value_and_what_would_be_right(folder: Path, case: str) -> None:
    sections, text, wanted = RECIPES[case]
    recipe = write_recipe(folder, **sections)
    said = refuse(folder)
    assert said.err.startswith(f"error: {place(recipe, text)}: {wanted[0]}")
    assert all(part in said.text for part in wanted), said.text


def test_two_wrong_keys_are_two_problems_at_once_in_file_order(folder: Path) -> None:
    recipe = write_recipe(folder, plan={"keep_ration": 0.5}, sede=3)
    lines = refuse(folder).err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"error: {place(recipe, '|keep_ration')}: plan.keep_ration: unknown key")
    assert lines[1].startswith(f"{place(recipe, '|sede')}: sede: unknown key; did you mean 'seed'")


@pytest.mark.parametrize("line", [99, 100, 101])
def test_the_place_is_right_on_every_line(folder: Path, line: int) -> None:
    """On line 100 too, which a terminal library could take for the name of a picture."""
    recipe = write_recipe(folder, sede=3)
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text("\n" * (line - len(text.splitlines())) + text, encoding="utf-8")
    assert refuse(folder).err.startswith(f"error: {recipe}:{line}:1: sede: ")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    said = invoke("run", tmp_path / "gone.yaml", "--output", tmp_path / "out")
    assert said.code == 2 and f"{tmp_path / 'gone.yaml'}: recipe: there is no such file" in said.err
    assert tree(tmp_path) == {}


def test_a_wrong_flag_is_named(folder: Path) -> None:
    said = refuse(folder, "run", "--set", "plan.keep_ratio=2")
    assert "--set plan.keep_ratio=2" in said.text and "found 2" in said.text


@pytest.mark.parametrize(
    ("sections", "text", "wanted"),
    [
        ({"benchmark": {"shapes": [[1, 8], [2, 65]]}}, "shapes", ["[2, 65]", "64 tokens"]),
        ({"plan": {"keep_ratio": 0.5, "keep_layers": [0, 3]}}, "keep_layers", ["from -3 to 2", "found 3"]),
        ({"task": TASK | {"labels": ["bad", "ok", "good"]}}, "labels", ["3 labels", "dull, bright"]),
        ({"task": TASK | {"max_length": 65}}, "max_length", ["allows 64 tokens", "found 65"]),
    ],
)
@pytest.mark.parametrize("located", [False, True])
def test_what_only_the_model_shows_is_refused_before_anything_is_written(
    folder: Path, sections: dict[str, Any], text: str, wanted: list[str], located: bool
) -> None:
    recipe = write_recipe(folder, **sections)
    said = refuse(folder)
    assert all(part in said.text for part in [text, *wanted]), said.text
    if located:  # FILE:LINE: of the key or of a value below it, as for every other problem of a recipe
        line = int(place(recipe, f"|{text}:").split(":")[-2])
        found = re.match(rf"error: {re.escape(str(recipe))}:(\d+):\d+: ", said.err)
        assert found and line <= int(found[1]) <= line + 5, said.err


def test_cuda_is_refused_where_there_is_none(folder: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    write_recipe(folder, benchmark={"provider": "cuda"})
    said = refuse(folder)
    assert "provider cuda" in said.text and "CPUExecutionProvider" in said.text and "provider: cpu" in said.text


def rows(split: str, change: Callable[[list[tuple[str, str]]], list[tuple[str, str]]], folder: Path) -> None:
    write_csv(folder / "data" / f"{split}.csv", change(read_csv(folder / "data" / f"{split}.csv")))


def third(new: tuple[str | None, str | None]) -> Callable[[list[tuple[str, str]]], list[tuple[str, str]]]:
    """Replaces text or label of the third example, which stands on line 4."""
    return lambda old: [*old[:2], (new[0] or old[2][0], new[1] or old[2][1]), *old[3:]]


EXAMPLES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "label not in the list": (
        functools.partial(rows, "train", third((None, "grey"))),
        ["train.csv:4: ", "unknown label 'grey'", "dull, bright"],
    ),
    "one class only": (
        functools.partial(rows, "train", lambda old: [(text, "dull") for text, _ in old]),
        ["train", "'dull'", "two classes"],
    ),
    "one class in test": (
        functools.partial(rows, "test", lambda old: [(text, "bright") for text, _ in old]),
        ["test", "'bright'", "two classes"],
    ),
    "empty text": (functools.partial(rows, "train", third(("  ", None))), ["train.csv:4: ", "'text'", "empty"]),
    "empty text in test": (functools.partial(rows, "test", third(("  ", None))), ["test.csv:4: ", "'text'", "empty"]),
    "empty data set": (functools.partial(rows, "train", lambda old: []), ["train.csv", "no examples"]),
    "empty test set": (functools.partial(rows, "test", lambda old: []), ["test.csv", "no examples"]),
    "not a token in train": (functools.partial(rows, "train", third(("\u200b", None))), ["no tokens"]),
    "not a token in validation": (functools.partial(rows, "validation", third(("\u200b", None))), ["no tokens"]),
    "not a token in test": (functools.partial(rows, "test", third(("\u200b", None))), ["no tokens"]),
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_wrong_examples_are_refused(folder: Path, case: str) -> None:
    """Already by the first stage, even if only the last one reads the split."""
    spoil, wanted = EXAMPLES[case]
    write_recipe(folder, scoring={"examples": 40, "batch_size": 8})
    spoil(folder)
    said = refuse(folder, "score")
    assert all(part in said.text for part in wanted), said.text


def test_a_wrong_column_names_those_that_are_there(folder: Path) -> None:
    write_recipe(folder, task=TASK | {"text": "txt"})
    said = refuse(folder)
    assert "task.text" in said.text and "'txt'" in said.text and "columns: text, label" in said.text
    assert "train.csv:1" in said.text and "did you mean 'text'" in said.text


def unknown(model: Path) -> None:
    config = CTRLConfig(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, dff=32, n_positions=64, pad_token_id=1)
    CTRLForSequenceClassification(config).save_pretrained(model)


def quantised(model: Path) -> None:
    config_of(model, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})


def damaged_record(model: Path) -> None:
    (model / "skillprune.json").write_text('{"format": "skillprune-checkpoint-9"}', encoding="utf-8")


def widths_of_another_model(model: Path) -> None:
    config_of(model, quantization_config={"quant_method": "skillprune", "widths": {"encoder": [80, 80]}})


def config_of(model: Path, **changes: Any) -> None:
    (model / "config.json").write_text(json.dumps(read_json(model / "config.json") | changes), encoding="utf-8")


def pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save(make_model().state_dict(), model / "pytorch_model.bin")


def not_a_number(model: Path) -> None:
    broken = make_model()
    broken.get_parameter("bert.encoder.layer.1.intermediate.dense.weight").data[0, 0] = float("nan")
    broken.save_pretrained(model)


def small_table(model: Path) -> None:
    """A vocabulary smaller than the tokenizer's."""
    small = make_model()
    small.bert.embeddings.word_embeddings = torch.nn.Embedding(20, 16)
    small.config.vocab_size = 20
    small.save_pretrained(model)


MODELS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "unknown architecture": (unknown, ["'ctrl'", "skillprune/families/rows.py", "albert, bart", "whisper"]),
    "quantised": (quantised, ["already quantised (bitsandbytes)", "quantise what comes out"]),
    "a record that cannot be read": (damaged_record, ["skillprune.json", "format"]),
    "widths of another model": (widths_of_another_model, ["[80, 80]", "[80, 80, 80]"]),
    "unknown to transformers": (lambda model: config_of(model, model_type="frob"), ["frob"]),
    "pickled weights only": (pickled, ["pickled", "pytorch_model.bin", "safe"]),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), ["safetensors"]),
    "truncated weights": (
        lambda model: (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:5000]),
        ["cannot be loaded"],
    ),
    "weights of another size": (lambda model: config_of(model, intermediate_size=96), ["cannot be loaded"]),
    "no classifier": (
        lambda model: make_model().bert.save_pretrained(model),
        ["classifier.weight", "fine-tune it first"],
    ),
    "no tokenizer": (lambda model: [path.unlink() for path in model.glob("tokenizer*")], ["tokenizer"]),
    "broken config": (lambda model: (model / "config.json").write_text("{", encoding="utf-8"), ["config.json"]),
    "no config": (lambda model: (model / "config.json").unlink(), ["config.json"]),
    "weights that are not finite": (not_a_number, ["not finite", "layer 1"]),
    "fewer embeddings than the tokenizer has tokens": (small_table, ["token"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_used_is_refused(folder: Path, case: str) -> None:
    spoil, wanted = MODELS[case]
    spoil(folder / "model")
    said = refuse(folder, "score")
    assert all(part in said.text for part in wanted), said.text


def missing_path(model: PreTrainedModel) -> None:
    """As when the architecture has an option that its row does not describe."""
    layer = model.get_submodule("bert.encoder.layer.2")
    layer.add_module("ffn", layer.intermediate)
    del layer.intermediate


def tied(model: PreTrainedModel) -> None:
    layers = model.get_submodule("bert.encoder.layer")
    layers[2].output.dense.weight = layers[0].output.dense.weight


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (missing_path, ["bert", "module 'intermediate.", "below BertLayer", "skillprune/families/rows.py"]),
        (tied, ["encoder layer 0 are tied", "skillprune/families/rows.py", "untie"]),
    ],
)
def test_a_model_that_is_not_as_its_row_says_is_refused(
    folder: Path, change: Callable[[PreTrainedModel], None], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint builds such a model today; a later transformers, or code that changes models, may."""
    load = skillprune.checkpoint.load.load_model

    def changed(*arguments: Any, **options: Any) -> PreTrainedModel:
        model = load(*arguments, **options)
        change(model)
        return model

    monkeypatch.setattr("skillprune.checkpoint.load.load_model", changed)
    said = refuse(folder, "score")
    assert all(part in said.text for part in wanted), said.text


def test_a_saved_plan_for_other_widths_is_refused(folder: Path) -> None:
    """The directory is one of ours, so what is wrong is the plan in it, which somebody put there."""
    assert invoke("plan", folder / "recipe.yaml", "--output", folder / "out").code == 0
    plan = read_json(folder / "out" / "plan.json")
    plan["width_before"] = {"encoder": [96, 96, 96]}
    (folder / "out" / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    said = refuse(folder, "prune")
    assert "(96, 96, 96)" in said.text and "(80, 80, 80)" in said.text


def test_texts_longer_than_the_position_table_are_refused_or_truncated(folder: Path) -> None:
    """Tokenizers that were saved without a limit exist; the model's own limit counts."""
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(folder / "model")
    rows("train", lambda old: [(" ".join([text] * 40), label) for text, label in old], folder)
    write_recipe(folder, task=TASK | {"max_length": 128})
    said = refuse(folder, "score")
    assert "max_length" in said.text and "64" in said.text


def test_a_model_shorter_than_what_is_tried_on_it_can_be_exported(tmp_path: Path) -> None:
    """20 positions are few, but a model that reads texts of 20 tokens is a model."""
    set_up(tmp_path, task=TASK | {"max_length": 20})
    small = make_model()
    small.config.max_position_embeddings = 20
    embeddings = small.bert.embeddings
    embeddings.position_embeddings = torch.nn.Embedding.from_pretrained(embeddings.position_embeddings.weight[:20])
    small.save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(tmp_path / "model")
    said = invoke("export", tmp_path / "recipe.yaml", "--output", tmp_path / "out")
    assert said.code == 0, said.err


@pytest.mark.parametrize("command", ["run", "score", "plan", "prune", "export", "bench"])
def test_every_command_refuses_an_output_that_holds_something_else(folder: Path, command: str) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("years of work", encoding="utf-8")
    assert "not empty" in refuse(folder, command).text


def test_an_output_that_is_a_file_is_refused(folder: Path) -> None:
    (folder / "out").write_text("years of work", encoding="utf-8")
    assert "is a file" in refuse(folder).text


def test_an_output_below_a_file_is_refused(folder: Path) -> None:
    (folder / "out").write_text("years of work", encoding="utf-8")
    assert "is a file" in refuse(folder, "run", "--output", folder / "out" / "below").text


def test_debug_shows_the_traceback(folder: Path) -> None:
    write_recipe(folder, plan={"keep_ratio": 0})
    said = invoke("run", folder / "recipe.yaml", "--output", folder / "out", "--debug")
    assert "Traceback" in said.err and "RecipeError" in said.err and said.code != 0
    assert not (folder / "out").exists()


def test_a_full_disk_is_code_3_and_leaves_no_half_file(folder: Path) -> None:
    """A limit on the size of files stands in for the disk; it is the process's, so that is another one."""
    script = (
        "import json, resource, sys\n"
        "from runs import invoke\n"
        "said = []\n"
        "for command, limit in (('score', 4000), ('prune', 30_000)):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))\n"
        "    output = invoke(command, sys.argv[1], '--output', sys.argv[2])\n"
        "    said.append((output.code, output.err))\n"
        "print(json.dumps(said))\n"
    )
    started = environment()
    started["PYTHONPATH"] += f":{ROOT / 'tests'}"
    command = [sys.executable, "-c", script, str(folder / "recipe.yaml"), str(folder / "out")]
    done = subprocess.run(command, env=started, capture_output=True, text=True, timeout=300, check=True)
    for (code, message), file in zip(json.loads(done.stdout), ("scores.safetensors", "model"), strict=True):
        assert code == 3 and "Traceback" not in message, message
        assert message.splitlines()[-1].startswith(f"error: {folder / 'out' / file} could not be written: ")
    left = set(tree(folder / "out"))
    assert left == {"recipe.yaml", "scores.safetensors", "plan.json", ".stages/score.json", ".stages/plan.json"}

"""A tiny checkpoint, a few dozen sentences and a recipe on disk, and ways to run them: what pipeline tests share."""

from __future__ import annotations

import atexit
import csv
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from safetensors.numpy import load_file
from tiny import PAD, POSITIONS, VOCABULARY, tiny_bert
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

import skillprune
from skillprune.cli import app

LAYERS, WIDTH, KEPT = 3, 80, 24
"""Sizes of the dense model and of the pruned one; no other dimension of it is 80 or 24."""

SHAPES = ((1, 8), (2, 16))
SIZES = {"train": 40, "validation": 16, "test": 24}
LABELS = ("dull", "bright")
ROOT = Path(__file__).resolve().parents[1]

_SPECIAL = {"[UNK]": 0, "[PAD]": PAD, "[CLS]": 2, "[SEP]": 3}
WORDS = tuple(f"word{number}" for number in range(len(_SPECIAL), VOCABULARY))
VIEWS = {"report.json", "report.md", "model/README.md"}
"""Files that every run writes anew: they say when it ended and what it did not have to do."""


@dataclass(frozen=True)
class Output:
    """What a command left behind: exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams in one line, because terminals wrap sentences."""
        return " ".join(f"{self.out} {self.err}".split())


@dataclass(frozen=True)
class Finished:
    """A recipe and the directory of a finished run of it."""

    recipe: Path
    output: Path

    @property
    def report(self) -> dict[str, Any]:
        """The report as it stands in the directory."""
        return read_json(self.output / "report.json")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; characters that are neither text nor space are dropped, as BERT's tokenizer does."""
    ids = _SPECIAL | {word: number for number, word in enumerate(WORDS, start=len(_SPECIAL))}
    core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=POSITIONS,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def make_model(seed: int = 4) -> PreTrainedModel:
    """The dense classifier; with this seed it gives both answers about equally often."""
    model = tiny_bert(layers=LAYERS, width=WIDTH, seed=seed)
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {name: number for number, name in enumerate(LABELS)}
    return model


def set_up(folder: Path, **sections: Any) -> Path:
    """Writes model, data and recipe into ``folder``, returns the recipe's path; ``sections`` as for `write_recipe`."""
    model, tokenizer = make_model(), make_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = random.Random(0)
    for split, size in SIZES.items():
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 20))) for _ in range(size)]
        with torch.inference_mode():
            answers = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(dim=1).tolist()
        # Every fifth label contradicts the dense model, so that no accuracy is 0 or 1.
        labels = [answer ^ (number % 5 == 0) for number, answer in enumerate(answers)]
        names = [LABELS[label] for label in labels]
        write_csv(folder / "data" / f"{split}.csv", list(zip(texts, names, strict=True)))
    return write_recipe(folder, **sections)


def write_csv(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Writes texts and labels."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def read_csv(path: Path) -> list[tuple[str, str]]:
    """Texts and labels as `write_csv` wrote them."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def write_recipe(folder: Path, name: str = "recipe", **sections: Any) -> Path:
    """A recipe with small shapes; ``sections`` replace whole ones, None removes one."""
    data = {split: f"data/{split}.csv" for split in SIZES}
    values: dict[str, Any] = {
        "model": "./model",
        "task": {"data": data, "text": "text", "label": "label", "max_length": 32},
        "scoring": {"criterion": "wanda", "examples": 24, "batch_size": 8, "also": ["predictivity"]},
        "plan": {"keep_ratio": KEPT / WIDTH, "round_to": 8},
        "export": {"backends": "torchscript", "fusion": False},
        "benchmark": {"shapes": [list(shape) for shape in SHAPES], "threads": 1, "rounds": 10},
    } | sections
    path = folder / f"{name}.yaml"
    written = {key: value for key, value in values.items() if value is not None}
    path.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    return path


@functools.cache
def finished() -> Finished:
    """The plain recipe, run once for all tests of this process; they may run it again but leave its files alone."""
    folder = Path(tempfile.mkdtemp(prefix="skillprune-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    recipe = set_up(folder)
    skillprune.run(skillprune.load_recipe(recipe), folder / "out")
    return Finished(recipe, folder / "out")


def read_json(path: Path) -> Any:
    """A JSON file as plain values."""
    return json.loads(path.read_text(encoding="utf-8"))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its contents; empty directories count as files without any."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() or not any(path.iterdir())]
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"" for path in paths}


def invoke(*arguments: object) -> Output:
    """Runs the command line in this process; the end of a traceback that would be printed stands in ``err``."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    error = result.exception
    if error is None or isinstance(error, SystemExit):
        return Output(result.exit_code, result.stdout, result.stderr)
    trace = traceback.format_exception(type(error), error, error.__traceback__, limit=-2)
    return Output(result.exit_code, result.stdout, result.stderr + "".join(trace))


def command(*arguments: object) -> list[str]:
    """What starts the command line as a process of its own."""
    start = "import sys; sys.argv[0] = 'skillprune'; from skillprune.cli import main; main()"
    return [sys.executable, "-c", start, *map(str, arguments)]


def environment() -> dict[str, str]:
    """The variables of such a process: those of this one, and where skillprune is."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def spawn(*arguments: object, cwd: Path) -> Output:
    """Runs the command line as a process in the directory ``cwd``."""
    done = subprocess.run(command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)
    return Output(done.returncode, done.stdout, done.stderr)


def times(folder: Path) -> dict[str, int]:
    """When every file below a folder was last written, in nanoseconds."""
    return {name: (folder / name).stat().st_mtime_ns for name in tree(folder)}


def assert_whole(output: Path) -> None:
    """No temporary file is left, every file can be read to its end, and no stage claims files that are not there."""
    files = tree(output)
    hidden = [name for name in files if any(part.startswith(".") for part in Path(name).parts)]
    assert all(name.startswith(".stages/") for name in hidden), hidden
    for name in files:
        path = output / name
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            assert load_file(path)
        elif path.suffix == ".onnx":
            onnx.checker.check_model(str(path), full_check=True)
    for stage, left in (("score", "scores.safetensors"), ("plan", "plan.json"), ("export", "onnx/fp32/model.onnx")):
        assert f".stages/{stage}.json" not in files or left in files
    if (output / "model").exists():
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(tree(output / "model"))


def assert_same_results(output: Path, reference: Path) -> None:
    """Everything that does not depend on the clock is equal."""
    assert tree(output).keys() == tree(reference).keys()
    assert (output / "plan.json").read_bytes() == (reference / "plan.json").read_bytes()
    for name in ("scores.safetensors", "model/model.safetensors"):
        found, expected = load_file(output / name), load_file(reference / name)
        assert found.keys() == expected.keys()
        for key, array in found.items():
            np.testing.assert_allclose(array, expected[key], rtol=1e-4, atol=1e-5)
    mine, other = read_json(output / "report.json"), read_json(reference / "report.json")
    for section in ("model", "task", "quality"):
        assert mine[section] == other[section], (mine[section], other[section])

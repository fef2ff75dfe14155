"""Recovery in a run: the files before and after, the report, what is cached, what is gone on from, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runs import (
    Finished,
    assert_whole,
    finished,
    invoke,
    read_csv,
    read_json,
    set_up,
    times,
    write_csv,
)
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import skillprune
from skillprune.pipeline import STAGES, Run
from skillprune.pipeline.directory import RunDirectory, write_text
from skillprune.recipe import dump_recipe

RECOVERY = {"epochs": 2, "learning_rate": 1e-3}
SLICED = {"method": "zero"}
"""Without repair there is much to recover."""
PROMPTS = {"criterion": "wanda", "examples": 24, "batch_size": 8, "prompt": {"tokens": 2, "trials": 2, "epochs": 1}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run with training and with prompts tuned again."""
    folder = tmp_path_factory.mktemp("recovered")
    recipe = set_up(folder, recovery={**RECOVERY, "prompt": True}, scoring=PROMPTS, repair=SLICED)
    skillprune.run(skillprune.load_recipe(recipe), folder / "out")
    return Finished(recipe, folder / "out")


def accuracy_of(model: Path, finished: Finished) -> float:
    tokenizer, loaded = (kind.from_pretrained(model) for kind in (AutoTokenizer, AutoModelForSequenceClassification))
    rows = read_csv(finished.recipe.parent / "data" / "test.csv")
    with torch.no_grad():
        texts = [text for text, _ in rows]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        answers = loaded(**inputs).logits.argmax(dim=1).tolist()
    return sum(loaded.config.id2label[a] == label for a, (_, label) in zip(answers, rows, strict=True)) / len(rows)


def test_a_run_keeps_the_model_before_and_after_training(whole: Finished) -> None:
    before, after = (load_file(whole.output / name / "model.safetensors") for name in ("pruned", "model"))
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    test = whole.report["quality"]["test"]
    assert test["pruned"] == pytest.approx(accuracy_of(whole.output / "pruned", whole))
    assert test["recovered"] == pytest.approx(accuracy_of(whole.output / "model", whole))
    assert test["onnx"]["fp32"] == test["recovered"]
    assert_whole(whole.output)


def test_the_report_says_what_training_did(whole: Finished) -> None:
    report = whole.report
    found = report["recovery"]
    assert found["epochs"] == 2 and found["best_epoch"] > 0 and found["trained"] == "all"
    assert found["examples"] == 40  # all of train, not only the 24 of calibration
    assert (found["validation_after"], -found["loss_after"]) > (found["validation_before"], -found["loss_before"])
    assert [stage["name"] for stage in report["stages"]] == [
        *("prompt", "score", "plan", "prune", "recover", "export", "bench", "profile", "test")
    ]
    page = (whole.output / "report.md").read_text(encoding="utf-8")
    assert "## Recovery" in page and "Trained after pruning." in page and "checkpoint before training" in page
    assert "before training" in (whole.output / "model" / "README.md").read_text(encoding="utf-8")
    assert not (whole.output / "pruned" / "README.md").exists()


def test_prompts_are_tuned_again_beside_the_old_ones(whole: Finished) -> None:
    folder = whole.output / "prompts"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("seed-0-recovered.safetensors", "seed-0.safetensors"),
        *("seed-1-recovered.safetensors", "seed-1.safetensors"),
    ]
    assert len(whole.report["prompts"]) == 2
    for prompt in whole.report["prompts"]:
        assert prompt["loss_after"] <= prompt["loss_before"]
    old, new = (load_file(folder / f"seed-0{suffix}.safetensors")["vectors"] for suffix in ("", "-recovered"))
    assert old.shape == new.shape


def test_a_second_run_trains_nothing(whole: Finished) -> None:
    before = times(whole.output)
    said = invoke("recover", whole.recipe, "--output", whole.output)
    assert said.code == 0 and "is kept: validation" in said.out and said.out.count("soft prompt: validation loss") == 2
    assert times(whole.output) == before


def test_without_epochs_nothing_is_there_that_was_not() -> None:
    plain = finished()
    said = invoke("recover", plain.recipe, "--output", plain.output)
    assert said.code == 0 and said.out == "nothing to recover: recovery.epochs is 0, recovery.prompt is false\n"
    names = {path.name for path in plain.output.iterdir() if not path.name.startswith("report")}
    assert names == {".stages", "recipe.yaml", "scores.safetensors", "plan.json", "model", "onnx"}
    assert "recover.json" not in {path.name for path in (plain.output / ".stages").iterdir()}
    assert plain.report["recovery"] is None and plain.report["quality"]["test"]["recovered"] is None
    assert "Recovery" not in (plain.output / "report.md").read_text(encoding="utf-8")


def cached(folder: Path) -> dict[str, bool]:
    run = Run(skillprune.load_recipe(folder / "recipe.yaml"), folder / "out")
    STAGES["recover"](run)
    return {record.name: record.cached for record in run.directory.records}


def test_other_examples_to_train_on_train_again_and_nothing_else(tmp_path: Path) -> None:
    """Calibration, validation and test are what they were, so what was made from them still holds."""
    set_up(tmp_path, recovery={**RECOVERY, "data": "data/more.csv"}, repair=SLICED)
    more = [(f"word{10 + number} word5 word9", label) for number, label in enumerate(["dull", "bright"] * 4)]
    write_csv(tmp_path / "data" / "more.csv", more)
    assert cached(tmp_path) == {"score": False, "plan": False, "prune": False, "recover": False}
    assert cached(tmp_path) == {"score": True, "plan": True, "prune": True, "recover": True}
    first = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    write_csv(tmp_path / "data" / "more.csv", more[:5])
    assert cached(tmp_path) == {"score": True, "plan": True, "prune": True, "recover": False}
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() != first


def stopping(what: str, done: int, total: int) -> None:
    """Ctrl-C in the third epoch."""
    if "(epoch 3 " in what and done == 1:
        raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_where_training_was(tmp_path: Path) -> None:
    recipe = set_up(tmp_path, recovery={**RECOVERY, "epochs": 3, "patience": 3}, repair=SLICED)
    loaded, seen = skillprune.load_recipe(recipe), []
    with pytest.raises(KeyboardInterrupt):
        STAGES["recover"](Run(loaded, tmp_path / "out", progress=stopping))
    assert not (tmp_path / "out" / "model").exists()
    assert (tmp_path / "out" / ".stages" / "recover.safetensors").is_file()
    STAGES["recover"](Run(loaded, tmp_path / "out", progress=lambda what, *_: seen.append(what)))
    assert not (tmp_path / "out" / ".stages" / "recover.safetensors").exists()
    assert any("(epoch 3 " in what for what in seen) and not any("(epoch 2 " in what for what in seen)


def test_without_the_cache_nothing_is_gone_on_from(tmp_path: Path) -> None:
    recipe = skillprune.load_recipe(set_up(tmp_path))
    left = tmp_path / "out" / ".stages" / "recover.safetensors"
    write_text(tmp_path / "out" / "recipe.yaml", dump_recipe(recipe))
    write_text(left, "left by an interruption")
    assert RunDirectory(tmp_path / "out", recipe).unfinished("recover") == left and left.is_file()
    assert RunDirectory(tmp_path / "out", recipe, cache=False).unfinished("recover") == left and not left.exists()


def test_uneven_widths_are_trained(tmp_path: Path) -> None:
    plan = {"keep_ratio": 0.3, "round_to": 8, "keep_layers": [0]}
    recipe = set_up(tmp_path, plan=plan, recovery={**RECOVERY, "train": "neurons"}, repair=SLICED)
    assert invoke("recover", recipe, "--output", tmp_path / "out").code == 0
    before, after = (load_file(tmp_path / "out" / name / "model.safetensors") for name in ("pruned", "model"))
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed and all(".intermediate.dense." in name or ".output.dense.weight" in name for name in changed)
    assert not any("attention" in name for name in changed)
    config = read_json(tmp_path / "out" / "model" / "config.json")
    assert config["quantization_config"]["widths"] == {"encoder": [80, 24, 24]}


@pytest.fixture
def overlapping(tmp_path: Path) -> Iterator[Path]:
    """Examples to train on of which three are in the test split."""
    set_up(tmp_path, recovery={**RECOVERY, "data": "data/more.csv"})
    test = read_csv(tmp_path / "data" / "test.csv")
    write_csv(tmp_path / "data" / "more.csv", [("word4 word9", "dull"), *test[:3]])
    return tmp_path


def test_examples_of_the_test_split_are_refused(overlapping: Path) -> None:
    (text, _), *_ = read_csv(overlapping / "data" / "test.csv")
    said = invoke("recover", overlapping / "recipe.yaml", "--output", overlapping / "out")
    assert said.code == 2 and "Traceback" not in said.text
    assert "recovery.data: 3 of 4 examples have a text that is also in test" in said.text
    assert text[:50] in said.text
    assert not (overlapping / "out").exists(), "nothing is written"


def test_examples_of_the_validation_split_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = set_up(tmp_path, recovery={**RECOVERY, "data": "data/more.csv"})
    known = read_csv(tmp_path / "data" / "validation.csv")[:2]
    write_csv(tmp_path / "data" / "more.csv", [("word4 word9", "dull"), ("word5 word9", "bright"), *known])
    run = Run(skillprune.load_recipe(recipe), tmp_path / "out")
    assert "dropped 2 of 4 recovery examples whose text is also in validation" in caplog.text
    run.predict()

"""From recipe to scores for every kind of task, through the command line, against batches and models made by hand."""

from __future__ import annotations

import csv
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from runs import invoke, make_tokenizer, read_json, write_recipe
from safetensors.torch import load_file, save_file
from test_cli_bad_input import place, refuse
from tiny import END, PAD, POSITIONS, tiny_bart, tiny_bert, tiny_bert_masked_lm, tiny_llama
from torch import Tensor
from transformers import PreTrainedModel

import skillprune
from skillprune.activations import Reading
from skillprune.answers import Classifier, TaskModel, Verbalizer, Writer
from skillprune.data import NO_TARGET, Batch
from skillprune.errors import OutputError
from skillprune.pipeline import Run
from skillprune.pipeline.detection import batches_of, subject_of
from skillprune.prompts import load_prompt
from skillprune.recipe import load_recipe
from skillprune.scoring import NeuronScores, ScoringData, load_scores, score_neurons, settings_for

BEGIN, STOP, MASK_TOKEN = 2, 3, 59
"""Token ids that the tokenizer of `runs` puts around a text, and the word that is made its mask token."""

SIZE, BATCH = {"train": 22, "validation": 14, "test": 6}, 8
WORDS = {"dull": "word10", "bright": "word11"}


class Line(NamedTuple):
    """One example: words by number, and what belongs to it."""

    text: tuple[int, ...]
    label: int
    target: tuple[int, ...]


def lines(split: str) -> list[Line]:
    """The examples of a split; labels alternate unevenly, lengths are mixed."""
    rng = random.Random(split)

    def words(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(12, 58) for _ in range(rng.randint(3, most)))

    return [Line(words(11), int(number % 3 == 0), words(7)) for number in range(SIZE[split])]


def spelled(words: Sequence[int]) -> str:
    return " ".join(f"word{number}" for number in words)


def between(line: Line) -> list[int]:
    """The text between the tokens that the tokenizer puts around it."""
    return [BEGIN, *line.text, STOP]


def answering(model: PreTrainedModel) -> Verbalizer:
    return Verbalizer(model, (10, 11))


class Kind(NamedTuple):
    """A kind of task: its model, how it is asked, how its inputs are put together by hand, its part of the recipe."""

    build: Callable[[], PreTrainedModel]
    subject: Callable[[PreTrainedModel], TaskModel]
    encode: Callable[[Line], list[int]]
    task: Mapping[str, Any]
    position: str = "mean"

    @property
    def also(self) -> list[str]:
        """Criteria beside wanda."""
        return ["skill", "fisher", *(["gauss_newton"] if self.subject is Writer else CLASS_CRITERIA)]


CLASS_CRITERIA = ["predictivity", "average_precision", "linear_probe"]
MASKED = {"template": "word4 {text} word5 {mask} word6", "label_words": WORDS}
CONTINUED = {"template": "{text} word5 word6", "label_words": WORDS}
KINDS: dict[str, Kind] = {
    "text-classification": Kind(tiny_bert, Classifier, between, {"labels": list(WORDS)}),
    "masked-lm": Kind(
        tiny_bert_masked_lm, answering, lambda it: [BEGIN, 4, *it.text, 5, MASK_TOKEN, 6, STOP], MASKED, "mask"
    ),
    "causal-lm": Kind(tiny_llama, answering, lambda it: [BEGIN, *it.text, 5, 6], CONTINUED, "last"),
    "language-modeling": Kind(tiny_llama, Writer, between, {}),
    "seq2seq": Kind(tiny_bart, Writer, between, {"target": "spoken"}),
}
NEW = [kind for kind in KINDS if kind != "text-classification"]


def prepare(folder: Path, kind: str, **sections: Mapping[str, Any]) -> Path:
    """Writes model, data and recipe of a kind; ``sections`` add to those of the recipe."""
    known = KINDS[kind]
    known.build().save_pretrained(folder / "model")
    tokenizer = make_tokenizer()
    if kind == "masked-lm":
        tokenizer.add_special_tokens({"mask_token": f"word{MASK_TOKEN}"})
    tokenizer.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for split in SIZE:
        write_lines(folder / "data" / f"{split}.csv", lines(split))
    data = {split: f"data/{split}.csv" for split in SIZE}
    task = {"type": kind, "data": data, "max_length": 32, **known.task, **sections.get("task", {})}
    scoring = {"criterion": "wanda", "also": known.also, "position": known.position, "examples": 500}
    scoring |= {"batch_size": BATCH, **sections.get("scoring", {})}
    return write_recipe(folder, task=task, scoring=scoring, plan={"keep_ratio": 0.5, "round_to": 4})


def write_lines(path: Path, examples: Sequence[Line]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [(spelled(line.text), list(WORDS)[line.label], spelled(line.target)) for line in examples]
        csv.writer(file).writerows([("text", "label", "spoken"), *rows])


def by_hand(kind: str, split: str) -> tuple[Batch, ...]:
    """Batches of a split: longest first, equal ones in order, padded on the right; train is read in random order."""
    examples = lines(split)
    if split == "train":
        examples = [examples[number] for number in np.random.default_rng([0, 0]).permutation(len(examples))]
    rows = [KINDS[kind].encode(line) for line in examples]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    chunks = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return tuple(_batch(kind, examples, rows, chunk) for chunk in chunks)


def _batch(kind: str, examples: Sequence[Line], rows: Sequence[list[int]], chunk: Sequence[int]) -> Batch:
    ids = padded([rows[index] for index in chunk], PAD)
    mask = padded([[1] * len(rows[index]) for index in chunk], 0)
    labels = torch.tensor([0 if KINDS[kind].subject is Writer else examples[index].label for index in chunk])
    inputs = {"input_ids": ids, "attention_mask": mask}
    batch = Batch(inputs, labels, torch.zeros_like(mask).bool(), torch.tensor(chunk))
    if kind == "masked-lm":
        return replace(batch, answer=torch.tensor([rows[index].index(MASK_TOKEN) for index in chunk]))
    if kind == "causal-lm":
        return replace(batch, answer=torch.tensor([len(rows[index]) - 1 for index in chunk]))
    if kind == "language-modeling":
        return replace(batch, targets=padded([[*rows[index][1:], NO_TARGET] for index in chunk], NO_TARGET))
    if kind == "seq2seq":
        written = [[BEGIN, *examples[index].target, STOP] for index in chunk]
        given = padded([[END, *text[:-1]] for text in written], PAD)
        return replace(batch, inputs={**inputs, "decoder_input_ids": given}, targets=padded(written, NO_TARGET))
    return batch


def padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    return torch.tensor([[*row, *[filler] * (max(map(len, rows)) - len(row))] for row in rows])


def expected_scores(
    kind: str, criteria: Sequence[str], subject: TaskModel, **settings: Any
) -> tuple[NeuronScores, ...]:
    """What `score_neurons` says of a hand-made subject and hand-made batches; provenance is of no account."""
    data = ScoringData(by_hand(kind, "train"), by_hand(kind, "validation"))
    labels = tuple(WORDS) if "predictivity" in criteria else ()
    options = {"labels": labels, "reading": Reading(KINDS[kind].position), "seed": 0, **settings}
    found = settings_for(subject, data, **options)
    return score_neurons(subject, data, criteria=criteria, provenance=None, settings=found)  # type: ignore[arg-type]


def assert_equal(found: NeuronScores, expected: NeuronScores) -> None:
    assert found.criterion == expected.criterion and found.widths == expected.widths
    for stack, layers in found.values.items():
        for layer, vector in enumerate(layers):
            assert np.ptp(vector) > 0
            where = f"{found.criterion} {stack} {layer}"
            np.testing.assert_allclose(vector, expected.values[stack][layer], rtol=1e-5, err_msg=where)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_batches_made_by_hand_and_the_plan_keeps_the_best(kind: str, tmp_path: Path) -> None:
    recipe, out, known = prepare(tmp_path, kind), tmp_path / "out", KINDS[kind]
    said = invoke("score", recipe, "--output", out)
    assert said.code == 0, said.err
    found, criteria = load_scores(out / "scores.safetensors"), ["wanda", *known.also]
    assert [scores.criterion for scores in found] == criteria
    for mine, theirs in zip(found, expected_scores(kind, criteria, known.subject(known.build())), strict=True):
        assert_equal(mine, theirs)
        assert mine.provenance.examples == SIZE["train"] and str(mine) in said.out

    assert invoke("plan", recipe, "--output", out).code == 0
    keep = read_json(out / "plan.json")["keep"]
    assert keep.keys() == found[0].values.keys()
    for stack, layers in keep.items():
        for kept, vector in zip(layers, found[0].values[stack], strict=True):
            assert kept == sorted(np.argsort(-vector, kind="stable")[: len(vector) // 2].tolist())


@pytest.mark.parametrize("criterion", CLASS_CRITERIA)
def test_language_modeling_has_no_classes_to_tell_apart(criterion: str, tmp_path: Path) -> None:
    prepare(tmp_path, "language-modeling", scoring={"also": [criterion]})
    said = refuse(tmp_path, "score")
    assert f"error: {criterion} tells classes apart, and this task has none" in said.text


TUNED = {"criterion": "predictivity", "also": ["wanda"], "position": "prompt"}
PROMPT = {"tokens": 3, "trials": 2, "epochs": 1}


@pytest.mark.parametrize("kind", ["text-classification", "masked-lm"])
def test_soft_prompts_are_tuned_once_and_their_scores_averaged(kind: str, tmp_path: Path) -> None:
    recipe, out = prepare(tmp_path, kind, scoring={**TUNED, "prompt": PROMPT}), tmp_path / "out"
    said = invoke("score", recipe, "--output", out)
    assert said.code == 0, said.err
    paths = [out / "prompts" / f"seed-{seed}.safetensors" for seed in (0, 1)]
    assert sorted((out / "prompts").iterdir()) == paths
    first, second = (load_file(path)["vectors"] for path in paths)
    assert first.shape == second.shape == (3, 16) and not torch.equal(first, second)

    subject = KINDS[kind].subject(KINDS[kind].build())
    options = {"reading": Reading("prompt"), "positions": 3}
    trials = [expected_scores(kind, ("predictivity", "wanda"), load_prompt(subject, path), **options) for path in paths]
    predictivity, wanda = load_scores(out / "scores.safetensors")
    for layer in range(3):
        one, two = (trial[0].details["per_test"]["encoder"][layer] for trial in trials)
        assert not np.array_equal(one, two)
        np.testing.assert_allclose(predictivity.values["encoder"][layer], ((one + two) / 2).max(axis=0), rtol=1e-6)
        one, two = (trial[1].values["encoder"][layer] for trial in trials)
        np.testing.assert_allclose(wanda.values["encoder"][layer], (one + two) / 2, rtol=1e-5)

    tuned = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in [*paths, out / ".stages" / "prompt.json"]}
    scores = load_file(out / "scores.safetensors")
    (out / "scores.safetensors").unlink()
    again = invoke("score", recipe, "--output", out)
    assert again.code == 0 and "scoring" in again.err and "soft prompt" not in again.err
    assert tuned == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tuned}
    torch.testing.assert_close(load_file(out / "scores.safetensors"), scores, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_a_class_that_calibration_never_shows_is_named(kind: str, tmp_path: Path) -> None:
    prepare(tmp_path, kind, task={"label_words": {**WORDS, "strange": "word7"}})
    said = refuse(tmp_path, "score")
    assert "calibration" in said.text and "'strange' (0)" in said.text


@pytest.mark.parametrize("kind", ["text-classification", "masked-lm", "causal-lm", "seq2seq"])
def test_a_prompt_that_is_longer_than_the_model_allows_is_refused_where_it_stands(kind: str, tmp_path: Path) -> None:
    longest = max(batch.mask.shape[1] for split in ("train", "validation") for batch in by_hand(kind, split))
    tokens = POSITIONS - longest + 1
    recipe = prepare(tmp_path, kind, scoring={"prompt": {"tokens": tokens, "trials": 1}})
    said = refuse(tmp_path, "score")
    assert said.err.startswith(f"error: {place(recipe, f'tokens: |{tokens}')}: scoring.prompt.tokens: ")
    assert f"at most {tokens - 1} slots fit" in said.text


@pytest.mark.parametrize("word", ["word12 word13", "splendid"])
@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_label_words_are_single_known_tokens(kind: str, word: str, tmp_path: Path) -> None:
    prepare(tmp_path, kind, task={"label_words": {"dull": "word10", "bright": word}})
    said = refuse(tmp_path, "score")
    assert f"task.label_words: {word!r} is no single token" in said.text


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_a_template_has_to_leave_room_for_the_text(kind: str, tmp_path: Path) -> None:
    recipe = prepare(tmp_path, kind, task={"max_length": 3})
    said = refuse(tmp_path, "score")
    assert said.err.startswith(f"error: {place(recipe, 'max_length: |3')}: task.max_length: leaves no room")


@pytest.mark.parametrize(
    ("kind", "weight", "layer"),
    [
        ("text-classification", "bert.encoder.layer.1.intermediate.dense.weight", "encoder layer 1"),
        ("masked-lm", "bert.encoder.layer.2.intermediate.dense.weight", "encoder layer 2"),
        ("language-modeling", "model.layers.0.mlp.up_proj.weight", "decoder layer 0"),
        ("seq2seq", "model.decoder.layers.1.fc1.weight", "decoder layer 1"),
    ],
)
def test_weights_that_are_no_numbers_are_found(kind: str, weight: str, layer: str, tmp_path: Path) -> None:
    prepare(tmp_path, kind)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors[weight][3, 2] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    said = refuse(tmp_path, "score")
    assert f"error: the activations of {layer} are not finite in batch 0" in said.text


def test_scores_under_another_template_are_of_another_task(tmp_path: Path) -> None:
    """The examples are the same, what the model is asked is not."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder, template in ((mine, KINDS["causal-lm"].task["template"]), (other, "word7 {text} word8")):
        folder.mkdir()
        recipe = prepare(folder, "causal-lm", task={"template": template})
        assert invoke("score", recipe, "--output", folder / "out").code == 0
    shutil.copy(other / "out" / "scores.safetensors", mine / "out" / "scores.safetensors")
    assert "scores are of another task" in refuse(mine, "plan").text


def test_a_decoder_beside_an_encoder_is_for_seq2seq_only(tmp_path: Path) -> None:
    """BART passes for a masked language model, and its decoder would see no targets."""
    prepare(tmp_path, "masked-lm")
    tiny_bart().save_pretrained(tmp_path / "model")
    said = refuse(tmp_path, "score")
    assert "task.type" in said.text and "scored as seq2seq" in said.text


def test_python_runs_are_for_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = skillprune.load_recipe(prepare(tmp_path, "text-classification"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OutputError, match="only one process"):
        skillprune.run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["model", "task"])
@pytest.mark.parametrize("command", ["score", "plan"])
def test_scores_of_another_model_or_task_are_not_used_and_stay(what: str, command: str, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
        recipe = prepare(folder, "causal-lm")
        if folder == other and what == "model":
            tiny_llama(seed=1).save_pretrained(other / "model")
        elif folder == other:
            write_lines(other / "data" / "train.csv", lines("train")[:-1])
        assert invoke("score", recipe, "--output", folder / "out").code == 0
    shutil.copy(other / "out" / "scores.safetensors", mine / "out" / "scores.safetensors")
    said = refuse(mine, command)
    assert f"scores are of another {what}" in said.text and "score again" in said.text


def test_reading_at_soft_prompts_needs_soft_prompts(tmp_path: Path) -> None:
    recipe = prepare(tmp_path, "masked-lm", scoring={"position": "prompt"})
    said = refuse(tmp_path, "score")
    assert said.err.startswith(f"error: {place(recipe, 'position: |prompt')}: scoring.position: needs soft prompts")


@pytest.mark.parametrize(
    ("kind", "also"),
    [("text-classification", ["predictivity"]), ("text-classification", ["skill"]), ("seq2seq", ["skill"])],
)
def test_reading_at_the_mask_needs_a_template(kind: str, also: list[str], tmp_path: Path) -> None:
    """Even if no criterion reads there, the scores would say so."""
    prepare(tmp_path, kind, scoring={"position": "mask", "also": also})
    said = refuse(tmp_path, "score")
    assert "position" in said.text and "mask" in said.text and "template" in said.text


@pytest.mark.parametrize(
    ("kind", "build"),
    [
        ("text-classification", tiny_bert_masked_lm),
        ("masked-lm", tiny_bert),
        ("causal-lm", tiny_bert),
        ("causal-lm", tiny_bert_masked_lm),
        ("language-modeling", tiny_bert_masked_lm),
        ("language-modeling", tiny_bart),
        ("seq2seq", tiny_llama),
    ],
)
def test_a_checkpoint_needs_the_head_of_its_task(kind: str, build: Callable[..., Any], tmp_path: Path) -> None:
    prepare(tmp_path, kind)
    build().save_pretrained(tmp_path / "model")
    said = refuse(tmp_path, "score")
    assert str(tmp_path / "model") in said.text
    assert kind in said.text or "cannot be loaded" in said.text


def real(folder: Path, shared: Path, model: str, data: str, **task: Any) -> float:
    """Scores a real model on 32 examples, and returns the mean loss per target token on them."""
    files = {split: str(shared / "data" / data / f"{split}.csv") for split in SIZE}
    values = {
        "model": str(shared / "models" / model),
        "task": {"data": files, **task},
        "scoring": {"criterion": "skill", "also": ["wanda"], "examples": 32, "batch_size": 8},
        "benchmark": {"shapes": [[1, 16]]},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    said = invoke("score", recipe, "--output", folder / "out")
    assert said.code == 0, said.err
    with Run(load_recipe(recipe), folder / "out") as run:
        subject = subject_of(run.source, run.task)
        total, count = 0.0, 0
        with torch.inference_mode():
            for batch in batches_of(run.splits.calibration, run.source, run.task, 8):
                total += float(subject.ask(batch).losses().sum())
                assert batch.targets is not None
                count += int((batch.targets != NO_TARGET).sum())
        return total / count


def test_a_real_story_writer_is_scored(shared: Path, tmp_path: Path) -> None:
    loss = real(tmp_path, shared, "stories260k", "stories", type="language-modeling", max_length=256)
    assert 2.5 < math.exp(loss) < 3.1
    check_real(tmp_path, {"decoder": (172,) * 5})


def test_a_real_speller_is_scored_on_both_sides(shared: Path, tmp_path: Path) -> None:
    options = {"type": "seq2seq", "target": "target", "target_tokenizer": "target_tokenizer", "max_length": 32}
    assert real(tmp_path, shared, "g2p-bart", "g2p", **options) < 0.4
    check_real(tmp_path, {"encoder": (1024,), "decoder": (1024,)})


def check_real(folder: Path, widths: Mapping[str, tuple[int, ...]]) -> None:
    for scores in load_scores(folder / "out" / "scores.safetensors"):
        assert scores.widths == widths and scores.provenance.examples == 32
        assert all(np.isfinite(layer).all() and layer.max() > 0 for stack in widths for layer in scores.values[stack])

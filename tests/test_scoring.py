"""The scoring engine: passes are shared, budgets and batches change no number, and what cannot be scored is refused.

The files `test_scoring_*` compare every criterion with loops.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from naive import (
    ALL,
    PADDINGS,
    SEEN,
    THREE,
    TOKEN_CRITERIA,
    assert_same,
    by_site,
    data_of,
    details_by_site,
    lone_examples,
    lone_ffn,
    score,
)
from tiny import LENGTHS, batches_for, tiny_bart, tiny_batches, tiny_bert, tiny_llama, tiny_llama_classifier
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.activations import PLAIN, Observation, Reading
from skillprune.answers import Classifier, TaskModel, Writer
from skillprune.data import Batch
from skillprune.errors import DataError, UnsupportedArchitecture
from skillprune.families import FFN, find_ffns
from skillprune.scoring import (
    CRITERIA,
    Criterion,
    NeuronScores,
    ScoringData,
    Settings,
    prepare_criteria,
    score_neurons,
    settings_for,
)
from skillprune.scoring.skill import Skill


class Case(NamedTuple):
    """A model with the way it is asked, how to make its data, and the criteria that fit it."""

    subject: TaskModel
    data: Callable[..., ScoringData]
    criteria: tuple[str, ...]


def _writer_data(family: str) -> Callable[..., ScoringData]:
    return lambda **options: ScoringData(batches_for(family, **options), batches_for(family, seed=1, **options))


@cache
def case(name: str) -> Case:
    if name == "bert":
        return Case(Classifier(tiny_bert(num_labels=3).double()), lambda **options: data_of(THREE, **options), ALL)
    if name == "llama classifier":
        model = tiny_llama_classifier(num_labels=3, layers=2).double()
        return Case(Classifier(model), lambda **options: data_of(THREE, **options), ALL)
    if name == "llama":
        return Case(Writer(tiny_llama().double()), _writer_data("llama"), TOKEN_CRITERIA)
    return Case(Writer(tiny_bart().double()), _writer_data("bart"), TOKEN_CRITERIA)


@cache
def one_by_one(name: str) -> tuple[NeuronScores, ...]:
    """Scores of a case with one example per batch, so without padding."""
    subject, data, criteria = case(name)
    return score(subject, data(batch_size=1, **_positions(name)), *criteria)


def _positions(name: str) -> dict[str, bool]:
    return {} if name == "bart" else {"positions": True}


@pytest.mark.parametrize("name", ["bert", "llama classifier", "llama", "bart"])
@settings(deadline=None, max_examples=5, phases=[Phase.generate])
@given(
    batch_size=st.integers(1, 10),
    order=st.permutations(range(10)),
    pad_to=st.integers(0, 20),
    side=st.sampled_from(["left", "right"]),
)
def test_scores_do_not_depend_on_batches_their_order_or_padding(
    name: str, batch_size: int, order: list[int], pad_to: int, side: str
) -> None:
    """BERT's head reads the first column and BART counts positions from it, so they are padded on the right."""
    subject, data, criteria = case(name)
    shape = {"batch_size": batch_size, "order": order, "pad_to": pad_to, **_positions(name)}
    shape |= {"side": side} if name.startswith("llama") else {}
    for found, expected in zip(score(subject, data(**shape), *criteria), one_by_one(name), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("name", ["bert", "bart"])
def test_criteria_give_the_same_numbers_alone_and_together(name: str) -> None:
    subject, data, criteria = case(name)
    split = data(batch_size=4)
    for together in score(subject, split, *criteria):
        (by_itself,) = score(subject, split, together.criterion)
        assert_same(together, by_itself, rtol=1e-12)
        assert together.details.keys() == by_itself.details.keys()
        for key in together.details:
            for site, values in details_by_site(together, key).items():
                np.testing.assert_allclose(values, details_by_site(by_itself, key)[site], rtol=1e-9, atol=1e-12)


def passes_of(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, *criteria: str) -> tuple[int, int]:
    """Forward and backward passes over the model that scoring takes."""
    forwards, backwards, grad = [], [], torch.autograd.grad

    def counted(*args: Any, **options: Any) -> Any:
        backwards.append(1)
        return grad(*args, **options)

    handle = model.register_forward_hook(lambda *_: forwards.append(1))
    with monkeypatch.context() as patched:
        patched.setattr(torch.autograd, "grad", counted)
        found = score(model, data_of(batch_size=4), *criteria)
    handle.remove()
    assert [each.criterion for each in found] == list(criteria)
    return len(forwards), len(backwards)


@pytest.mark.parametrize(
    ("criteria", "forwards", "backwards"),
    [
        (("magnitude", "random"), 0, 0),
        (("wanda",), 3, 0),
        (("predictivity", "wanda", "fluctuation"), 3 + 3, 0),
        (("taylor", "predictivity", "wanda", "fisher", "fluctuation", "attribution"), 3 + 3, 3),
        (("fisher", "gauss_newton"), 3, 3 + 3),
        (("skill", "gauss_newton", "wanda"), 3, 3),
        (("average_precision", "linear_probe", "predictivity"), 3 + 3, 0),
    ],
)
def test_criteria_share_passes_and_come_back_in_the_order_asked_for(
    monkeypatch: pytest.MonkeyPatch, criteria: tuple[str, ...], forwards: int, backwards: int
) -> None:
    assert passes_of(tiny_bert(), monkeypatch, *criteria) == (forwards, backwards)


def test_every_example_is_run_once_and_only_the_first_512_are_differentiated_for_skill() -> None:
    model = tiny_bert(layers=1)
    sizes: list[tuple[int, bool]] = []
    model.register_forward_hook(lambda _, __, output: sizes.append((len(output.logits), output.logits.requires_grad)))
    batches = tiny_batches(lengths=[3] * 600, batch_size=200)
    score(model, ScoringData(batches[::-1], ()), "skill", "wanda")
    assert sorted(sizes) == [(88, False), (112, True), (200, True), (200, True)]


def later(batches: Sequence[Batch], first: int) -> list[Batch]:
    """The same examples as part of something larger, in which others come before them."""
    return [replace(batch, indices=batch.indices + first) for batch in batches]


@pytest.mark.parametrize("graded", [3, None])
def test_where_the_numbers_of_examples_start_does_not_matter_to_sums(
    graded: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Skill, "reads", (Skill._gram, metric := replace(Skill._metric, examples=graded)))
    monkeypatch.setattr(Skill, "_metric", metric)
    # With two classes the contrast is the margin, whatever is drawn for an example's number.
    model, batches = tiny_bert().double(), tiny_batches(batch_size=4, order=[9, 2, 0, 4, 1, 3, 5, 8, 6, 7])
    validation = tiny_batches(seed=1)
    criteria = ("skill", "wanda", "predictivity", "fisher")
    here = score(model, ScoringData(batches, validation), *criteria)
    there = score(model, ScoringData(later(batches, 70), later(validation, 9)), *criteria)
    for one, other in zip(here, there, strict=True):
        for site, values in by_site(one).items():
            np.testing.assert_allclose(by_site(other)[site], values, rtol=1e-12)


def test_criteria_that_keep_a_row_per_example_refuse_numbers_that_do_not_fit() -> None:
    data = ScoringData(later(tiny_batches(), 3), tiny_batches(seed=1))
    with pytest.raises(DataError, match="average_precision needs examples numbered from 0"):
        score(tiny_bert(), data, "average_precision")


def test_an_error_names_the_batch_as_it_was_given_also_when_a_split_is_read_in_parts() -> None:
    model = tiny_bert()
    lengths, order = [3] * 520, [*range(516, 520), *range(516)]
    batches = [*tiny_batches(lengths=lengths, order=order, batch_size=4)]
    assert batches[0].indices.tolist() == [516, 517, 518, 519]
    batches[5].inputs["inputs_embeds"] = torch.full((*batches[5].inputs.pop("input_ids").shape, 16), torch.nan)
    with pytest.raises(DataError, match=r"in batch 5 "):
        score(model, ScoringData(batches, ()), "skill")


@pytest.mark.parametrize("name", ["bert", "bart"])
def test_a_budget_for_one_layer_at_a_time_changes_no_score_but_takes_more_passes(name: str) -> None:
    subject, data, _ = case(name)
    split, runs = data(batch_size=4), []
    handle = subject.model.register_forward_hook(lambda *_: runs.append(1))
    at_once = score(subject, split, "skill", "wanda", "fisher", state_bytes=10**9)
    at_once_runs = len(runs)
    apart = score(subject, split, "skill", "wanda", "fisher", state_bytes=1)
    handle.remove()
    layers = sum(map(len, at_once[0].values.values()))
    assert at_once_runs == 3  # so few examples are all differentiated, in the pass that reads them anyway
    assert len(runs) - at_once_runs == layers * 3
    for found, expected in zip(apart, at_once, strict=True):
        assert_same(found, expected, rtol=1e-9)
    heavy = CRITERIA["skill"].state_bytes(find_ffns(subject.model)[0])
    assert heavy >= 8 * (32**2 + 16**2)
    runs.clear()
    handle = subject.model.register_forward_hook(lambda *_: runs.append(1))
    score(subject, split, "skill", state_bytes=2 * heavy)
    handle.remove()
    assert len(runs) == -(-layers // 2) * 3


def update_by_hand(workers: Sequence[Criterion], ffns: Sequence[FFN], batches: Sequence[Batch], split: Any) -> None:
    """Shows batch ``n`` to worker ``n % len(workers)``, with made-up activations that depend on the example alone."""
    for worker_number, worker in enumerate(workers):
        for read in worker.reads:
            if read.split != split:
                continue
            for number, batch in enumerate(batches):
                if number % len(workers) == worker_number:
                    for ffn in ffns:
                        worker.update(read, made_up(ffn, batch, number, gradients=read.quantity != PLAIN))


def made_up(ffn: FFN, batch: Batch, number: int, *, gradients: bool) -> Observation:
    hidden = ffn.down.out_features
    values = torch.zeros(*batch.mask.shape, 2 * ffn.width + hidden, dtype=torch.float64)
    for row, index in enumerate(batch.indices.tolist()):
        generator = torch.Generator().manual_seed(1000 * ffn.layer + index)
        values[row] = torch.randn(*values.shape[1:], generator=generator, dtype=torch.float64)
    activations, at_inputs, at_outputs = values.split([ffn.width, ffn.width, hidden], dim=-1)
    return Observation(ffn, batch, number, Reading(), activations, *((at_inputs, at_outputs) if gradients else ()))


@pytest.mark.parametrize("name", [name for name in ALL if CRITERIA[name].reads])
def test_states_of_two_instances_merge_into_that_of_one(name: str) -> None:
    model = tiny_bert(layers=2).double()
    ffns, data = find_ffns(model), data_of(batch_size=2, pad_to=12)
    plain = settings_for(model, data)
    (whole,), (first,), (second,) = (prepare_criteria(ffns, [name], plain) for _ in range(3))
    for split in ("calibration", "validation"):
        update_by_hand([whole], ffns, data.split(split), split)
        update_by_hand([first, second], ffns, data.split(split), split)
        if any(read.split == split for read in whole.reads):
            for ffn in ffns:
                copy = {key: value.clone() for key, value in first.state(ffn, split).items()}
                first.merge(ffn, split, second.state(ffn, split))
                second.merge(ffn, split, copy)
    for ffn in ffns:
        expected = whole.finish(ffn)
        assert np.ptp(expected.scores) > 0
        for each in (first, second):
            found = each.finish(ffn)
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-9, atol=1e-12)
            for key, value in expected.details.items():
                np.testing.assert_allclose(found.details[key], value, rtol=1e-9, atol=1e-12)


def tensor_bytes(value: object) -> int:
    """Bytes of every tensor and array reachable from a criterion, the model's own modules left out."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    if isinstance(value, (list, tuple, set)):
        return sum(map(tensor_bytes, value))
    return tensor_bytes(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, (nn.Module, FFN)) else 0


@pytest.mark.parametrize("name", ALL)
def test_what_a_criterion_remembers_does_not_grow_with_what_it_saw_and_can_be_forgotten(name: str) -> None:
    model = tiny_bert()
    ffns, data = find_ffns(model), data_of()
    (worker,) = prepare_criteria(ffns, [name], settings_for(model, data))
    before, sizes = tensor_bytes(worker), []
    for split in ("calibration", "validation"):
        for _ in range(3):
            update_by_hand([worker], ffns, data.split(split), split)
            sizes.append(tensor_bytes(worker))
    if name not in {"average_precision", "linear_probe"}:  # these keep a row per example, on disk
        assert len(set(sizes[:3])) == len(set(sizes[3:])) == 1
        assert sizes[-1] <= sum(CRITERIA[name].state_bytes(ffn) for ffn in ffns) + 50 * 3 * 32 * 8
    assert (sizes[-1] > before) == bool(worker.reads)
    for ffn in ffns:
        worker.forget(ffn)
    assert tensor_bytes(worker) == before


def test_every_batch_is_reported_and_scores_say_where_they_come_from() -> None:
    told: list[tuple[str, int, int]] = []
    found = score(tiny_bert(), data_of(), "predictivity", progress=lambda *news: told.append(news))
    assert told == [(f"scoring ({split})", done, 3) for split in ("calibration", "validation") for done in range(4)]
    assert found[0].provenance == SEEN


def test_random_draws_are_uniform_and_differ_between_seeds_layers_and_stacks() -> None:
    (found,) = score(tiny_bert(width=2000, layers=2), data_of(), "random")
    first, second = found.values["encoder"]
    assert 0 <= first.min() < 0.01 < 0.99 < first.max() < 1
    assert abs(first.mean() - 0.5) < 0.03 and abs(first.var() - 1 / 12) < 0.01
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    (other,) = score(tiny_bert(width=2000, layers=2), data_of(), "random", seed=8)
    assert abs(np.corrcoef(first, other.values["encoder"][0])[0, 1]) < 0.1
    both = Writer(tiny_bart(layers=2, width=2000, decoder_width=2000))
    (of_bart,) = score(both, ScoringData(batches_for("bart"), ()), "random")
    assert abs(np.corrcoef(of_bart.values["encoder"][0], of_bart.values["decoder"][0])[0, 1]) < 0.1


PRINT_SCORES = """
import json
from skillprune.scoring import Provenance, ScoringData, score_neurons
from tiny import tiny_batches, tiny_bert
seen = Provenance(model="m", data="d", examples=10, position="mean", seed=7)
data = ScoringData(tiny_batches(), tiny_batches(seed=1))
found = score_neurons(tiny_bert(), data, criteria=["random", "wanda", "gauss_newton"], provenance=seen)
print(json.dumps([[vector.tolist() for vector in each.values["encoder"]] for each in found]))
"""


def test_another_process_with_another_hash_seed_gives_the_same_scores() -> None:
    tests = Path(__file__).resolve().parent
    folders = os.pathsep.join([str(tests), str(tests.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": folders, "PYTHONHASHSEED": "12345"}
    printed = subprocess.run(
        [sys.executable, "-c", PRINT_SCORES], env=environment, capture_output=True, text=True, check=True, timeout=300
    ).stdout
    data = ScoringData(tiny_batches(), tiny_batches(seed=1))
    found = score_neurons(tiny_bert(), data, criteria=["random", "wanda", "gauss_newton"], provenance=SEEN)
    for values, expected in zip(json.loads(printed), found, strict=True):
        np.testing.assert_allclose(values, np.stack(expected.values["encoder"]), rtol=1e-4)


def test_single_precision_scores_are_those_of_double_precision() -> None:
    names = tuple(name for name in TOKEN_CRITERIA if name != "skill")
    single = score(tiny_bert(num_labels=3), data_of(THREE), *names)
    double = score(tiny_bert(num_labels=3).double(), data_of(THREE, batch_size=3, pad_to=16), *names)
    for found, expected in zip(single, double, strict=True):
        for site, values in by_site(found).items():
            theirs = by_site(expected)[site]
            np.testing.assert_allclose(values, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_a_chunked_feed_forward_gives_the_same_scores() -> None:
    whole, chunked = (
        score(tiny_bert(num_labels=3, chunk=chunk).double(), data_of(THREE, pad_to=12), *ALL) for chunk in (0, 4)
    )
    for expected, found in zip(whole, chunked, strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("criterion", ["predictivity", "average_precision", "linear_probe"])
@pytest.mark.parametrize("split", ["calibration", "validation"])
def test_a_class_with_fewer_than_two_examples_is_named_with_its_split(criterion: str, split: str) -> None:
    model = tiny_bert(num_labels=3)
    model.config.id2label = {0: "bad", 1: "so-so", 2: "good"}
    once = [2 * (label > 0) for label in THREE]
    once[0] = 1
    full, rare = tiny_batches(labels=THREE), tiny_batches(labels=once)
    data = ScoringData(rare, full) if split == "calibration" else ScoringData(full, rare)
    if (criterion, split) == ("average_precision", "validation"):  # it reads calibration alone
        assert len(score(model, data, criterion)) == 1
        return
    with pytest.raises(DataError, match=rf"{criterion}: .*{split} examples of 'so-so' \(1\)"):
        score(model, data, criterion)
    others = [name for name in ALL if name not in {"predictivity", "average_precision", "linear_probe"}]
    assert len(score(model, data, *others)) == len(others)


def test_many_rare_classes_are_counted_and_the_first_ten_named() -> None:
    labels = tuple(f"class {number}" for number in range(15))
    counts: Any = {"calibration": (0,) * 15, "validation": (2,) * 15}
    with pytest.raises(DataError, match=r"'class 9' \(0\) and 5 more;") as refused:
        prepare_criteria([lone_ffn(3)], ["predictivity"], Settings(labels=labels, class_counts=counts))
    assert "class 10" not in str(refused.value)


@pytest.mark.parametrize("criterion", ["predictivity", "average_precision", "linear_probe"])
def test_a_task_without_classes_is_refused_by_criteria_that_tell_them_apart(criterion: str) -> None:
    data = ScoringData(batches_for("llama"), batches_for("llama"))
    with pytest.raises(DataError, match=f"{criterion} tells classes apart"):
        score(Writer(tiny_llama()), data, criterion)


def test_no_calibration_examples_and_unknown_architectures_are_refused() -> None:
    with pytest.raises(DataError, match="no calibration examples"):
        settings_for(tiny_bert(), ScoringData((), tiny_batches()))
    stranger = tiny_bert()
    stranger.config.model_type = "stranger"
    with pytest.raises(UnsupportedArchitecture, match="stranger"):
        score(stranger, data_of(), "wanda")


def test_without_validation_examples_criteria_that_read_none_still_work() -> None:
    names = ("skill", "wanda", "fisher", "average_precision")
    assert [found.criterion for found in score(tiny_bert(), ScoringData(tiny_batches(), ()), *names)] == list(names)


@pytest.mark.parametrize("criterion", ["wanda", "fluctuation", "fisher", "skill", "predictivity", "linear_probe"])
def test_activations_that_are_not_finite_are_an_error_that_names_layer_and_batch(criterion: str) -> None:
    model, data = tiny_bert(), data_of(batch_size=4)
    data.calibration[1].inputs["input_ids"][2, 0] = 5
    for batch in (*data.calibration, *data.validation):
        batch.inputs["input_ids"][batch.inputs["input_ids"] == 59] = 58
    data.calibration[1].inputs["input_ids"][2, 0] = 59
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[59] = torch.nan
    with pytest.raises(DataError, match=r"of encoder layer 0 are not finite in batch 1 .*4, 5, 6, 7"):
        score(model, data, criterion)


def test_the_first_broken_layer_is_the_one_named() -> None:
    model = tiny_bert()
    with torch.no_grad():
        find_ffns(model)[1].up.weight[3, 4] = torch.nan
    with pytest.raises(DataError, match="activations of encoder layer 1 are not finite in batch 0"):
        score(model, data_of(), "wanda")


def test_weights_that_are_not_finite_are_an_error_even_without_data() -> None:
    model = tiny_bert()
    with torch.no_grad():
        find_ffns(model)[1].down.weight[3, 4] = torch.nan
    with pytest.raises(DataError, match="magnitude: .*encoder layer 1 "):
        score(model, data_of(), "magnitude")


def test_ten_examples_of_mixed_lengths_are_what_these_tests_are_about() -> None:
    """Guards the helpers: alone means alone, in order, and the same tokens whatever the batches look like."""
    first = lone_examples(tiny_batches(batch_size=1, positions=True))
    for shape in PADDINGS[1:]:
        other = lone_examples(tiny_batches(positions=True, **shape))
        assert [len(each.inputs["input_ids"][0]) for each in other] == list(LENGTHS)
        for mine, theirs in zip(first, other, strict=True):
            assert all(torch.equal(mine.inputs[name], theirs.inputs[name]) for name in mine.inputs)
            assert (mine.label, mine.index) == (theirs.label, theirs.index)


def test_gradients_in_float16_are_refused() -> None:
    model, data = tiny_bert().half(), data_of()
    with pytest.raises(DataError, match=r"skill, fisher: gradients underflow in float16; set model\.dtype"):
        score(model, data, "skill", "wanda", "fisher")

"""Criteria against loops over neurons and tokens in float64, their invariances, and what the engine promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LABELS, TINY, tiny_batches, tiny_bert
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.families import FFN, Stack, find_ffns
from skillprune.scoring import CRITERIA, NeuronScores, Provenance, ScoringData, Settings, score_neurons
from skillprune.scoring.predictivity import Predictivity

SEEN = Provenance(model="m", data="d", examples=10, position="mean", seed=7)
DOWN = {
    "bert": "bert.encoder.layer.{}.output.dense",
    "roberta": "roberta.encoder.layer.{}.output.dense",
    "distilbert": "distilbert.transformer.layer.{}.ffn.lin2",
}
BALANCED = (0, 1, 0, 1, 1, 0, 1, 0, 0, 1)
THREE = (0, 1, 2, 0, 0, 2, 1, 0, 0, 2)
OTHER_LENGTHS = (6, 4, 11, 3, 8, 9, 5, 12, 7, 10)

Examples = list[list[list[float]]]  # per example, per token, per neuron


def score(model: PreTrainedModel, data: ScoringData, *criteria: str, **options: Any) -> tuple[NeuronScores, ...]:
    return score_neurons(model, data, criteria=criteria, provenance=SEEN, **options)


def data_of(labels: Sequence[int] = LABELS, **options: Any) -> ScoringData:
    """Ten examples to calibrate on and ten others, of other lengths, to validate on."""
    calibration = tiny_batches(labels=labels, **options)
    return ScoringData(calibration, tiny_batches(labels=labels, lengths=OTHER_LENGTHS, seed=1, **options))


def read_alone(model: PreTrainedModel, batches: Sequence[Batch], layer: int) -> Examples:
    """Activations of one layer for every example, run alone and without padding, in the order of the split."""
    found: dict[int, list[list[float]]] = {}
    current: list[list[list[float]]] = []
    down = model.get_submodule(DOWN[model.config.model_type].format(layer))
    hook = down.register_forward_hook(lambda _module, args, _output: current.append(args[0][0].tolist()))
    for batch in batches:
        for ids, reals, index in zip(batch.inputs["input_ids"], batch.mask, batch.indices.tolist(), strict=True):
            with torch.no_grad():
                model(input_ids=ids[reals].unsqueeze(0))
            found[index] = current.pop()
    hook.remove()
    return [found[index] for index in sorted(found)]


def naive_wanda(examples: Examples, weight: list[list[float]]) -> list[float]:
    scores = []
    for neuron in range(len(weight[0])):
        squares = sum(token[neuron] ** 2 for example in examples for token in example)
        scores.append(squares**0.5 * sum(abs(row[neuron]) for row in weight))
    return scores


def naive_pool(example: list[list[float]], neuron: int, position: str) -> float:
    values = [token[neuron] for token in example]
    return {"cls": values[0], "mean": sum(values) / len(values), "max": max(values)}[position]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def naive_predictivity(
    train: Sequence[float], train_labels: Sequence[int], dev: Sequence[float], dev_labels: Sequence[int]
) -> float:
    """One neuron: half the weight to the class, half shared equally by the other classes, the best class counts."""
    classes, best = sorted(set(train_labels)), 0.0
    for right in classes:
        others = [label for label in classes if label != right]
        means = {label: mean([z for z, y in zip(train, train_labels, strict=True) if y == label]) for label in classes}
        baseline = (means[right] + mean([means[label] for label in others])) / 2
        fires = {
            label: mean([z > baseline for z, y in zip(dev, dev_labels, strict=True) if y == label]) for label in classes
        }
        accuracy = (fires[right] + mean([1 - fires[label] for label in others])) / 2
        best = max(best, accuracy, 1 - accuracy)
    return best


def published_predictivity(train: Sequence[float], dev: Sequence[float], dev_labels: Sequence[int]) -> float:
    """As published: the plain mean of the training activations, the plain accuracy, two-sided."""
    baseline = mean(train)
    accuracy = mean([(z > baseline) == (y == 1) for z, y in zip(dev, dev_labels, strict=True)])
    return max(accuracy, 1 - accuracy)


@pytest.mark.parametrize("family", sorted(TINY))
def test_wanda_and_magnitude_equal_a_loop(family: str) -> None:
    model, data = TINY[family]().double(), data_of()
    wanda, magnitude = score(model, data, "wanda", "magnitude")
    for layer in range(3):
        weight = model.get_submodule(DOWN[family].format(layer)).weight.tolist()
        expected = naive_wanda(read_alone(model, data.calibration, layer), weight)
        np.testing.assert_allclose(wanda.values["encoder"][layer], expected, rtol=1e-9)
        norms = [sum(row[neuron] ** 2 for row in weight) ** 0.5 for neuron in range(32)]
        np.testing.assert_allclose(magnitude.values["encoder"][layer], norms, rtol=1e-12)


@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize("position", ["cls", "mean", "max"])
@pytest.mark.parametrize("labels", [LABELS, BALANCED, THREE], ids=["unbalanced", "balanced", "three classes"])
def test_predictivity_equals_a_loop(family: str, position: Any, labels: tuple[int, ...]) -> None:
    model, data = TINY[family](num_labels=len(set(labels))).double(), data_of(labels)
    (found,) = score(model, data, "predictivity", position=position)
    for layer in range(3):
        train, dev = (read_alone(model, split, layer) for split in (data.calibration, data.validation))
        for neuron in range(32):
            z, z_dev = ([naive_pool(each, neuron, position) for each in split] for split in (train, dev))
            expected = naive_predictivity(z, labels, z_dev, labels)
            assert found.values["encoder"][layer][neuron] == pytest.approx(expected, rel=1e-9)
            if labels is BALANCED:
                assert expected == pytest.approx(published_predictivity(z, z_dev, labels), rel=1e-9)


def worker_of(
    labels: int, calibration: Sequence[int], validation: Sequence[int], neurons: int
) -> tuple[Predictivity, FFN]:
    up, down = nn.Linear(2, neurons), nn.Linear(neurons, 2)
    ffn = FFN(Stack("encoder", "", "", "", "", ""), 0, nn.Identity(), "", up, down, up)
    counts: Any = {
        split: tuple(list(seen).count(label) for label in range(labels))
        for split, seen in (("calibration", calibration), ("validation", validation))
    }
    return Predictivity([ffn], Settings("cls", tuple("abc"[:labels]), counts, 0)), ffn


def feed(worker: Predictivity, split: Any, ffn: FFN, rows: Sequence[Sequence[float]], labels: Sequence[int]) -> None:
    """Hands over one-token examples, one batch each."""
    for row, label in zip(rows, labels, strict=True):
        ones = torch.ones(1, 1, dtype=torch.long)
        batch = Batch({"attention_mask": ones}, torch.tensor([label]), ones.bool(), torch.tensor([0]))
        worker.update(split, ffn, torch.tensor([[row]]), batch)


def test_two_unequal_classes_by_hand() -> None:
    """Means 1 and 5, baseline 3; fires for 1 of 2 negatives and 2 of 3 positives: (1/2 + 2/3) / 2 = 7/12.

    The second neuron is the first upside down. The third never moves. The fourth stands exactly at its baseline for
    all but the last example, and at the baseline is not above it: (1 + 1/3) / 2 = 2/3.
    """
    before, after = (0, 0, 0, 1), (0, 0, 1, 1, 1)
    worker, ffn = worker_of(2, before, after, 4)
    feed(worker, "calibration", ffn, [(0, 0, 1, 2), (1, -1, 1, 2), (2, -2, 1, 2), (5, -5, 1, 4)], before)
    unseen = [(4, -4, 1, 3), (0, 0, 1, 3), (5, -5, 1, 3), (2, -2, 1, 3), (9, -9, 1, 4)]
    feed(worker, "validation", ffn, [tuple(map(float, row)) for row in unseen], after)
    np.testing.assert_allclose(worker.finish(ffn), [7 / 12, 7 / 12, 1 / 2, 2 / 3], rtol=1e-12)


def test_three_classes_by_hand() -> None:
    """Class means 0, 3, 6 give baselines 2.25, 3, 3.75.

    Test for class 0 fires on 1/2, 2/2, 1/2 of the classes: right 1/2 * 1/2 + 1/2 * (0 + 1/2) / 2 = 3/8, two-sided 5/8.
    The tests for classes 1 and 2 fire on half of every class: 1/2.
    """
    worker, ffn = worker_of(3, (0, 1, 2), (0, 0, 1, 1, 2, 2), 1)
    feed(worker, "calibration", ffn, [(0.0,), (3.0,), (6.0,)], (0, 1, 2))
    feed(worker, "validation", ffn, [(0.0,), (4.0,), (3.0,), (5.0,), (6.0,), (1.0,)], (0, 0, 1, 1, 2, 2))
    np.testing.assert_allclose(worker.finish(ffn), [5 / 8], rtol=1e-12)


def test_a_neuron_that_never_moves_is_at_one_half_whatever_its_value_and_the_lengths() -> None:
    """Here length tells the class, so rounding that depends on the length must not pass for a signal."""
    model = tiny_bert()
    with torch.no_grad():
        for ffn in find_ffns(model):
            ffn.up.weight.zero_()
            ffn.up.bias.copy_(torch.linspace(-3, 3, 32))
    lengths, labels = [3, 5, 6, 7, 9, 10, 11, 12] * 5, [0, 0, 0, 0, 1, 1, 1, 1] * 5
    batches = tiny_batches(lengths=lengths, labels=labels)
    for position in ("cls", "mean", "max"):
        (found,) = score(model, ScoringData(batches, batches), "predictivity", position=position)
        np.testing.assert_allclose(np.stack(found.values["encoder"]), 0.5, rtol=1e-9)


@cache
def scores_one_by_one() -> tuple[PreTrainedModel, tuple[NeuronScores, ...]]:
    model = tiny_bert().double()
    return model, score(model, data_of(batch_size=1, positions=True), *sorted(CRITERIA))


@settings(deadline=None, max_examples=25)
@given(
    batch_size=st.integers(1, 10),
    order=st.permutations(range(10)),
    pad_to=st.integers(0, 20),
    side=st.sampled_from(["left", "right"]),
)
def test_scores_do_not_depend_on_batches_their_order_or_padding(
    batch_size: int, order: list[int], pad_to: int, side: str
) -> None:
    model, all_expected = scores_one_by_one()
    data = data_of(batch_size=batch_size, order=order, pad_to=pad_to, side=side, positions=True)
    for found, expected in zip(score(model, data, *sorted(CRITERIA)), all_expected, strict=True):
        assert found.criterion == expected.criterion
        np.testing.assert_allclose(found.values["encoder"], expected.values["encoder"], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wanda_does_not_round_its_sums_to_half_precision(dtype: torch.dtype) -> None:
    ffn = find_ffns(tiny_bert(layers=1))[0]
    worker = CRITERIA["wanda"]([ffn], Settings("mean", ("a", "b"), {}, 0))
    batches = tiny_batches()
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(*batch.mask.shape, 32, generator=generator).mul(1000).to(dtype) for batch in batches]
    for batch, each in zip(batches, values, strict=True):
        worker.update("calibration", ffn, each, batch)
    examples = [
        row[reals].tolist()
        for batch, each in zip(batches, values, strict=True)
        for row, reals in zip(each, batch.mask, strict=True)
    ]
    np.testing.assert_allclose(worker.finish(ffn), naive_wanda(examples, ffn.down.weight.tolist()), rtol=1e-6)


@pytest.mark.parametrize("family", sorted(TINY))
def test_single_precision_scores_are_those_of_double_precision(family: str) -> None:
    (single,) = score(TINY[family](), data_of(), "wanda")
    (double,) = score(TINY[family]().double(), data_of(batch_size=3, pad_to=16), "wanda")
    np.testing.assert_allclose(single.values["encoder"], double.values["encoder"], rtol=1e-4)


def test_a_chunked_feed_forward_gives_the_same_scores() -> None:
    data = data_of(pad_to=12)
    whole, chunked = (score(tiny_bert(chunk=chunk).double(), data, "wanda", "predictivity") for chunk in (0, 4))
    for expected, found in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(found.values["encoder"], expected.values["encoder"], rtol=1e-9)


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


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_what_a_criterion_remembers_does_not_grow_with_the_examples(name: str) -> None:
    ffns = find_ffns(tiny_bert())
    counts: Any = {"calibration": (40, 40), "validation": (40, 40)}
    worker = CRITERIA[name](ffns, Settings("mean", ("a", "b"), counts, 0))
    batches, sizes = tiny_batches() * 20, []
    for split in worker.reads:
        for batch in batches:
            for ffn in ffns:
                worker.update(split, ffn, torch.ones(*batch.mask.shape, 32), batch)
            sizes.append(tensor_bytes(worker))
    assert len(set(sizes)) <= 1
    assert all(size < 50 * 3 * 32 * 8 for size in sizes)
    assert bool(sizes) == bool(worker.reads)


def test_random_draws_are_uniform_and_differ_between_seeds_and_layers() -> None:
    (found,) = score(tiny_bert(width=2000, layers=2), data_of(), "random")
    first, second = found.values["encoder"]
    assert 0 <= first.min() < 0.01 < 0.99 < first.max() < 1
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    other = score_neurons(
        tiny_bert(width=2000, layers=2), data_of(), criteria=["random"], provenance=Provenance("m", "d", 10, "mean", 8)
    )
    assert abs(np.corrcoef(first, other[0].values["encoder"][0])[0, 1]) < 0.1


PRINT_SCORES = """
import json
from skillprune.scoring import Provenance, ScoringData, score_neurons
from tiny import tiny_batches, tiny_bert
seen = Provenance(model="m", data="d", examples=10, position="mean", seed=7)
data = ScoringData(tiny_batches(), tiny_batches(seed=1))
found = score_neurons(tiny_bert(), data, criteria=["random", "wanda"], provenance=seen)
print(json.dumps([[vector.tolist() for vector in each.values["encoder"]] for each in found]))
"""


def test_another_process_with_another_hash_seed_gives_the_same_scores() -> None:
    tests = Path(__file__).resolve().parent
    folders = os.pathsep.join([str(tests), str(tests.parent)])
    environment = {**os.environ, "PYTHONPATH": folders, "PYTHONHASHSEED": "12345"}
    printed = subprocess.run(
        [sys.executable, "-c", PRINT_SCORES], env=environment, capture_output=True, text=True, check=True, timeout=300
    ).stdout
    random, wanda = score(tiny_bert(), ScoringData(tiny_batches(), tiny_batches(seed=1)), "random", "wanda")
    assert json.loads(printed)[0] == np.stack(random.values["encoder"]).tolist()
    np.testing.assert_allclose(json.loads(printed)[1], np.stack(wanda.values["encoder"]), rtol=1e-5)


@pytest.mark.parametrize(
    ("criteria", "passes"),
    [(("magnitude", "random"), 0), (("wanda",), 3), (("predictivity", "wanda", "magnitude"), 3 + 3)],
)
def test_criteria_share_the_passes_and_come_back_in_the_order_asked_for(criteria: tuple[str, ...], passes: int) -> None:
    model, runs = tiny_bert(), []
    model.register_forward_hook(lambda *_: runs.append(1))
    assert [found.criterion for found in score(model, data_of(), *criteria)] == list(criteria)
    assert len(runs) == passes


@pytest.mark.parametrize("split", ["calibration", "validation"])
def test_a_class_without_examples_is_named_with_its_split(split: str) -> None:
    model = tiny_bert(num_labels=3)
    model.config.id2label = {0: "bad", 1: "so-so", 2: "good"}
    full, without = tiny_batches(labels=THREE), tiny_batches(labels=[2 * (label > 0) for label in THREE])
    data = ScoringData(without, full) if split == "calibration" else ScoringData(full, without)
    with pytest.raises(DataError, match=f"predictivity.*{split} split.*'so-so'"):
        score(model, data, "predictivity")
    assert len(score(model, data, "wanda", "magnitude", "random")) == 3
    assert score(model, ScoringData(full, ()), "wanda")[0].widths == {"encoder": (32, 32, 32)}


@pytest.mark.parametrize(
    ("criterion", "broken", "layer"),
    [
        ("magnitude", "down", 1),
        ("wanda", "down", 1),
        ("wanda", "up", 1),
        ("predictivity", "down", 2),  # it reads no weights, so the first layer above the broken one shows it
        ("predictivity", "up", 1),
    ],
)
def test_weights_that_are_not_finite_are_an_error_that_says_where(criterion: str, broken: str, layer: int) -> None:
    model = tiny_bert()
    with torch.no_grad():
        getattr(find_ffns(model)[1], broken).weight[3, 4] = torch.nan
    with pytest.raises(DataError, match=f"{criterion}: .*encoder layer {layer}"):
        score(model, data_of(), criterion)

"""Predictivity against the published definition and against loops written from it, class by class and pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import (
    LABELS,
    PADDINGS,
    SEEN,
    THREE,
    activations_alone,
    by_site,
    data_of,
    details_by_site,
    feed,
    lone_ffn,
    score,
)
from tiny import tiny_batches, tiny_bert

from skillprune.activations import Observation, Reading
from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.families import FFN, Site, find_ffns
from skillprune.scoring import (
    CRITERIA,
    NeuronScores,
    Read,
    ScoringData,
    Settings,
    combine_trials,
    prepare_criteria,
    reference_skill_neurons,
)
from skillprune.scoring.predictivity import Predictivity

BALANCED = (0, 1, 0, 1, 1, 0, 1, 0, 0, 1)
FOUR = (0, 1, 2, 3, 0, 2, 1, 3, 0, 2)
NAMES = ("negative", "neutral", "positive")
CALIBRATION, VALIDATION = CRITERIA["predictivity"].reads

Pooled = Sequence[float]  # one neuron, one value per example


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def weighed(yes: list[int], no: list[int], labels: Sequence[int], balanced: bool, pooled_no: bool) -> list[float]:
    """Weights of examples: half for a yes and half for a no, or all alike; others take no part.

    Within the no side classes count alike, or, with ``pooled_no``, examples do.
    """
    part = [label for label in labels if label in yes + no]
    weights = []
    for label in labels:
        if label not in part:
            weights.append(0.0)
        elif not balanced:
            weights.append(1 / len(part))
        elif label in yes:
            weights.append(0.5 / labels.count(label))
        elif pooled_no:
            weights.append(0.5 / sum(each in no for each in labels))
        else:
            weights.append(0.5 / len(no) / labels.count(label))
    return weights


def one_test(
    train: Pooled, train_weights: list[float], dev: Pooled, dev_weights: list[float], yes: list[bool]
) -> float:
    baseline = sum(w * z for w, z in zip(train_weights, train, strict=True))
    return sum(w * ((z > baseline) == right) for w, z, right in zip(dev_weights, dev, yes, strict=True))


def naive_tests(
    scheme: str, train: Pooled, train_labels: Sequence[int], dev: Pooled, dev_labels: Sequence[int], balanced: bool
) -> list[float]:
    """Two-sided accuracy of every test of one neuron at one position, from section 3 of the method reference.

    The published code balances by dropping examples from the end of the file, one more than needed per class; here all
    count, with weights, as the method reference asks for.
    """
    classes = sorted(set(train_labels))
    if scheme == "ovr":
        sides = [([c], [k for k in classes if k != c], False) for c in classes]
    elif scheme == "pairwise":
        sides = [([b], [a], False) for a, b in combinations(classes, 2)]
    else:  # positive against negative, then neutral against all others, whose examples count alike
        sides = [([2], [0], False), ([1], [k for k in classes if k != 1], True)]
    found = []
    for yes, no, pooled_no in sides:
        weights = [weighed(yes, no, list(labels), balanced, pooled_no) for labels in (train_labels, dev_labels)]
        accuracy = one_test(train, weights[0], dev, weights[1], [label in yes for label in dev_labels])
        found.append(max(accuracy, 1 - accuracy))
    return found


def published(train: Pooled, dev: Pooled, dev_labels: Sequence[int]) -> float:
    """Wang, Wen et al. 2022: plain mean of the training activations, plain accuracy, two-sided."""
    baseline = mean(train)
    accuracy = mean([(z > baseline) == (y == 1) for z, y in zip(dev, dev_labels, strict=True)])
    return max(accuracy, 1 - accuracy)


def pooled(example: list[list[float]], neuron: int, position: str) -> float:
    values = [token[neuron] for token in example]
    return {"cls": values[0], "last": values[-1], "mean": mean(values), "max": max(values)}[position]


@cache
def examples_alone(classes: int) -> tuple[dict[Site, Any], dict[Site, Any]]:
    model = tiny_bert(num_labels=classes, layers=2).double()
    data = data_of(batch_size=1, positions=True)
    return activations_alone(model, data.calibration), activations_alone(model, data.validation)


SCHEMES: tuple[tuple[str, tuple[int, ...], bool], ...] = (
    *(("ovr", labels, balanced) for labels in (LABELS, THREE, FOUR) for balanced in (True, False)),
    *(("pairwise", labels, balanced) for labels in (LABELS, THREE, FOUR) for balanced in (True, False)),
    *(("reference", labels, balanced) for labels in (THREE, FOUR) for balanced in (True, False)),
)


@pytest.mark.parametrize(("scheme", "labels", "balanced"), SCHEMES, ids=str)
@pytest.mark.parametrize("position", ["cls", "mean", "max"])
def test_scores_equal_loops(scheme: str, labels: tuple[int, ...], balanced: bool, position: Any) -> None:
    classes = len(set(labels))
    model = tiny_bert(num_labels=classes, layers=2).double()
    padding = PADDINGS[2 * balanced + (position == "cls")]
    data = data_of(labels, positions=True, **padding)
    options: dict[str, Any] = {
        "multiclass": scheme,
        "balanced": balanced,
        "reading": Reading(position),
        "labels": ("negative", "neutral", "positive", "conflict")[:classes] if classes > 2 else ("a", "b"),
    }
    (highest,) = score(model, data, "predictivity", reduce="max", **options)
    (averaged,) = score(model, data, "predictivity", reduce="mean", **options)
    train, dev = examples_alone(classes)
    for site in train:
        for neuron in range(32):
            z, z_dev = ([pooled(each, neuron, position) for each in split[site]] for split in (train, dev))
            expected = naive_tests(scheme, z, labels, z_dev, labels, balanced)
            per_test = details_by_site(highest, "per_test")[site][:, neuron]
            np.testing.assert_allclose(per_test, expected, rtol=1e-9)
            assert by_site(highest)[site][neuron] == pytest.approx(max(expected), rel=1e-9)
            assert by_site(averaged)[site][neuron] == pytest.approx(mean(expected), rel=1e-9)


@pytest.mark.parametrize("position", ["cls", "last", "mean", "max"])
@pytest.mark.parametrize("balanced", [True, False])
def test_on_balanced_binary_data_scores_are_the_published_ones(position: Any, balanced: bool) -> None:
    model = tiny_bert(layers=2).double()
    data = data_of(BALANCED, positions=True)
    (found,) = score(model, data, "predictivity", reading=Reading(position), balanced=balanced)
    train, dev = examples_alone(2)
    for site in train:
        for neuron in range(32):
            z, z_dev = ([pooled(each, neuron, position) for each in split[site]] for split in (train, dev))
            assert by_site(found)[site][neuron] == pytest.approx(published(z, z_dev, BALANCED), rel=1e-12)


def worker_of(
    calibration: Sequence[int], validation: Sequence[int], neurons: int, *, labels: Sequence[str] = (), **others: Any
) -> tuple[Any, FFN]:
    names = tuple(labels) or tuple("abcdef"[: max(calibration) + 1])
    counts: Any = {
        split: tuple(list(seen).count(label) for label in range(len(names)))
        for split, seen in (("calibration", calibration), ("validation", validation))
    }
    ffn = lone_ffn(neurons)
    (worker,) = prepare_criteria([ffn], ["predictivity"], Settings(labels=names, class_counts=counts, **others))
    return worker, ffn


def test_two_unequal_classes_by_hand() -> None:
    """Means 1 and 5, baseline 3; fires for 1 of 2 negatives and 2 of 3 positives: (1/2 + 2/3) / 2 = 7/12.

    The second neuron is the first upside down. The third never moves. The fourth stands exactly at its baseline for
    all but the last example, and at the baseline is not above it: (1 + 1/3) / 2 = 2/3.
    """
    before, after = (0, 0, 0, 1, 1), (0, 0, 1, 1, 1)
    worker, ffn = worker_of(before, after, 4)
    rows = [(0, 0, 1, 2), (1, -1, 1, 2), (2, -2, 1, 2), (4, -4, 1, 4), (6, -6, 1, 4)]
    feed(worker, CALIBRATION, ffn, rows, before)
    feed(worker, VALIDATION, ffn, [(4, -4, 1, 3), (0, 0, 1, 3), (5, -5, 1, 3), (2, -2, 1, 3), (9, -9, 1, 4)], after)
    found = worker.finish(ffn)
    np.testing.assert_allclose(found.scores, [7 / 12, 7 / 12, 1 / 2, 2 / 3], rtol=1e-12)
    np.testing.assert_allclose(found.details["per_test"], [found.scores] * 2, rtol=1e-12)
    assert found.details["direction"].tolist() == [[-1, 1, 0, -1], [1, -1, 0, 1]]


def test_three_classes_by_hand() -> None:
    """Class means 0, 3, 6 give baselines 2.25, 3, 3.75.

    Test for class 0 fires on 1/2, 2/2, 1/2 of the classes: right 1/2 * 1/2 + 1/2 * (0 + 1/2) / 2 = 3/8, two-sided 5/8.
    The tests for classes 1 and 2 fire on half of every class: 1/2.
    """
    before, after = (0, 0, 1, 1, 2, 2), (0, 0, 1, 1, 2, 2)
    worker, ffn = worker_of(before, after, 1)
    feed(worker, CALIBRATION, ffn, [(-1,), (1,), (2,), (4,), (5,), (7,)], before)
    feed(worker, VALIDATION, ffn, [(0,), (4,), (3,), (5,), (6,), (1,)], after)
    found = worker.finish(ffn)
    np.testing.assert_allclose(found.details["per_test"], [[5 / 8], [1 / 2], [1 / 2]], rtol=1e-12)
    assert found.details["direction"].tolist() == [[-1], [0], [0]]


def test_in_the_reference_scheme_the_rest_is_weighed_as_the_split_has_it() -> None:
    """Neutral against the others: a baseline of calibration's examples, an accuracy of validation's.

    Baseline: half of 0, the mean of neutral, and half of -3 / 5, that of the others: -0.3. In validation both neutral
    examples fire, 4 of the 6 others do, so the accuracy is (1 + 2 / 6) / 2 = 2 / 3. With calibration's shares of
    negative and positive it would be (1 + 3 / 5) / 2 = 4 / 5.
    """
    before, after = (1, 1, 0, 0, 0, 2, 2), (1, 1, 0, 0, 2, 2, 2, 2)
    worker, ffn = worker_of(before, after, 1, labels=NAMES, multiclass="reference")
    feed(worker, CALIBRATION, ffn, [(0,), (0,), (-9,), (-9,), (-9,), (12,), (12,)], before)
    feed(worker, VALIDATION, ffn, [(0,), (0,), (-9,), (-9,), (12,), (12,), (12,), (12,)], after)
    np.testing.assert_allclose(worker.finish(ffn).details["per_test"][1], [2 / 3], rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    scheme=st.sampled_from(["ovr", "pairwise", "reference"]),
    balanced=st.booleans(),
    seed=st.integers(0, 10_000),
    classes=st.integers(3, 4),
)
def test_any_class_counts_in_either_split_equal_a_loop(scheme: str, balanced: bool, seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = (tuple(label for label in range(classes) for _ in range(rng.integers(2, 6))) for _ in range(2))
    names = ("negative", "neutral", "positive", "conflict")[:classes]
    worker, ffn = worker_of(before, after, 3, labels=names, multiclass=scheme, balanced=balanced)
    train, dev = (rng.normal(size=(len(labels), 3)) for labels in (before, after))
    feed(worker, CALIBRATION, ffn, train.tolist(), before)
    feed(worker, VALIDATION, ffn, dev.tolist(), after)
    found = worker.finish(ffn).details["per_test"]
    for neuron in range(3):
        expected = naive_tests(scheme, train[:, neuron], before, dev[:, neuron], after, balanced)
        np.testing.assert_allclose(found[:, neuron], expected, rtol=1e-9)


def prompted(labels: Sequence[int], slots: int, seed: int) -> tuple[Batch, torch.Tensor]:
    """Hand-made examples with a soft prompt in the middle, and activations of three neurons; the rest is poisoned."""
    rows, length = len(labels), slots + 3
    prompt = torch.zeros(rows, length, dtype=torch.bool)
    prompt[:, 1 : 1 + slots] = True
    ones = torch.ones(rows, length, dtype=torch.long)
    values = torch.randn(rows, length, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values[~prompt] = torch.inf
    batch = Batch({"attention_mask": ones}, torch.tensor(labels), ~ones.bool(), torch.arange(rows), prompt=prompt)
    return batch, values


def best_of_positions(values: Sequence[Any], labels: Sequence[int], two_sided_first: bool) -> float:
    accuracies = []
    for position in range(values[0].shape[1]):
        train, dev = (each[:, position].tolist() for each in values)
        weights = weighed([1], [0], list(labels), True, False)
        accuracies.append(one_test(train, weights, dev, weights, [label == 1 for label in labels]))
    if two_sided_first:
        return max(max(accuracy, 1 - accuracy) for accuracy in accuracies)
    return max(max(accuracies), 1 - max(accuracies))


def test_of_several_prompt_positions_the_best_two_sided_one_counts() -> None:
    """The order of the two steps matters: some neurons would score otherwise if the best accuracy came first."""
    labels, slots, differ = LABELS, 4, 0
    reading = Reading("prompt")
    for seed in range(10):
        worker, ffn = worker_of(labels, labels, 3, positions=slots, reading=reading)
        both = []
        for read, number in ((CALIBRATION, 2 * seed), (VALIDATION, 2 * seed + 1)):
            batch, values = prompted(labels, slots, number)
            worker.update(read, Observation(ffn, batch, 0, reading, values))
            both.append(values[batch.prompt].view(len(labels), slots, 3))
        # Test by test: of two classes the tests mirror each other, so the best of both would hide the order.
        per_test = worker.finish(ffn).details["per_test"]
        for neuron in range(3):
            one = [values[:, :, neuron] for values in both]
            assert per_test[:, neuron].tolist() == pytest.approx([best_of_positions(one, labels, True)] * 2, rel=1e-12)
            differ += per_test[1, neuron] != pytest.approx(best_of_positions(one, labels, False), rel=1e-12)
    assert differ > 0


def test_the_direction_is_that_of_the_best_position() -> None:
    """Position 0 is right for 1 of 2 of either class, position 1 always wrong: firing there means no."""
    worker, ffn = worker_of((0, 0, 1, 1), (0, 0, 1, 1), 1, positions=2, reading=Reading("prompt"))
    ones = torch.ones(4, 2, dtype=torch.long)
    batch = Batch(
        {"attention_mask": ones}, torch.tensor([0, 0, 1, 1]), ~ones.bool(), torch.arange(4), prompt=ones.bool()
    )
    values = torch.tensor([[[0.0], [1.0]], [[1.0], [1.0]], [[0.0], [0.0]], [[1.0], [0.0]]], dtype=torch.float64)
    for read in (CALIBRATION, VALIDATION):
        worker.update(read, Observation(ffn, batch, 0, Reading("prompt"), values))
    found = worker.finish(ffn)
    assert found.scores.tolist() == [1.0]
    assert found.details["direction"].tolist() == [[1], [-1]]


@pytest.mark.parametrize("how", ["mean", "min"])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_trials_are_combined_test_by_test_before_tests_are(how: Any, reduce: Any) -> None:
    model, differ = tiny_bert(num_labels=3, layers=2).double(), 0
    trials = [
        score(
            model,
            ScoringData(tiny_batches(labels=THREE, seed=seed), tiny_batches(labels=THREE, seed=seed + 1)),
            "predictivity",
            reduce=reduce,
        )[0]
        for seed in (0, 10, 20)
    ]
    found = combine_trials(trials, how, reduce)
    for site, values in by_site(found).items():
        for neuron in range(32):
            per_trial = [details_by_site(trial, "per_test")[site][:, neuron].tolist() for trial in trials]
            tests = [min(test) if how == "min" else mean(test) for test in zip(*per_trial, strict=True)]
            np.testing.assert_allclose(details_by_site(found, "per_test")[site][:, neuron], tests, rtol=1e-12)
            expected = max(tests) if reduce == "max" else mean(tests)
            assert values[neuron] == pytest.approx(expected, rel=1e-12)
            finished = [by_site(trial)[site][neuron] for trial in trials]
            differ += expected != pytest.approx(min(finished) if how == "min" else mean(finished), rel=1e-9)
    assert (differ > 0) == ((how, reduce) != ("mean", "mean"))
    assert found.criterion == "predictivity" and found.provenance == trials[0].provenance
    assert combine_trials(trials[:1], how, reduce).compare(trials[0])["encoder"] == pytest.approx((1.0, 1.0))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_the_published_choice_serves_positive_against_negative_first_and_fills_up_with_neutral(
    seed: int, share: float
) -> None:
    width = 40
    per_test = np.random.default_rng(seed).integers(50, 70, size=(2, width)) / 100  # with ties
    scores = NeuronScores(
        "predictivity", {"encoder": (per_test.max(axis=0),)}, SEEN, {"per_test": {"encoder": (per_test,)}}
    )
    first, second = (sorted(range(width), key=lambda neuron: (-test[neuron], neuron)) for test in per_test)
    expected = first[: int(share / 2 * width)]
    for neuron in second:
        if len(expected) < int(share * width) and neuron not in expected:
            expected.append(neuron)
    assert reference_skill_neurons(scores, share)["encoder"][0].tolist() == sorted(expected)


def test_the_published_choice_for_three_classes_needs_its_tests() -> None:
    model = tiny_bert(num_labels=3, layers=1).double()
    other_scheme, other_criterion = score(model, data_of(THREE), "predictivity", "wanda")
    (two_classes,) = score(tiny_bert(), data_of(), "predictivity")
    assert len(two_classes.details["per_test"]["encoder"][0]) == 2  # as many tests as the published scheme has
    for scores in (other_scheme, other_criterion, two_classes):
        with pytest.raises(DataError, match="multiclass: reference"):
            reference_skill_neurons(scores, 0.1)


def test_details_of_a_lone_trial_are_kept() -> None:
    (trial,) = score(tiny_bert(), data_of(), "average_precision")
    found = combine_trials([trial])
    assert {"median_response", "average_precision", "direction"} == set(found.details)
    np.testing.assert_array_equal(by_site(found)["encoder", 0], by_site(trial)["encoder", 0])


@pytest.mark.parametrize("how", ["mean", "min"])
def test_trials_of_other_criteria_are_averaged_and_lose_their_details(how: Any) -> None:
    trials = [score(tiny_bert(), ScoringData(tiny_batches(seed=seed), ()), "attribution")[0] for seed in (0, 3)]
    found = combine_trials(trials, how)
    assert found.details == {}
    for site, values in by_site(found).items():
        np.testing.assert_allclose(values, (by_site(trials[0])[site] + by_site(trials[1])[site]) / 2, rtol=1e-12)


def test_trials_must_be_of_one_criterion_model_and_task() -> None:
    found, wanda = score(tiny_bert(), data_of(), "predictivity", "wanda")
    for wrong in ((), (found, wanda)):
        with pytest.raises(DataError, match="trials of one criterion"):
            combine_trials(wrong)
    for field in ("model", "data"):
        stranger = replace(found, provenance=replace(SEEN, **{field: "another"}))
        with pytest.raises(DataError, match=f"another {field if field == 'model' else 'task'}"):
            combine_trials((found, stranger))


@pytest.mark.parametrize("position", ["cls", "last", "mean", "max"])
@pytest.mark.parametrize("scheme", ["ovr", "pairwise", "reference"])
def test_a_neuron_that_never_moves_is_at_one_half_whatever_its_value_and_the_lengths(
    position: Any, scheme: Any
) -> None:
    """Here length tells the class, so rounding that depends on the length must not pass for a signal."""
    model = tiny_bert(num_labels=3)
    with torch.no_grad():
        for ffn in find_ffns(model):
            ffn.up.weight.zero_()
            ffn.up.bias.copy_(torch.linspace(-3, 3, 32))
    lengths, labels = [3, 5, 6, 7, 9, 10, 11, 12] * 5, [0, 0, 0, 1, 1, 2, 2, 2] * 5
    batches = tiny_batches(lengths=lengths, labels=labels)
    data = ScoringData(batches, batches)
    (found,) = score(model, data, "predictivity", reading=Reading(position), multiclass=scheme, labels=NAMES)
    for values in by_site(found).values():
        assert np.abs(values - 0.5).max() < 1e-12


def test_several_classes_are_named_and_pairs_are_limited_to_twenty() -> None:
    def prepare(classes: int, scheme: Any) -> Any:
        counts: Any = {"calibration": (2,) * classes, "validation": (2,) * classes}
        labels = tuple(f"class {number}" for number in range(classes))
        chosen = Settings(labels=labels, class_counts=counts, multiclass=scheme)
        return prepare_criteria([lone_ffn(2)], ["predictivity"], chosen)

    assert prepare(20, "pairwise") and prepare(21, "ovr")
    with pytest.raises(DataError, match="21 classes make 210 pairs.*pairwise.*20"):
        prepare(21, "pairwise")
    with pytest.raises(DataError, match=r"reference needs labels named negative, neutral and positive.*class 0"):
        prepare(3, "reference")


def test_the_reference_scheme_knows_its_labels_by_name_whatever_their_order_and_case() -> None:
    rng, labels = np.random.default_rng(0), (0, 1, 2) * 4
    rows = [rng.normal(size=(12, 3)).tolist() for _ in range(2)]
    found = []
    for names, place in ((NAMES, (0, 1, 2)), (("Positive", "NEGATIVE", "Neutral"), (1, 2, 0))):
        own = tuple(place[label] for label in labels)
        worker, ffn = worker_of(own, own, 3, labels=names, multiclass="reference")
        for read, each in zip((CALIBRATION, VALIDATION), rows, strict=True):
            feed(worker, read, ffn, each, own)
        found.append(worker.finish(ffn).scores)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


def test_reads_are_calibration_and_then_validation_and_scores_have_their_type() -> None:
    assert (Read("calibration"), Read("validation")) == (CALIBRATION, VALIDATION)
    (found,) = score(tiny_bert(), data_of(), "predictivity")
    assert isinstance(found, NeuronScores)
    assert all(values.min() >= 0.5 and values.max() <= 1 for values in by_site(found).values())
    assert all(set(np.unique(each)) <= {-1, 0, 1} for each in details_by_site(found, "direction").values())


@pytest.mark.parametrize("size", [1, 3, 7, 40])
def test_neurons_with_equal_counts_tie_however_examples_are_batched(size: int) -> None:
    """Sums of 0.5 / N differ in the last digit by their order; a ranking must not."""
    rng = np.random.default_rng(0)
    rows, labels = (rng.random((40, 200)) > 0.5).astype(float), [number % 3 for number in range(40)]

    def scored(batches: int) -> Predictivity:
        ffn = lone_ffn(200)
        counts = tuple(labels.count(label) for label in range(3))
        settings = Settings(
            Reading("cls"), ("a", "b", "c"), {"calibration": counts, "validation": counts},
            {"calibration": 40, "validation": 40},
        )  # fmt: skip
        worker = Predictivity([ffn], settings)
        for split in ("calibration", "validation"):
            for start in range(0, 40, batches):
                chunk = slice(start, start + batches)
                ones = torch.ones(len(labels[chunk]), 1, dtype=torch.long)
                batch = Batch(
                    {"attention_mask": ones}, torch.tensor(labels[chunk]), ones.bool(), torch.arange(40)[chunk]
                )
                activations = torch.from_numpy(rows[chunk]).unsqueeze(1)
                worker.update(Read(split), Observation(ffn, batch, 0, Reading("cls"), activations))
        return worker

    whole, parts = (worker.finish(worker.ffns[0]) for worker in (scored(13), scored(size)))
    assert (whole.scores == parts.scores).all()
    assert np.diff(np.unique(whole.scores)).min() > 1e-6
    assert (whole.details["direction"] == parts.details["direction"]).all()

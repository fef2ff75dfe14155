"""Neurons ranked by a linear probe: a planted one is found, scale does not matter, places equal a loop."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import THREE, activations_alone, by_site, data_of, details_by_site, feed, lone_ffn, score
from tiny import tiny_batches, tiny_bert

from skillprune.families import Site
from skillprune.scoring import CRITERIA, NeuronScores, ScoringData, Settings, prepare_criteria, ranking

READS = CRITERIA["linear_probe"].reads
LENGTHS = tuple(3 + number % 7 for number in range(80))


def naive_places(weights: np.ndarray, gaps: Sequence[float]) -> list[float]:
    """Scores from weights ``(classes, neurons)``: for a hundred shares of mass, who is in some class's prefix.

    A prefix is the shortest that reaches a share; a neuron enters at the first share some class has it at, and within
    a step by its largest share of a class's mass, which is below 1 unless it has all of it. Neurons without weight come
    last, by their gaps.
    """
    shares = [[abs(weight) / sum(map(abs, row)) for weight in row] for row in weights.tolist() if any(row)]
    entered: dict[int, int] = {}
    for step in range(1, 101):
        for row in shares:
            mass = 0.0
            for neuron in sorted(range(len(row)), key=lambda neuron: (-row[neuron], neuron)):
                if mass >= step / 100 - 1e-12:
                    break
                entered.setdefault(neuron, step)
                mass += row[neuron]
    highest = [max(row[neuron] for row in shares) for neuron in range(len(shares[0]))]
    return [
        101 - entered.get(neuron, 100) + highest[neuron] if highest[neuron] else gaps[neuron] / max(gaps)
        for neuron in range(len(highest))
    ]


def naive_gaps(rows: np.ndarray, labels: Sequence[int]) -> list[float]:
    """Distances between the class means of standardised columns ``(examples, neurons)``, over pairs of classes."""
    standardised = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    means = [standardised[np.array(labels) == label].mean(axis=0) for label in sorted(set(labels))]
    return np.sum([abs(one - other) for one, other in combinations(means, 2)], axis=0).tolist()


def weights_of(found: NeuronScores) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``(classes, neurons)`` and scores ``(neurons,)`` of all layers side by side."""
    return (
        np.concatenate(list(details_by_site(found, "weights").values()), axis=1),
        np.concatenate(list(by_site(found).values())),
    )


def planted(site: Site, neuron: int) -> tuple[Any, ScoringData]:
    """A model, and examples whose label says whether a neuron responds above its median."""
    model, splits = tiny_bert(layers=2, width=16).double(), []
    for seed in (0, 1):
        batches = tiny_batches(lengths=LENGTHS, seed=seed, batch_size=16)
        read = activations_alone(model, batches)[site]
        responses = [float(np.mean([token[neuron] for token in example])) for example in read]
        labels = [int(response > np.median(responses)) for response in responses]
        splits.append(tiny_batches(lengths=LENGTHS, labels=labels, seed=seed, batch_size=16))
    return model, ScoringData(*splits)


@pytest.mark.parametrize(("layer", "neuron"), [(0, 3), (1, 11)])
def test_a_planted_neuron_comes_first_in_the_whole_model(layer: int, neuron: int) -> None:
    model, data = planted(("encoder", layer), neuron)
    (found,) = score(model, data, "linear_probe")
    scores = weights_of(found)[1]
    assert ranking(scores)[0] == 16 * layer + neuron
    assert scores[16 * layer + neuron] > 100


@pytest.mark.parametrize("classes", [2, 3])
def test_places_equal_a_loop_over_a_hundred_shares_of_the_weights_mass(classes: int) -> None:
    labels = THREE if classes == 3 else tuple(label % 2 for label in THREE)
    model, data = tiny_bert(num_labels=classes, layers=2).double(), data_of(labels)
    (found,) = score(model, data, "linear_probe")
    weights, scores = weights_of(found)
    assert weights.shape == (classes, 64)
    read = activations_alone(model, data.calibration)
    rows = np.array([[np.mean(example, axis=0) for example in examples] for examples in read.values()])
    gaps = naive_gaps(np.concatenate(list(rows), axis=1), labels)
    np.testing.assert_allclose(scores, naive_places(weights, gaps), rtol=1e-9)
    assert len(np.unique(scores)) == 64  # also neurons without weight have a rank


def worker_of(train: Sequence[Any], dev: Sequence[Any], labels: Sequence[int], seed: int = 0) -> Any:
    """A probe fed by hand, with responses ``(examples, neurons)`` of one layer."""
    counts: Any = {split: tuple(np.bincount(labels).tolist()) for split in ("calibration", "validation")}
    names = tuple("abc"[: max(labels) + 1])
    examples: Any = dict.fromkeys(counts, len(labels))
    ffn = lone_ffn(len(train[0]))
    chosen = Settings(labels=names, class_counts=counts, examples=examples, seed=seed, dtype=torch.float64)
    (worker,) = prepare_criteria([ffn], ["linear_probe"], chosen)
    for read, rows in zip(READS, (train, dev), strict=True):
        feed(worker, read, ffn, rows, labels)
    return worker.finish(ffn)


def responses(seed: int, neurons: int = 6, examples: int = 40) -> tuple[np.ndarray, np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    labels = [number % 2 for number in range(examples)]
    train, dev = (rng.normal(size=(examples, neurons)) + np.outer(labels, rng.normal(size=neurons)) for _ in range(2))
    return train, dev, labels


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-4, 0.5, 1024.0]), shift=st.sampled_from([0.0, 3.0]))
def test_units_and_offsets_of_responses_change_nothing(seed: int, scale: float, shift: float) -> None:
    train, dev, labels = responses(seed)
    plain = worker_of(train.tolist(), dev.tolist(), labels)
    factors, shifts = np.ones(6), np.zeros(6)
    factors[[1, 4]], shifts[[2, 4]] = scale, shift
    moved = worker_of((train * factors + shifts).tolist(), (dev * factors + shifts).tolist(), labels)
    np.testing.assert_allclose(moved.details["weights"], plain.details["weights"], rtol=1e-3, atol=1e-5)
    assert ranking(moved.scores).tolist() == ranking(plain.scores).tolist()


def test_constant_neurons_weigh_nothing_and_break_nothing() -> None:
    train, dev, labels = responses(0)
    train[:, [0, 3]] = dev[:, [0, 3]] = [5.0, 0.0]
    dev[7, 0] = 50.0
    found = worker_of(train.tolist(), dev.tolist(), labels)
    assert np.isfinite(found.scores).all()
    assert (found.details["weights"][:, [0, 3]] == 0).all()
    assert (np.delete(found.details["weights"], [0, 3], axis=1) != 0).all()
    assert max(found.scores[[0, 3]]) < min(np.delete(found.scores, [0, 3]))
    silent = worker_of(np.ones((40, 3)).tolist(), np.ones((40, 3)).tolist(), labels)
    assert silent.scores.tolist() == [silent.scores[0]] * 3


def test_a_class_that_gets_no_weight_says_nothing_about_any_neuron() -> None:
    """Two examples of a class are too few for the penalty to let it have weights."""
    rng = np.random.default_rng(0)
    labels = [0, 1] * 50 + [2] * 2
    train, dev = (rng.normal(size=(102, 30)) for _ in range(2))
    for responses in (train, dev):
        responses[:, 7] += 4 * (np.array(labels) == 1)
    found = worker_of(train.tolist(), dev.tolist(), labels)
    weights = found.details["weights"]
    assert not weights[2].any() and weights[0].any()
    np.testing.assert_allclose(found.scores, naive_places(weights, naive_gaps(train, labels)), rtol=1e-9)
    assert found.scores[7] > 100 and np.sort(found.scores)[15] <= 1


def test_the_same_seed_gives_the_same_probe_and_another_seed_nearly_the_same() -> None:
    """The problem has one solution; the seed only orders the steps on the way to it."""
    train, dev, labels = (each if isinstance(each, list) else each.tolist() for each in responses(3, examples=70))
    first, second, other = (worker_of(train, dev, labels, seed).details["weights"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(other, first, rtol=0.05, atol=0.01 * np.abs(first).max())


def test_weights_are_those_that_minimise_the_stated_objective() -> None:
    """Where the objective is least, its gradient is zero at weights that are not, and within the L1 term elsewhere."""
    train, dev, labels = responses(5, neurons=8, examples=200)
    found = worker_of(train.tolist(), dev.tolist(), labels)
    rows = (train - train.mean(axis=0)) / train.std(axis=0)
    weights = 2 * found.details["weights"][1]  # of the margin between both classes
    assert (weights != 0).any()
    chances = [1 / (1 + np.exp(-(rows @ weights + bias))) for bias in np.linspace(-2, 2, 4001)]
    chance = min(chances, key=lambda chance: abs(float(np.mean(chance - labels))))
    gradient = rows.T @ (chance - labels) / len(labels)
    misses = []
    for penalty in (0.1, 0.01):
        at = gradient + penalty / 2 * (weights + np.sign(weights))
        misses.append(max(np.abs(at[weights != 0]).max(), (np.abs(at[weights == 0]) - penalty / 2).max(initial=0)))
    assert min(misses) < 2e-3


def test_probes_are_trained_on_calibration_and_chosen_on_validation() -> None:
    """Only the first neuron tells calibration's labels; what validation says can only choose the penalties."""
    rng = np.random.default_rng(0)
    labels = [number % 2 for number in range(64)]
    train, dev = rng.normal(size=(64, 4)), rng.normal(size=(64, 4))
    train[:, 0] += 6 * np.array(labels)
    dev[:, 1] += 6 * np.array(labels)
    found = worker_of(train.tolist(), dev.tolist(), labels)
    assert ranking(found.scores)[0] == 0
    weights = found.details["weights"]
    assert weights[1, 0] > 0 > weights[0, 0]

"""Average precision against scikit-learn's, in both directions and for several classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import PADDINGS, THREE, activations_alone, by_site, data_of, details_by_site, feed, lone_ffn, score
from sklearn.metrics import average_precision_score
from tiny import tiny_bert

from skillprune.activations import Reading
from skillprune.scoring import CRITERIA, Settings, precision, prepare_criteria

(READ,) = CRITERIA["average_precision"].reads


Detection = tuple[float, int, float, float]


def expected(responses: np.ndarray, labels: np.ndarray, label: int) -> Detection:
    """Average precision, direction, median over positives and precision above chance of one neuron and class.

    The direction is 0 where both are the same but for rounding.
    """
    positive = labels == label
    firing = average_precision_score(positive, responses)
    silent = average_precision_score(positive, -responses)
    best, chance = max(firing, silent), positive.mean()
    direction = 0 if abs(firing - silent) < 1e-12 else 1 if firing > silent else -1
    return best, direction, float(np.median(responses[positive])), (best - chance) / (1 - chance)


def assert_equal(found: dict[str, np.ndarray], scores: np.ndarray, responses: np.ndarray, labels: np.ndarray) -> None:
    for neuron in range(responses.shape[1]):
        classes = [expected(responses[:, neuron], labels, label) for label in sorted(set(labels.tolist()))]
        precision, direction, median, above = (list(column) for column in zip(*classes, strict=True))
        np.testing.assert_allclose(found["average_precision"][:, neuron], precision, rtol=1e-9)
        np.testing.assert_allclose(found["median_response"][:, neuron], median, rtol=1e-9, atol=1e-12)
        told = found["direction"][:, neuron].tolist()
        assert set(told) <= {-1, 1}
        assert [mine if theirs else 0 for mine, theirs in zip(told, direction, strict=True)] == direction
        assert scores[neuron] == pytest.approx(max(above), rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(
    labels=st.permutations([0, 0, 1, 1, 1, 2, 2]).flatmap(
        lambda base: st.lists(st.integers(0, 2), max_size=12).map(lambda more: [*base, *more])
    ),
    data=st.data(),
)
def test_any_responses_with_ties_equal_scikit_learn(labels: list[int], data: st.DataObject) -> None:
    neurons = 3
    values = st.lists(st.integers(-3, 3), min_size=neurons, max_size=neurons)
    rows = data.draw(st.lists(values, min_size=len(labels), max_size=len(labels)))
    ffn = lone_ffn(neurons)
    counts: Any = {"calibration": tuple(labels.count(label) for label in range(3))}
    chosen = Settings(labels=("a", "b", "c"), class_counts=counts, examples={"calibration": len(labels)})
    (worker,) = prepare_criteria([ffn], ["average_precision"], chosen)
    feed(worker, READ, ffn, rows, labels)
    found = worker.finish(ffn)
    assert_equal(dict(found.details), found.scores, np.array(rows, dtype=np.float64), np.array(labels))


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("position", ["max", "mean"])
def test_scores_of_a_model_equal_scikit_learn(position: Any, padding: dict[str, Any]) -> None:
    compare_with_scikit_learn(32, position, padding, step=3)


def test_more_neurons_than_are_ranked_at_once_are_all_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "ENTRIES", 75)  # of ten examples, seven neurons at a time
    compare_with_scikit_learn(32, "max", {"batch_size": 4}, step=1)


def compare_with_scikit_learn(width: int, position: Any, padding: dict[str, Any], step: int) -> None:
    """Every ``step``-th neuron of a model of one layer."""
    model = tiny_bert(num_labels=3, layers=1, width=width).double()
    data = data_of(THREE, positions=True, **padding)
    (found,) = score(model, data, "average_precision", reading=Reading(position))
    (examples,) = activations_alone(model, data.calibration).values()
    pool = np.max if position == "max" else np.mean
    responses = np.array([pool(np.array(example), axis=0) for example in examples])
    details = {name: details_by_site(found, name)["encoder", 0] for name in found.details}
    assert all(each.shape == (3, width) for each in details.values())
    chosen = {name: each[:, ::step] for name, each in details.items()}
    assert_equal(chosen, by_site(found)["encoder", 0][::step], responses[:, ::step], np.array(THREE))


def test_by_hand_a_perfect_detector_is_one_and_a_constant_neuron_is_at_chance() -> None:
    """The second neuron falls silent for class b, so its negative detects it; the third never moves."""
    labels = [0, 0, 0, 1, 1]
    ffn = lone_ffn(3)
    chosen = Settings(labels=("a", "b"), class_counts={"calibration": (3, 2)}, examples={"calibration": 5})
    (worker,) = prepare_criteria([ffn], ["average_precision"], chosen)
    rows = [(1, 9, 4), (2, 8, 4), (0, 7, 4), (5, 1, 4), (8, 2, 4)]
    feed(worker, READ, ffn, rows, labels)
    found = worker.finish(ffn)
    np.testing.assert_allclose(found.scores, [1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(found.details["average_precision"], [[1, 1, 3 / 5], [1, 1, 2 / 5]])
    assert found.details["direction"].tolist() == [[-1, 1, 1], [1, -1, 1]]
    np.testing.assert_allclose(found.details["median_response"], [[1, 8, 4], [6.5, 1.5, 4]])

"""Metrics against scikit-learn, McNemar against a sum of binomials, and the paired bootstrap against closed forms."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from tiny import LABELS, TINY, tiny_batches

from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.evaluation import (
    METRICS,
    Predictions,
    accuracy,
    compare,
    macro_f1,
    mcnemar,
    predict_split,
    torch_predictor,
)

answers = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


def integers(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def predictions(rights: list[bool]) -> Predictions:
    """Answers to a question whose right class is 1 throughout, right where ``rights`` says so."""
    return Predictions(integers([1] * len(rights)), integers([int(right) for right in rights]))


def pair(both: int, lost: int, won: int, neither: int) -> tuple[Predictions, Predictions]:
    """Two models: ``lost`` examples only the first gets right, ``won`` only the second."""
    first = [True] * both + [True] * lost + [False] * won + [False] * neither
    second = [True] * both + [False] * lost + [True] * won + [False] * neither
    return predictions(first), predictions(second)


@settings(deadline=None)
@given(answers)
def test_accuracy_is_the_share_of_right_answers(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = (integers(list(column)) for column in zip(*pairs, strict=True))
    right = sum(1 for label, answer in pairs if label == answer)
    assert accuracy(labels, predicted) == pytest.approx(right / len(pairs), rel=1e-12)


@settings(deadline=None)
@given(answers)
def test_macro_f1_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = (integers(list(column)) for column in zip(*pairs, strict=True))
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert macro_f1(labels, predicted) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_macro_f1_of_a_majority_answer_by_hand() -> None:
    """Class 0: precision 3/4, recall 1, F1 6/7; class 1: F1 0. Class 2 does not occur and does not count."""
    assert macro_f1(integers([0, 0, 0, 1]), integers([0, 0, 0, 0])) == pytest.approx(3 / 7)


@pytest.mark.parametrize("family", sorted(TINY))
def test_the_torch_predictor_answers_as_every_example_alone_would(family: str) -> None:
    model = TINY[family](num_labels=3)
    predict = torch_predictor(model.train())
    alone = TINY[family](num_labels=3)
    for batch in tiny_batches():
        logits = predict(batch)
        assert logits.dtype == np.float32
        for row, length in enumerate(batch.mask.sum(dim=1).tolist()):
            with torch.no_grad():
                expected = alone(input_ids=batch.inputs["input_ids"][row : row + 1, :length]).logits[0]
            np.testing.assert_allclose(logits[row], expected.numpy(), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(range(10)), batch_size=st.integers(1, 10))
def test_answers_come_back_in_the_order_of_the_split(order: list[int], batch_size: int) -> None:
    def predict(batch: Batch) -> NDArray[np.float32]:
        """Answers ``(7 * example) % 5``, so that every example's answer can be told from its neighbour's."""
        return np.eye(5, dtype=np.float32)[(7 * batch.indices.numpy()) % 5]

    told: list[tuple[str, int, int]] = []
    batches = tiny_batches(order=order, batch_size=batch_size)
    found = predict_split(predict, batches, what="test", progress=lambda *step: told.append(step))
    assert found.labels.tolist() == list(LABELS)
    assert found.predicted.tolist() == [(7 * example) % 5 for example in range(10)]
    assert told == [("test", done, len(batches)) for done in range(len(batches) + 1)]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_is_an_error_that_names_the_split_and_the_batch(broken: float) -> None:
    def predict(batch: Batch) -> NDArray[np.float32]:
        logits = np.zeros((len(batch.labels), 2), dtype=np.float32)
        logits[0, 1] = broken if 5 in batch.indices else 0.0
        return logits

    with pytest.raises(DataError, match="validation.*not finite.*batch 1"):
        predict_split(predict, tiny_batches(batch_size=4), what="validation")


def binomial_tail(lost: int, won: int) -> float:
    """Twice the smaller tail of fair coin throws, in exact arithmetic."""
    throws = lost + won
    ways = sum(math.comb(throws, heads) for heads in range(min(lost, won) + 1))
    return float(min(Fraction(1), Fraction(2 * ways, 2**throws)))


@settings(deadline=None)
@given(both=st.integers(0, 3), lost=st.integers(0, 60), won=st.integers(0, 60), neither=st.integers(1, 3))
def test_mcnemar_is_the_exact_sum_of_binomials(both: int, lost: int, won: int, neither: int) -> None:
    first, second = pair(both, lost, won, neither)
    assert mcnemar(first, second) == pytest.approx(binomial_tail(lost, won), rel=1e-9)
    assert mcnemar(second, first) == pytest.approx(binomial_tail(lost, won), rel=1e-9)


def test_mcnemar_by_hand() -> None:
    """Five against none: 2 / 2**5. One against five: 2 * (1 + 6) / 2**6."""
    assert mcnemar(*pair(10, 5, 0, 3)) == pytest.approx(2 / 32)
    assert mcnemar(*pair(0, 1, 5, 0)) == pytest.approx(14 / 64)


def test_two_wrong_answers_that_differ_are_no_discordance() -> None:
    labels = integers([0, 0, 0])
    first, second = Predictions(labels, integers([1, 2, 1])), Predictions(labels, integers([2, 1, 2]))
    assert mcnemar(first, second) == 1.0
    assert compare(first, second, metric="accuracy", seed=0, draws=50).agreement == 0.0


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_a_model_against_itself_differs_in_nothing(metric: str) -> None:
    first, _ = pair(20, 5, 5, 10)
    found = compare(first, first, metric=metric, seed=3, draws=200)
    assert (found.difference, found.low, found.high, found.p_value, found.agreement) == (0.0, 0.0, 0.0, 1.0, 1.0)


def test_all_wrong_against_all_right() -> None:
    found = compare(*pair(0, 0, 12, 0), metric="accuracy", seed=0, draws=200)
    assert (found.difference, found.low, found.high, found.agreement) == (1.0, 1.0, 1.0, 0.0)
    assert found.p_value == pytest.approx(2 / 2**12)


def test_the_interval_of_an_accuracy_difference_is_that_of_the_closed_form() -> None:
    """Difference (c - b) / N, standard error sqrt(b + c - (b - c)**2 / N) / N; two proportions unpaired are wider."""
    count, lost, won = 2000, 120, 60
    found = compare(*pair(1600, lost, won, 220), metric="accuracy", seed=0, draws=4000)
    error = math.sqrt(lost + won - (lost - won) ** 2 / count) / count
    assert found.difference == pytest.approx((won - lost) / count)
    assert found.low == pytest.approx(found.difference - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.difference + 1.96 * error, abs=0.15 * error)
    assert found.agreement == pytest.approx(1 - (lost + won) / count)


def test_the_difference_of_macro_f1_is_scikit_learns_and_lies_in_its_interval() -> None:
    rng = np.random.default_rng(5)
    labels = rng.choice(3, p=[0.7, 0.2, 0.1], size=300)
    first, second = (
        Predictions(labels, np.where(rng.random(300) < right, labels, rng.integers(0, 3, 300))) for right in (0.8, 0.6)
    )
    before, after = (f1_score(labels, model.predicted, average="macro") for model in (first, second))
    found = compare(first, second, metric="macro_f1", seed=0, draws=500)
    assert found.difference == pytest.approx(after - before)
    assert found.low < found.difference < found.high < 0


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_the_same_seed_gives_the_same_interval_and_the_sides_mirror_it(metric: str) -> None:
    first, second = pair(30, 12, 5, 13)
    found, again, mirrored = (
        compare(*models, metric=metric, seed=1, draws=300)
        for models in ((first, second), (first, second), (second, first))
    )
    assert found == again
    assert (mirrored.difference, mirrored.low, mirrored.high) == pytest.approx(
        (-found.difference, -found.high, -found.low)
    )
    other = compare(first, second, metric=metric, seed=2, draws=300)
    assert (other.low, other.high) != (found.low, found.high)

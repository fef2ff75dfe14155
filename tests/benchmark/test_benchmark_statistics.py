"""The interval of a speed-up, against closed forms, naive loops and simulated noise whose truth is known."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from skillprune.benchmark import Ratio, paired_speedup, quotient, signed_rank_p
from skillprune.benchmark.statistics import block_length, bootstrap_medians

times = st.floats(0.01, 1000.0)
pairs = st.lists(st.tuples(times, times), min_size=2, max_size=40).map(np.array)


def close(one: Ratio, other: Ratio) -> bool:
    both = zip((one.value, one.low, one.high), (other.value, other.low, other.high), strict=True)
    return all(math.isclose(a, b, rel_tol=1e-9) for a, b in both)


def noise(rounds: int, persistence: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """First-order autoregressive noise of unit innovations, started in its stationary distribution."""
    values = [rng.normal() / math.sqrt(1 - persistence**2)]
    for _ in range(rounds - 1):
        values.append(persistence * values[-1] + rng.normal())
    return np.array(values)


def test_constant_times_give_their_exact_quotient() -> None:
    assert close(paired_speedup([3.0] * 20, [2.0] * 20, seed=0), Ratio(1.5, 1.5, 1.5))


def test_the_estimate_is_the_median_of_paired_quotients() -> None:
    rng = np.random.default_rng(5)
    reference, subject = rng.uniform(1, 9, 31), rng.uniform(1, 9, 31)
    naive = statistics.median(a / b for a, b in zip(reference, subject, strict=True))  # odd count: log changes nothing
    assert math.isclose(paired_speedup(reference, subject, seed=0).value, naive)


@pytest.mark.parametrize(
    ("openings", "rounds", "block", "draws"),
    [(1, 7, 3, 40), (1, 12, 4, 40), (3, 5, 1, 40), (4, 5, 5, 40), (6, 10, 3, 40), (2, 501, 8, 1100)],
)
def test_resampling_equals_a_naive_loop(openings: int, rounds: int, block: int, draws: int) -> None:
    values = np.random.default_rng(1).normal(size=(openings, rounds))
    rng = np.random.default_rng(7)
    drawn = rng.integers(0, openings, size=(draws, openings))
    starts = rng.integers(0, rounds, size=(draws, openings, math.ceil(rounds / block)))
    naive = []
    for draw in range(draws):
        resample: list[float] = []
        for place, opening in enumerate(drawn[draw]):
            glued = [values[opening, (start + step) % rounds] for start in starts[draw, place] for step in range(block)]
            resample += glued[:rounds]
        naive.append(statistics.median(resample))
    np.testing.assert_allclose(bootstrap_medians(values, block=block, draws=draws, seed=7), naive, rtol=1e-12)


def test_the_interval_covers_the_truth_where_openings_differ_and_one_long_opening_would_not() -> None:
    rng = np.random.default_rng(5)
    covered = {"openings": 0, "one": 0}
    for number in range(200):
        logs = 0.02 * rng.normal(size=(6, 1)) + 0.02 * rng.normal(size=(6, 10))
        times = {"openings": np.exp(logs), "one": np.exp(0.02 * rng.normal() + 0.02 * rng.normal(size=60))}
        for name, reference in times.items():
            found = paired_speedup(reference, np.ones_like(reference), seed=number)
            covered[name] += found.low <= 1.0 <= found.high
    assert covered["openings"] >= 0.87 * 200
    assert covered["one"] < 0.5 * 200


@given(st.integers(1, 5000))
def test_a_block_is_the_smallest_whole_cube_root_that_suffices(rounds: int) -> None:
    assert block_length(rounds) == next(block for block in range(1, 100) if block**3 >= rounds)


@given(pairs)
@settings(max_examples=30, deadline=None)
def test_swapping_the_pair_inverts_the_ratio(pair: NDArray[np.float64]) -> None:
    there = paired_speedup(pair[:, 0], pair[:, 1], seed=3)
    back = paired_speedup(pair[:, 1], pair[:, 0], seed=3)
    assert there.low <= there.high
    assert close(there, Ratio(1 / back.value, 1 / back.high, 1 / back.low))


@given(pairs, st.floats(0.1, 10.0))
@settings(max_examples=30, deadline=None)
def test_what_slows_a_whole_round_cancels(pair: NDArray[np.float64], factor: float) -> None:
    slow = np.linspace(1.0, factor, len(pair))
    plain = paired_speedup(pair[:, 0], pair[:, 1], seed=3)
    assert close(paired_speedup(slow * pair[:, 0], slow * pair[:, 1], seed=3), plain)
    faster = paired_speedup(pair[:, 0], pair[:, 1] / factor, seed=3)
    assert close(faster, Ratio(plain.value * factor, plain.low * factor, plain.high * factor))


def test_more_confidence_is_a_wider_interval_and_a_seed_repeats_it() -> None:
    rng = np.random.default_rng(2)
    reference, subject = rng.uniform(1, 2, 60), rng.uniform(1, 2, 60)
    usual = paired_speedup(reference, subject, seed=1)
    wide = paired_speedup(reference, subject, seed=1, confidence=0.995)
    assert wide.low < usual.low < usual.value < usual.high < wide.high
    assert paired_speedup(reference, subject, seed=1) == usual


def test_the_interval_covers_the_truth_under_autocorrelated_noise() -> None:
    rng = np.random.default_rng(2024)
    truth, covered, simulations = 1.4, 0, 200
    for number in range(simulations):
        shared = np.exp(noise(120, 0.9, rng))  # a busy machine slows both of a pair
        reference = truth * shared * np.exp(0.05 * noise(120, 0.3, rng))
        found = paired_speedup(reference, shared * np.exp(0.05 * noise(120, 0.3, rng)), seed=number)
        covered += found.low <= truth <= found.high
    assert covered >= 0.9 * simulations
    assert covered < simulations  # an interval that always covers claims too little


def test_blocks_make_the_interval_honest_where_single_rounds_do_not() -> None:
    rng = np.random.default_rng(11)
    misses = {1: 0, block_length(60): 0}
    for number in range(100):
        values = noise(60, 0.6, rng)
        for block in misses:
            low, high = np.quantile(
                bootstrap_medians(values[None], block=block, draws=400, seed=number), [0.025, 0.975]
            )
            misses[block] += not low <= 0.0 <= high
    assert misses[block_length(60)] < 0.75 * misses[1]


@pytest.mark.parametrize(
    ("reference", "subject"),
    [
        ([], []),
        ([1.0, 2.0], [1.0]),
        ([[[1.0]]], [[[1.0]]]),
        ([1.0, 0.0], [1.0, 1.0]),
        ([1.0], [-1.0]),
        ([1.0], [math.nan]),
    ],
)
def test_times_that_make_no_pairs_are_refused(reference: list[float], subject: list[float]) -> None:
    with pytest.raises(ValueError, match="round"):
        paired_speedup(reference, subject, seed=0)


# ---- the quotient of two ratios

sides = st.floats(1.0, 2.0)
ratios = st.builds(lambda value, low, high: Ratio(value, value / low, value * high), st.floats(0.1, 20.0), sides, sides)


def log_normal(truth: float, error: float, rng: np.random.Generator) -> Ratio:
    """An estimate with a normal error of known size on the log scale, and its 95 % interval."""
    centre = math.log(truth) + error * rng.normal()
    return Ratio(math.exp(centre), math.exp(centre - 1.959964 * error), math.exp(centre + 1.959964 * error))


@given(st.floats(0.1, 9.0), st.floats(0.1, 9.0), st.floats(0.001, 0.3), st.floats(0.001, 0.3))
def test_with_symmetric_intervals_the_quotient_has_the_closed_form(a: float, b: float, one: float, two: float) -> None:
    first, second = (
        Ratio(value, value * math.exp(-half), value * math.exp(half)) for value, half in ((a, one), (b, two))
    )
    half = math.sqrt(one**2 + two**2)
    assert close(quotient(first, second), Ratio(a / b, a / b * math.exp(-half), a / b * math.exp(half)))


def test_each_end_is_made_of_the_sides_that_lead_there() -> None:
    """One can be lower by 3 and higher by 5, the other lower by 12 and higher by 4 (in logs): 3-4-5 and 5-12-13."""
    one = Ratio(1.0, math.exp(-0.3), math.exp(0.5))
    other = Ratio(1.0, math.exp(-1.2), math.exp(0.4))
    assert close(quotient(one, other), Ratio(1.0, math.exp(-0.5), math.exp(1.3)))


@given(ratios, ratios, st.integers(1, 20))
def test_swapping_two_ratios_inverts_their_quotient(one: Ratio, other: Ratio, comparisons: int) -> None:
    there, back = (quotient(*pair, comparisons=comparisons) for pair in ((one, other), (other, one)))
    assert there.low <= there.value <= there.high
    assert close(there, Ratio(1 / back.value, 1 / back.high, 1 / back.low))


@given(ratios, st.floats(0.2, 1.0))
def test_a_ratio_over_itself_is_one_and_a_smaller_one_moves_the_whole_interval(ratio: Ratio, factor: float) -> None:
    same = quotient(ratio, ratio)
    assert same.value == 1.0 and same.low <= 1.0 <= same.high
    slower = quotient(Ratio(*(factor * each for each in (ratio.value, ratio.low, ratio.high))), ratio)
    assert close(slower, Ratio(*(factor * each for each in (same.value, same.low, same.high))))


def test_the_interval_of_a_quotient_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    covered = sum(
        found.low <= 1.8 / 1.5 <= found.high
        for found in (quotient(log_normal(1.8, 0.03, rng), log_normal(1.5, 0.01, rng)) for _ in range(4000))
    )
    assert covered / 4000 == pytest.approx(0.95, abs=0.014)  # four standard errors


def test_intervals_of_several_quotients_cover_together_as_often_as_one() -> None:
    rng = np.random.default_rng(9)
    together = {1: 0, 5: 0}
    for _ in range(2000):
        pairs = [(log_normal(2.0, 0.02, rng), log_normal(2.0, 0.02, rng)) for _ in range(5)]
        for comparisons in together:
            found = [quotient(*pair, comparisons=comparisons) for pair in pairs]
            together[comparisons] += all(each.low <= 1.0 <= each.high for each in found)
    assert together[5] / 2000 == pytest.approx(0.95, abs=0.02)
    assert together[1] / 2000 < 0.85  # without the correction one of five misses too often


def test_an_end_on_the_wrong_side_of_its_value_counts_as_the_value() -> None:
    assert close(quotient(Ratio(2.0, 2.1, 2.2), Ratio(1.0, 1.0, 1.0)), Ratio(2.0, 2.0, 2.2))


@pytest.mark.parametrize(
    ("one", "comparisons"),
    [(Ratio(0.0, 1.0, 1.0), 1), (Ratio(1.0, -1.0, 1.0), 1), (Ratio(1.0, 1.0, math.nan), 1), (Ratio(1.0, 1.0, 1.0), 0)],
)
def test_what_makes_no_quotient_is_refused(one: Ratio, comparisons: int) -> None:
    for pair in ((one, Ratio(1.0, 1.0, 1.0)), (Ratio(1.0, 1.0, 1.0), one)):
        with pytest.raises(ValueError, match="quotient"):
            quotient(*pair, comparisons=comparisons)


def enumerated_p(differences: list[float]) -> float:
    """Two-sided p-value of the signed-rank test over all signs that chance could have given; no ties, no zeros."""
    ranks = [sorted(map(abs, differences)).index(abs(each)) + 1 for each in differences]
    middle = sum(ranks) / 2

    def distance(signs: tuple[bool, ...]) -> float:
        return abs(sum(rank for rank, positive in zip(ranks, signs, strict=True) if positive) - middle)

    found = distance(tuple(each > 0 for each in differences))
    every = list(itertools.product([True, False], repeat=len(ranks)))
    return sum(distance(signs) >= found for signs in every) / len(every)


@pytest.mark.parametrize("openings", [3, 6, 9])
@pytest.mark.parametrize("seed", range(4))
def test_the_p_value_is_that_of_all_signs_of_the_openings(openings: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, subject = rng.uniform(1, 2, (openings, 5)), rng.uniform(0.8, 2, (openings, 5))
    differences = [
        statistics.median(math.log(a / b) for a, b in zip(*rows, strict=True))
        for rows in zip(reference.tolist(), subject.tolist(), strict=True)
    ]
    assert signed_rank_p(reference, subject) == pytest.approx(enumerated_p(differences))
    assert signed_rank_p(subject, reference) == pytest.approx(signed_rank_p(reference, subject))


def test_the_smallest_p_value_is_bounded_by_the_number_of_openings_however_many_rounds_they_have() -> None:
    for openings, smallest in ((6, 2 / 2**6), (12, 2 / 2**12)):
        subject = 1.0 + np.arange(openings * 40).reshape(openings, 40) / 1000
        assert signed_rank_p(3 * np.ones((openings, 40)), subject) == pytest.approx(smallest)


def test_openings_without_a_difference_are_left_out_of_the_p_value() -> None:
    reference = np.array([[5.0]] * 6)
    subject = np.array([[5.0], [4.0], [3.0], [2.0], [1.0], [5.0]])
    assert signed_rank_p(reference, subject) == pytest.approx(2 / 2**4)
    assert signed_rank_p(reference, reference) == 1.0


def test_the_p_value_of_equal_subjects_is_small_as_seldom_as_it_says_though_rounds_follow_each_other() -> None:
    """Openings that differ and rounds that depend on each other: a test over all rounds would cry wolf."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        shifts = rng.normal(size=(6, 1, 2))
        times = np.exp(0.01 * (shifts + np.stack([noise(10, 0.8, rng) for _ in range(12)]).reshape(6, 10, 2)))
        alarms += signed_rank_p(times[..., 0], times[..., 1]) <= 2 / 2**6
    assert alarms / 400 < 2 / 2**6 + 3 * math.sqrt(0.03 * 0.97 / 400)

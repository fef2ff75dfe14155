"""The interval of a speed-up, against closed forms, naive loops and simulated noise whose truth is known."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from skillprune.benchmark import Ratio, paired_speedup
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

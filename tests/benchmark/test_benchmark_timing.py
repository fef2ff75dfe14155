"""Order, warm-up, repeats and retries of timed rounds, on a clock that only moves when a timed thing says so."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from itertools import chain, repeat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillprune.benchmark import paired_speedup
from skillprune.benchmark.timing import Controlled, Run, measure_controlled, schedule, time_runs, warm_up
from skillprune.progress import silent

MS = 1_000_000


class Clock:
    """Nanoseconds that pass only while a run made by `run` is running; remembers which one ran."""

    def __init__(self) -> None:
        self.now = 0
        self.ran: list[str] = []

    def __call__(self) -> int:
        return self.now

    def run(self, name: str, costs: Iterator[int]) -> Run:
        def once() -> None:
            self.ran.append(name)
            self.now += next(costs)

        return once


@given(st.integers(1, 9), st.integers(1, 60), st.integers(0, 2**32))
def test_every_round_runs_everything_once(runs: int, rounds: int, seed: int) -> None:
    order = schedule(runs, rounds, seed=[seed])
    assert order.shape == (rounds, runs)
    assert all(sorted(row) == list(range(runs)) for row in order.tolist())
    np.testing.assert_array_equal(order, schedule(runs, rounds, seed=[seed]))


def test_every_place_in_a_round_is_equally_likely() -> None:
    order = schedule(4, 4000, seed=[0])
    counts = np.array([[np.sum(order[:, place] == run) for run in range(4)] for place in range(4)])
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75))  # five standard deviations
    assert len({tuple(row) for row in order.tolist()}) == 24


def test_rounds_are_interleaved_in_the_drawn_order() -> None:
    clock = Clock()
    names = ["a", "b", "c"]
    samples = time_runs(
        [clock.run(name, repeat(cost * MS)) for name, cost in zip(names, (4, 2, 8), strict=True)],
        6,
        seed=[1],
        timer=clock,
        what="",
        progress=silent,
    )
    assert samples.repeats == 1
    np.testing.assert_allclose(samples.ms, [[4.0, 2.0, 8.0]] * 6)
    timed = clock.ran[-18:]
    assert [timed[start : start + 3] for start in range(0, 18, 3)] == [
        [names[run] for run in row] for row in schedule(3, 6, seed=[1]).tolist()
    ]


@pytest.mark.parametrize(("fastest", "repeats"), [(2 * MS, 1), (2 * MS - 1, 2), (MS, 2), (300_000, 7), (1000, 2000)])
def test_short_runs_are_repeated_equally_often_until_a_sample_is_long_enough(fastest: int, repeats: int) -> None:
    clock = Clock()
    runs = [clock.run("fast", repeat(fastest)), clock.run("slow", repeat(3 * fastest))]
    samples = time_runs(runs, 1, seed=[0], timer=clock, what="", progress=silent)
    assert samples.repeats == repeats
    np.testing.assert_allclose(samples.ms, [[fastest / MS, 3 * fastest / MS]])
    assert clock.ran[-2 * repeats :].count("slow") == clock.ran[-2 * repeats :].count("fast") == repeats


@pytest.mark.parametrize("was_on", [True, False])
def test_no_garbage_is_collected_in_a_round(was_on: bool) -> None:
    clock, seen = Clock(), []
    step = clock.run("a", repeat(5 * MS))

    def run() -> None:
        step()
        seen.append(gc.isenabled())

    def fail() -> None:
        run()
        if len(seen) > 100 and not gc.isenabled():
            raise KeyboardInterrupt

    try:
        gc.enable() if was_on else gc.disable()
        time_runs([run], 120, seed=[0], timer=clock, what="", progress=silent)
        assert not any(seen[-120:])
        assert gc.isenabled() is was_on
        with pytest.raises(KeyboardInterrupt):
            time_runs([fail], 1, seed=[0], timer=clock, what="", progress=silent)
        assert gc.isenabled() is was_on
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("costs", "runs", "median"),
    [
        (repeat(MS), 10, MS),
        # one slow first run does not count, five slow ones do
        (chain([90 * MS], repeat(MS)), 10, MS),
        (chain([9 * MS] * 5, repeat(MS)), 13, MS),
        # falling by 4 % from window to window is stable, by half with every run never is
        (chain([100] * 5, [96] * 5), 10, 96),
        ((2 ** (200 - run) for run in range(200)), 1, 2**200),
        ((int(9e8 * 0.9**run) for run in range(200)), 100, int(9e8 * 0.9**97)),
        # long runs: none is started once ten seconds have passed
        (repeat(6000 * MS), 2, 6000 * MS),
        (repeat(2500 * MS), 4, 2500 * MS),
    ],
)
def test_warm_up_ends_when_stable_or_when_it_takes_too_long(costs: Iterator[int], runs: int, median: int) -> None:
    clock = Clock()
    assert warm_up(clock.run("a", costs), clock) == median
    assert len(clock.ran) == runs


def controlled(
    attempts: list[Callable[[Clock], list[Run]]], comparisons: int = 1, rounds: int = 12
) -> tuple[Controlled, int]:
    """What comes of a list of tries, each of which says what is opened; and how many were used."""
    clock, waiting = Clock(), list(attempts)
    found = measure_controlled(
        lambda: waiting.pop(0)(clock),
        rounds=rounds,
        comparisons=comparisons,
        seed=[0],
        timer=clock,
        what="",
        progress=silent,
    )
    return found, len(attempts) - len(waiting)


def same(clock: Clock) -> list[Run]:
    return [clock.run(name, repeat(cost * MS)) for name, cost in (("dense", 8), ("pruned", 4), ("control", 8))]


def different(clock: Clock) -> list[Run]:
    return [clock.run(name, repeat(cost * MS)) for name, cost in (("dense", 9), ("pruned", 4), ("control", 8))]


def test_a_control_that_holds_is_not_retried() -> None:
    found, used = controlled([same])
    assert (found.retries, used, found.samples.ms.shape) == (0, 1, (12, 3))
    assert found.ratio.low == found.ratio.value == found.ratio.high == 1.0


def test_a_control_that_is_off_is_opened_and_measured_again_with_twice_the_rounds() -> None:
    found, used = controlled([different, same])
    assert (found.retries, used, found.samples.ms.shape) == (1, 2, (24, 3))
    assert found.ratio.value == 1.0  # nothing of the first try is left


def test_the_third_try_is_kept_even_when_off() -> None:
    found, used = controlled([different, different, different, same])
    assert (found.retries, used, found.samples.ms.shape) == (2, 3, (48, 3))
    assert found.ratio.low == pytest.approx(9 / 8)


def noisy(seed: int) -> tuple[list[int], list[int]]:
    """Sixty round times, in nanoseconds, of each of an identical pair."""
    rng = np.random.default_rng(seed)
    first, second = (rng.uniform(8 * MS, 9 * MS, 60).astype(int).tolist() for _ in range(2))
    return first, second


def test_more_shapes_make_the_control_more_patient() -> None:
    def excludes(seed: int, confidence: float) -> bool:
        ratio = paired_speedup(*noisy(seed), seed=[0], confidence=confidence)
        return not ratio.low <= 1.0 <= ratio.high

    seed = next(seed for seed in range(1000) if excludes(seed, 0.95) and not excludes(seed, 1 - 0.05 / 20))

    def attempt(clock: Clock) -> list[Run]:
        return [clock.run(str(n), chain([8 * MS] * 10, costs)) for n, costs in enumerate(noisy(seed))]

    alone, _ = controlled([attempt, same], comparisons=1, rounds=60)
    among_twenty, _ = controlled([attempt, same], comparisons=20, rounds=60)
    assert (alone.retries, among_twenty.retries) == (1, 0)

"""Order, warm-up, repeats and retries of timed rounds, on a clock that only moves when a timed thing says so."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, permutations, repeat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from skillprune.benchmark import paired_speedup
from skillprune.benchmark.timing import (
    OPENINGS,
    Controlled,
    Opener,
    Prepare,
    Run,
    Samples,
    Shape,
    measure_controlled,
    schedule,
    time_openings,
    timed,
    warm_up,
)
from skillprune.progress import silent

MS = 1_000_000


ONE = Shape("", (0,))


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

        return timed(once, self)


def opener(open_run: Callable[[], Run]) -> Opener:
    """Opens what runs in the same way at every shape."""

    @contextmanager
    def opened() -> Iterator[Prepare]:
        run = open_run()
        yield lambda shape: run

    return opened


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


def taken(runs: Sequence[Callable[[], Run]], openings: int, rounds: int, seed: int = 0) -> Samples:
    """Times of one shape."""
    found = time_openings(
        list(map(opener, runs)), {0: Shape("", (seed,))}, (openings, rounds), seed=[seed], progress=silent
    )
    return found[0]


def test_rounds_are_interleaved_in_the_drawn_order() -> None:
    clock = Clock()
    names = ["a", "b", "c"]
    openers = [partial(clock.run, name, repeat(cost * MS)) for name, cost in zip(names, (4, 2, 8), strict=True)]
    samples = taken(openers, 2, 6, seed=1)
    assert samples.repeats == 1
    np.testing.assert_allclose(samples.ms, [[[4.0, 2.0, 8.0]] * 6] * 2)
    order = [names[run] for run in schedule(3, 12, seed=[1, 1]).ravel()]
    half = len(clock.ran) // 2
    assert clock.ran[half - 18 : half] + clock.ran[-18:] == order
    before = clock.ran[half - 21 : half - 18]
    assert sorted(before) == names and clock.ran[half - 22] == before[-1]  # a round that does not count, after warm-up


def test_no_subject_is_always_prepared_or_warmed_up_last() -> None:
    """Who comes last finds its caches warm: with two rounds an identical pair would differ by some percent."""
    clock, prepared = Clock(), list[str]()

    @contextmanager
    def opened(name: str) -> Iterator[Prepare]:
        def prepare(shape: int) -> Run:
            prepared.append(name)
            clock.ran.append(f"prepare {name}")
            return clock.run(name, repeat(5 * MS))

        yield prepare

    time_openings([partial(opened, name) for name in "abc"], {0: ONE}, (24, 1), seed=[0], progress=silent)
    orders = [tuple(prepared[start : start + 3]) for start in range(0, 72, 3)]
    assert set(orders) == set(permutations("abc"))
    one_opening = len(clock.ran) // 24  # prepares, ten runs of each to warm up, and two rounds
    for opening, order in enumerate(orders):
        ran = clock.ran[opening * one_opening :][:one_opening]
        assert ran[3:33] == [name for name in order for _ in range(10)]
        assert ran[33:36] == list(order)


def test_each_opening_times_new_runs_opened_in_a_new_order() -> None:
    clock, opened = Clock(), list[str]()

    def open_run(name: str) -> Run:
        opened.append(name)
        return clock.run(name, repeat((4 + opened.count(name)) * MS))  # every opening makes it one millisecond slower

    samples = taken([partial(open_run, name) for name in "abc"], 24, 2)
    np.testing.assert_allclose(samples.ms, np.broadcast_to(np.arange(5.0, 29.0)[:, None, None], (24, 2, 3)))
    assert {tuple(opened[start : start + 3]) for start in range(0, 72, 3)} == set(permutations("abc"))


def test_what_one_opening_opened_is_closed_before_the_next() -> None:
    alive: weakref.WeakSet[Opened] = weakref.WeakSet()

    class Opened:
        def __init__(self) -> None:
            alive.add(self)
            assert len(alive) <= 2

        def __call__(self, repeats: int) -> int:
            return 5 * MS * repeats

    taken([Opened, Opened], 3, 2)
    assert not alive


@pytest.mark.parametrize(("fastest", "repeats"), [(2 * MS, 1), (2 * MS - 1, 2), (MS, 2), (300_000, 7), (1000, 2000)])
def test_short_runs_are_repeated_equally_often_until_a_sample_is_long_enough(fastest: int, repeats: int) -> None:
    clock = Clock()
    runs = [clock.run("fast", repeat(fastest)), clock.run("slow", repeat(3 * fastest))]
    samples = taken([lambda: runs[0], lambda: runs[1]], 1, 1)
    assert samples.repeats == repeats
    np.testing.assert_allclose(samples.ms, [[[fastest / MS, 3 * fastest / MS]]])
    assert clock.ran[-2 * repeats :].count("slow") == clock.ran[-2 * repeats :].count("fast") == repeats


@pytest.mark.parametrize("was_on", [True, False])
def test_no_garbage_is_collected_in_a_round(was_on: bool) -> None:
    clock, seen = Clock(), []
    step = clock.run("a", repeat(5 * MS))

    def run(repeats: int) -> int:
        seen.append(gc.isenabled())
        return step(repeats)

    def fail(repeats: int) -> int:
        if len(seen) > 100 and not gc.isenabled():
            raise KeyboardInterrupt
        return run(repeats)

    try:
        gc.enable() if was_on else gc.disable()
        taken([lambda: run], 1, 120)
        assert not any(seen[-120:])
        assert gc.isenabled() is was_on
        with pytest.raises(KeyboardInterrupt):
            taken([lambda: fail], 1, 1)
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
    assert warm_up(clock.run("a", costs)) == median
    assert len(clock.ran) == runs


class Bench:
    """Three openers, dense, pruned and control, whose costs in milliseconds differ from try to try."""

    def __init__(self, *tries: Sequence[int]) -> None:
        self.clock = Clock()
        # A try opens twice as often as the one before it.
        self.waiting = [list(costs) for number, costs in enumerate(tries) for _ in range(OPENINGS * 2**number)]

    def open(self, column: int) -> Run:
        cost = self.waiting[0][column]
        self.waiting[0][column] = 0
        if not any(self.waiting[0]):
            self.waiting.pop(0)
        return self.clock.run(str(column), repeat(cost * MS))

    def measure(self) -> Controlled:
        openers = [partial(self.open, column) for column in range(3)]
        return measure(openers, rounds=13)


def measure(runs: Sequence[Callable[[], Run]], rounds: int) -> Controlled:
    """Times of one shape, with its control."""
    (found,) = measure_controlled(list(map(opener, runs)), [ONE], rounds=rounds, seed=0, progress=silent)
    return found


SAME = (8, 4, 8)
DIFFERENT = (9, 4, 8)


def test_a_control_that_holds_is_not_retried() -> None:
    bench = Bench(SAME)
    found = bench.measure()
    assert (found.retries, bench.waiting, found.samples.ms.shape) == (0, [], (6, 3, 3))  # at least 13 rounds
    assert found.ratio.low == found.ratio.value == found.ratio.high == 1.0


def test_a_control_that_is_off_is_measured_again_with_twice_the_openings() -> None:
    bench = Bench(DIFFERENT, SAME)
    found = bench.measure()
    assert (found.retries, bench.waiting, found.samples.ms.shape) == (1, [], (12, 3, 3))
    assert found.ratio.value == 1.0  # nothing of the first try is left


def test_the_third_try_is_kept_even_when_off() -> None:
    bench = Bench(DIFFERENT, DIFFERENT, DIFFERENT)
    found = bench.measure()
    assert (found.retries, bench.waiting, found.samples.ms.shape) == (2, [], (24, 3, 3))
    assert found.ratio.low == pytest.approx(9 / 8)


def test_a_pair_that_differs_within_openings_but_not_between_them_holds() -> None:
    """A session may be 3 % slower for as long as it lives; over openings that happens to either of the pair."""
    clock, luck = Clock(), np.random.default_rng(3)

    def open_run() -> Run:
        return clock.run("", repeat(int(luck.choice([1.0, 1.03]) * 8 * MS)))

    found = measure([open_run] * 3, rounds=60)
    assert found.retries == 0
    assert found.ratio.low < 0.98 and found.ratio.high > 1.02  # and the interval says that it cannot be told better


def noisy(seed: int) -> NDArray[np.int64]:
    """Round times of an identical pair in nanoseconds, ``(openings, rounds, 2)``."""
    return np.random.default_rng(seed).integers(8 * MS, 9 * MS, (OPENINGS, 10, 2))


def test_more_shapes_make_the_control_more_patient() -> None:
    def excludes(seed: int, confidence: float) -> bool:
        times = noisy(seed)
        ratio = paired_speedup(times[..., 0], times[..., 1], seed=[0], confidence=confidence)
        return not ratio.low <= 1.0 <= ratio.high

    seed = next(seed for seed in range(1000) if excludes(seed, 0.95) and not excludes(seed, 1 - 0.05 / 4))

    def retries(shapes: int) -> int:
        """Tries of the noisy first shape that were thrown away; the others are quiet."""
        clock, opened = Clock(), [0, 0]

        @contextmanager
        def open_pair(column: int) -> Iterator[Prepare]:
            opened[column] += 1
            times = noisy(seed)[opened[column] - 1, :, column] if opened[column] <= OPENINGS else [8 * MS] * 10
            costs = chain([8 * MS] * 11, times)  # ten runs and a round are warm-up
            yield lambda shape: clock.run(str(column), repeat(8 * MS) if shape else costs)

        pair = [partial(open_pair, column) for column in range(2)]
        return measure_controlled(pair, [ONE] * shapes, rounds=60, seed=0, progress=silent)[0].retries

    assert (retries(1), retries(4)) == (1, 0)


class Shapes:
    """A subject of several shapes that writes down what it was prepared for, opening by opening, and when it closed."""

    def __init__(self, costs: Sequence[int]) -> None:
        self.clock, self.costs = Clock(), costs
        self.prepared: list[list[int]] = []
        self.open = 0

    @contextmanager
    def __call__(self) -> Iterator[Prepare]:
        self.prepared.append([])
        self.open += 1
        try:
            yield self.prepare
        finally:
            self.open -= 1

    def prepare(self, shape: int) -> Run:
        self.prepared[-1].append(shape)
        return self.clock.run(str(shape), repeat(self.costs[shape] * MS))


def test_each_opening_serves_all_shapes_and_starts_with_another_one() -> None:
    subject = Shapes([3, 5, 7])
    shapes = {number: Shape(str(number), (number,)) for number in range(3)}
    said: list[tuple[str, int, int]] = []
    found = time_openings([subject], shapes, (4, 2), seed=[0], progress=lambda *each: said.append(each))
    assert subject.prepared == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    assert {shape: np.unique(samples.ms).tolist() for shape, samples in found.items()} == {0: [3], 1: [5], 2: [7]}
    for name in "012":
        assert [done for what, done, total in said if (what, total) == (name, 8)] == list(range(9))


def test_only_shapes_whose_control_is_off_are_measured_again() -> None:
    dense, control = Shapes([8, 8]), Shapes([8, 9])
    found = measure_controlled(
        [dense, control], [Shape(str(number), (number,)) for number in range(2)], rounds=6, seed=0, progress=silent
    )
    assert [each.retries for each in found] == [0, 2]
    assert [len(each.samples.ms) for each in found] == [6, 24]
    assert dense.prepared[6:] == [[1]] * (12 + 24)


def test_everything_is_closed_when_a_subject_does_not_open_or_ctrl_c_is_pressed() -> None:
    @contextmanager
    def refuse() -> Iterator[Prepare]:
        raise KeyError("no such file")
        yield

    def press(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    subject = Shapes([3])
    with pytest.raises(KeyError):
        time_openings([subject] * 9 + [refuse], {0: ONE}, (2, 2), seed=[0], progress=silent)
    with pytest.raises(KeyboardInterrupt):
        time_openings([subject], {0: ONE}, (2, 2), seed=[0], progress=press)
    assert subject.open == 0 and subject.prepared

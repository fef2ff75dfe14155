"""Times callables in interleaved rounds against an identical-pair control; what the callables run is left to others."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skillprune.benchmark.statistics import CONFIDENCE, paired_speedup
from skillprune.benchmark.values import Ratio
from skillprune.progress import Progress, track

Run = Callable[[], object]
Timer = Callable[[], int]  # nanoseconds since any fixed moment, like time.perf_counter_ns

NANOSECONDS_PER_MS = 1_000_000
WINDOW = 5  # runs that warm-up compares with the same number before them
FALL = 0.05  # warm-up goes on while the median of a window is this much below the one before
MOST_WARM_UP_RUNS = 100
MOST_WARM_UP_NS = 10_000 * NANOSECONDS_PER_MS
# Below this a sample is mostly timer, interpreter and the waking of sleeping threads.
SHORTEST_SAMPLE_NS = 2 * NANOSECONDS_PER_MS
TRIES = 3


@dataclass(frozen=True)
class Samples:
    """Round times of several callables.

    Attributes:
        ms: milliseconds per run, ``(rounds, runs)``.
        repeats: consecutive runs that each number is the mean of.
    """

    ms: NDArray[np.float64]
    repeats: int


@dataclass(frozen=True)
class Controlled:
    """Samples whose first and last column ran the same thing, with the ratio of these two.

    Attributes:
        samples: all columns, the last one being the control.
        ratio: first column over last, with its interval.
        retries: tries thrown away before this one.
    """

    samples: Samples
    ratio: Ratio
    retries: int


def measure_controlled(
    open_runs: Callable[[], Sequence[Run]],
    *,
    rounds: int,
    comparisons: int,
    seed: Sequence[int],
    timer: Timer,
    what: str,
    progress: Progress,
) -> Controlled:
    """Times what ``open_runs`` gives, and again with twice the rounds while the identical pair seems to differ.

    Every try opens its runs anew, so that an unlucky placement in memory is not measured twice. The last of at most
    `TRIES` tries is kept, whatever it says.

    Args:
        open_runs: opens the callables to compare; the last one must run the same thing as the first.
        rounds: rounds of the first try.
        comparisons: identical pairs judged together; each interval's error is divided by it (Bonferroni).
        seed: of order and bootstrap.
        timer: nanoseconds since any fixed moment.
        what: shown in progress.
        progress: called after every round.
    """
    confidence = 1.0 - (1.0 - CONFIDENCE) / comparisons
    retries = 0
    while True:
        samples = time_runs(
            open_runs(), rounds * 2**retries, seed=[*seed, retries], timer=timer, what=what, progress=progress
        )
        ratio = paired_speedup(samples.ms[:, 0], samples.ms[:, -1], seed=seed, confidence=confidence)
        if ratio.low <= 1.0 <= ratio.high or retries == TRIES - 1:
            return Controlled(samples, ratio, retries)
        retries += 1


def time_runs(
    runs: Sequence[Run], rounds: int, *, seed: Sequence[int], timer: Timer, what: str, progress: Progress
) -> Samples:
    """Warms every callable up, then times each once per round, in a new random order every round.

    A sample is the mean of as many consecutive runs as the fastest callable needs to fill `SHORTEST_SAMPLE_NS`. All
    callables get the same number: the first run after another model finds cold caches, and it must weigh equally.
    The cyclic garbage collector is off during the rounds.
    """
    fastest_ns = min(warm_up(run, timer) for run in runs)
    repeats = max(1, math.ceil(SHORTEST_SAMPLE_NS / max(fastest_ns, 1.0)))
    order = schedule(len(runs), rounds, seed=seed)
    ms = np.empty(order.shape)
    with _no_garbage_collection():
        for row in track(range(rounds), what, progress):
            for column in order[row]:
                ms[row, column] = _sample_ns(runs[column], repeats, timer) / (repeats * NANOSECONDS_PER_MS)
    return Samples(ms, repeats)


def schedule(runs: int, rounds: int, *, seed: Sequence[int]) -> NDArray[np.int64]:
    """The order of every round, ``(rounds, runs)``: each row is a permutation of all runs, drawn independently."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(runs, dtype=np.int64), (rounds, 1)), axis=1)


def warm_up(run: Run, timer: Timer) -> float:
    """Runs until it no longer gets faster, and returns the median of the last runs in nanoseconds.

    It is warm when the median of the last `WINDOW` runs is at most `FALL` below that of the `WINDOW` runs before them.
    A callable that takes long is given up on sooner: no new run starts after `MOST_WARM_UP_NS` or after
    `MOST_WARM_UP_RUNS` runs.
    """
    times: list[int] = []
    while len(times) < MOST_WARM_UP_RUNS and sum(times) < MOST_WARM_UP_NS:
        times.append(_sample_ns(run, 1, timer))
        if len(times) >= 2 * WINDOW:
            before, now = np.median(times[-2 * WINDOW : -WINDOW]), np.median(times[-WINDOW:])
            if now >= (1.0 - FALL) * before:
                break
    return float(np.median(times[-WINDOW:]))


def _sample_ns(run: Run, repeats: int, timer: Timer) -> int:
    start = timer()
    for _ in range(repeats):
        run()
    return timer() - start


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

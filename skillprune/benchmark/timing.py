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
from skillprune.progress import Progress

Run = Callable[[], object]
Timer = Callable[[], int]  # nanoseconds since any fixed moment, like time.perf_counter_ns
Clocked = Callable[[int], int]  # runs something so many times, and tells the nanoseconds of all of them together
Opener = Callable[[], Clocked]

NANOSECONDS_PER_MS = 1_000_000
WINDOW = 5  # runs that warm-up compares with the same number before them
FALL = 0.05  # warm-up goes on while the median of a window is this much below the one before
MOST_WARM_UP_RUNS = 100
MOST_WARM_UP_NS = 10_000 * NANOSECONDS_PER_MS
# Below this a sample is mostly timer, interpreter and the waking of sleeping threads.
SHORTEST_SAMPLE_NS = 2 * NANOSECONDS_PER_MS
# Where a session's memory lies can cost it time for as long as it lives; fewer openings than this say too
# little about how much (results/interval-coverage.json in benchmarks/).
OPENINGS = 6
TRIES = 3


@dataclass(frozen=True)
class Samples:
    """Round times of several callables.

    Attributes:
        ms: milliseconds per run, ``(openings, rounds, callables)``.
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
    openers: Sequence[Opener],
    *,
    rounds: int,
    comparisons: int,
    seed: Sequence[int],
    what: str,
    progress: Progress,
) -> Controlled:
    """Times what ``openers`` open, and again with twice the openings while the identical pair seems to differ.

    The last of at most `TRIES` tries is kept, whatever it says.

    Args:
        openers: each opens one callable; the last one must open the same thing as the first.
        rounds: rounds of the first try, at least, spread over `OPENINGS` openings.
        comparisons: identical pairs judged together; each interval's error is divided by it (Bonferroni).
        seed: of orders and bootstrap.
        what: shown in progress.
        progress: called after every round.
    """
    confidence = 1.0 - (1.0 - CONFIDENCE) / comparisons
    retries = 0
    while True:
        samples = time_openings(
            openers,
            (OPENINGS * 2**retries, math.ceil(rounds / OPENINGS)),
            seed=[*seed, retries],
            what=what,
            progress=progress,
        )
        ratio = paired_speedup(samples.ms[..., 0], samples.ms[..., -1], seed=seed, confidence=confidence)
        if ratio.low <= 1.0 <= ratio.high or retries == TRIES - 1:
            return Controlled(samples, ratio, retries)
        retries += 1


def time_openings(
    openers: Sequence[Opener],
    size: tuple[int, int],
    *,
    seed: Sequence[int],
    what: str,
    progress: Progress,
) -> Samples:
    """Opens everything anew again and again, and times all of it in a few rounds each time.

    At each opening the callables are opened in a new random order and warmed up; then every round runs each of them
    once, in a new random order. A sample is the mean of as many consecutive runs as the fastest callable needs to fill
    `SHORTEST_SAMPLE_NS`. All callables get the same number: the first run after another model finds cold caches, and it
    must weigh equally. Repetition is at both levels, because what an opening fixes no number of rounds averages out
    (Kalibera and Jones, 2013, "Rigorous benchmarking in reasonable time").

    Args:
        openers: each opens one callable.
        size: openings, and rounds of each.
        seed: of all orders.
        what: shown in progress.
        progress: called after every round.
    """
    openings, rounds = size
    opening_order = schedule(len(openers), openings, seed=[*seed, 0])
    order = schedule(len(openers), openings * rounds, seed=[*seed, 1]).reshape(openings, rounds, -1)
    ms = np.empty(order.shape)
    repeats = 0
    progress(what, 0, openings * rounds)
    for opening in range(openings):
        runs = _opened(openers, opening_order[opening])
        fastest_ns = min(warm_up(run) for run in runs)
        repeats = repeats or max(1, math.ceil(SHORTEST_SAMPLE_NS / max(fastest_ns, 1.0)))
        with _no_garbage_collection():
            for row in range(rounds):
                ms[opening, row] = _round_ms(runs, order[opening, row], repeats)
                progress(what, opening * rounds + row + 1, openings * rounds)
        del runs  # closed before the next ones are opened
    return Samples(ms, repeats)


def clocked(run: Run, timer: Timer) -> Clocked:
    """Has a callable of this process timed by ``timer``."""

    def repeated(repeats: int) -> int:
        start = timer()
        for _ in range(repeats):
            run()
        return timer() - start

    return repeated


def _opened(openers: Sequence[Opener], order: NDArray[np.int64]) -> list[Clocked]:
    """What the openers open, one after the other in ``order``, listed in the order of the openers."""
    opened = {column: openers[column]() for column in order.tolist()}
    return [opened[column] for column in range(len(openers))]


def schedule(runs: int, rounds: int, *, seed: Sequence[int]) -> NDArray[np.int64]:
    """The order of every round, ``(rounds, runs)``: each row is a permutation of all runs, drawn independently."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(runs, dtype=np.int64), (rounds, 1)), axis=1)


def warm_up(run: Clocked) -> float:
    """Runs until it no longer gets faster, and returns the median of the last runs in nanoseconds.

    It is warm when the median of the last `WINDOW` runs is at most `FALL` below that of the `WINDOW` runs before them.
    A callable that takes long is given up on sooner: no new run starts after `MOST_WARM_UP_NS` or after
    `MOST_WARM_UP_RUNS` runs.
    """
    times: list[int] = []
    while len(times) < MOST_WARM_UP_RUNS and sum(times) < MOST_WARM_UP_NS:
        times.append(run(1))
        if len(times) >= 2 * WINDOW:
            before, now = np.median(times[-2 * WINDOW : -WINDOW]), np.median(times[-WINDOW:])
            if now >= (1.0 - FALL) * before:
                break
    return float(np.median(times[-WINDOW:]))


def _round_ms(runs: Sequence[Clocked], order: NDArray[np.int64], repeats: int) -> list[float]:
    """Milliseconds per run of each callable, timed one after the other in ``order``."""
    took_ns = {column: runs[column](repeats) for column in order.tolist()}
    return [took_ns[column] / (repeats * NANOSECONDS_PER_MS) for column in range(len(runs))]


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

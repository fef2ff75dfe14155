"""Times subjects in interleaved rounds against an identical-pair control; what runs, and where, is left to others."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from skillprune.benchmark.statistics import CONFIDENCE, paired_speedup
from skillprune.benchmark.values import Ratio
from skillprune.progress import Progress

Run = Callable[[int], int]  # runs so often in a row, and returns the nanoseconds that all of it took
Prepare = Callable[[int], Run]  # gets ready for the inputs of a shape, by its number; earlier shapes run no more
Opener = Callable[[], AbstractContextManager[Prepare]]
Done = TypeVar("Done")
Timer = Callable[[], int]  # nanoseconds since any fixed moment, like time.perf_counter_ns

NANOSECONDS_PER_MS = 1_000_000
WINDOW = 5  # runs that warm-up compares with the same number before them
FALL = 0.05  # warm-up goes on while the median of a window is this much below the one before
MOST_WARM_UP_RUNS = 100
MOST_WARM_UP_NS = 10_000 * NANOSECONDS_PER_MS
# Below this a sample is mostly timer, interpreter and the waking of sleeping threads.
SHORTEST_SAMPLE_NS = 2 * NANOSECONDS_PER_MS
# Where a subject's memory lies can cost it time for as long as it is open; fewer openings than this say too
# little about how much (results/interval-coverage.json in benchmarks/).
OPENINGS = 6
TRIES = 3


@dataclass(frozen=True)
class Samples:
    """Round times of several subjects at one shape.

    Attributes:
        ms: milliseconds per run, ``(openings, rounds, subjects)``.
        repeats: consecutive runs that each number is the mean of.
    """

    ms: NDArray[np.float64]
    repeats: int


@dataclass(frozen=True)
class Shape:
    """What progress calls a shape, and the seed of its orders and of the bootstrap of its control."""

    what: str
    seed: tuple[int, ...]


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
    shapes: Sequence[Shape],
    *,
    rounds: int,
    seed: int,
    progress: Progress,
) -> list[Controlled]:
    """Times what ``openers`` open at every shape, and again the shapes at which the identical pair seems to differ.

    Every try opens twice as often as the one before. The last of at most `TRIES` tries of a shape is kept, whatever it
    says.

    Args:
        openers: each opens one subject; the last one must open the same thing as the first.
        shapes: what subjects are prepared for, by place; as many identical pairs are judged together, and each
            interval's error is divided by their number (Bonferroni).
        rounds: rounds of the first try of every shape, at least, spread over `OPENINGS` openings.
        seed: of the orders in which subjects are opened.
        progress: called after every round.
    """
    confidence = 1.0 - (1.0 - CONFIDENCE) / len(shapes)
    found: dict[int, Controlled] = {}
    for retries in range(TRIES):
        waiting = [each for each in range(len(shapes)) if each not in found or not found[each].ratio.covers(1.0)]
        if not waiting:
            break
        samples = time_openings(
            openers,
            {each: Shape(shapes[each].what, (*shapes[each].seed, retries)) for each in waiting},
            (OPENINGS * 2**retries, math.ceil(rounds / OPENINGS)),
            seed=[seed, retries],
            progress=progress,
        )
        for each, taken in samples.items():
            pair = taken.ms[..., 0], taken.ms[..., -1]
            ratio = paired_speedup(*pair, seed=shapes[each].seed, confidence=confidence)
            found[each] = Controlled(taken, ratio, retries)
    return [found[each] for each in range(len(shapes))]


def time_openings(
    openers: Sequence[Opener],
    shapes: Mapping[int, Shape],
    size: tuple[int, int],
    *,
    seed: Sequence[int],
    progress: Progress,
) -> dict[int, Samples]:
    """Opens everything anew again and again, and times all of it in a few rounds of every shape each time.

    At each opening the subjects are opened in a new random order. Each shape in turn, starting with another one at
    every opening, is warmed up in the same order, and by a round that does not count: whoever always came last would
    start ahead of the others. Then every round runs each subject once, in a new random order. A sample is the mean of
    as many consecutive runs as the fastest subject needs to fill `SHORTEST_SAMPLE_NS`. All subjects get the same
    number: the first run after another model finds cold caches, and it must weigh equally. Repetition is at both
    levels, because what an opening fixes no number of rounds averages out (Kalibera and Jones, 2013, "Rigorous
    benchmarking in reasonable time").

    Args:
        openers: each opens one subject.
        shapes: by the number that subjects are prepared for.
        size: openings, and rounds of each.
        seed: of the orders of opening.
        progress: called after every round.
    """
    openings, rounds = size
    opening_order = schedule(len(openers), openings, seed=[*seed, 0])
    books = {number: _Book(shape, openings, rounds, len(openers)) for number, shape in shapes.items()}
    for book in books.values():
        progress(book.shape.what, 0, openings * rounds)
    with _no_garbage_collection():
        for opening in range(openings):
            _time_opening(openers, opening_order[opening], books, opening, progress)
    return {number: Samples(book.ms, book.repeats) for number, book in books.items()}


def _time_opening(
    openers: Sequence[Opener],
    order: NDArray[np.int64],
    books: Mapping[int, _Book],
    opening: int,
    progress: Progress,
) -> None:
    """Opens everything once, times all shapes, and lets go of everything."""
    with ExitStack() as stack:
        opened = _in_order(order, lambda column: stack.enter_context(openers[column]()))
        for number in _rotated(list(books), opening):
            runs = _in_order(order, partial(_prepared, opened, number))
            books[number].fill(opening, runs, order, progress)


class _Book:
    """The times of one shape, written down opening by opening."""

    def __init__(self, shape: Shape, openings: int, rounds: int, subjects: int) -> None:
        self.shape = shape
        self.order = schedule(subjects, openings * rounds, seed=[*shape.seed, 1]).reshape(openings, rounds, -1)
        self.ms = np.empty(self.order.shape)
        self.repeats = 0

    def fill(self, opening: int, runs: Sequence[Run], order: NDArray[np.int64], progress: Progress) -> None:
        """Warms up in ``order``, and times all rounds of one opening."""
        openings, rounds, _ = self.ms.shape
        fastest_ns = min(_in_order(order, lambda column: warm_up(runs[column])))
        self.repeats = self.repeats or max(1, math.ceil(SHORTEST_SAMPLE_NS / max(fastest_ns, 1.0)))
        _round_ms(runs, order, self.repeats)  # who warmed up last would find its caches warmer than the others
        for row in range(rounds):
            self.ms[opening, row] = _round_ms(runs, self.order[opening, row], self.repeats)
            progress(self.shape.what, opening * rounds + row + 1, openings * rounds)


def _prepared(opened: Sequence[Prepare], shape: int, column: int) -> Run:
    return opened[column](shape)


def _in_order(order: NDArray[np.int64], do: Callable[[int], Done]) -> list[Done]:
    """What ``do`` gives for every column, listed by column, but done in ``order``."""
    done = {column: do(column) for column in order.tolist()}
    return [done[column] for column in range(len(order))]


def _rotated(numbers: Sequence[int], by: int) -> list[int]:
    """The same numbers, starting with another one: ``[1, 2, 3]`` by 1 is ``[2, 3, 1]``."""
    start = by % len(numbers)
    return [*numbers[start:], *numbers[:start]]


def schedule(runs: int, rounds: int, *, seed: Sequence[int]) -> NDArray[np.int64]:
    """The order of every round, ``(rounds, runs)``: each row is a permutation of all runs, drawn independently."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(runs, dtype=np.int64), (rounds, 1)), axis=1)


def timed(once: Callable[[], object], timer: Timer = time.perf_counter_ns) -> Run:
    """A callable of this process as one that times itself."""

    def run(repeats: int) -> int:
        start = timer()
        for _ in range(repeats):
            once()
        return timer() - start

    return run


def warm_up(run: Run) -> float:
    """Runs until it no longer gets faster, and returns the median of the last runs in nanoseconds.

    It is warm when the median of the last `WINDOW` runs is at most `FALL` below that of the `WINDOW` runs before them.
    A subject that takes long is given up on sooner: no new run starts after `MOST_WARM_UP_NS` or after
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


def _round_ms(runs: Sequence[Run], order: NDArray[np.int64], repeats: int) -> list[float]:
    """Milliseconds per run of each subject, timed one after the other in ``order``."""
    took_ns = _in_order(order, lambda column: runs[column](repeats))
    return [each / (repeats * NANOSECONDS_PER_MS) for each in took_ns]


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

"""Times models side by side at several shapes; what follows from the numbers is left to `report` and the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from skillprune.benchmark.processes import ISOLATION, Facts, Inputs, open_worker
from skillprune.benchmark.runtimes import DEFAULT, RUNTIMES, default_threads, open_here
from skillprune.benchmark.statistics import paired_speedup, signed_rank_p
from skillprune.benchmark.timing import Controlled, Prepare, Run, Samples, Shape, measure_controlled, timed
from skillprune.benchmark.values import Control, Latency, Measurement, Phase, Point, Ratio, Subject
from skillprune.progress import Progress, silent

Feeds = Callable[[int, int], Mapping[str, NDArray[np.generic]]]

SHARED = "all subjects in one process, their idle threads asleep between runs"


def measure_latency(
    subjects: Sequence[Subject],
    shapes: Sequence[tuple[int, int]],
    feeds: Feeds,
    *,
    threads: int,
    provider: str,
    rounds: int,
    seed: int,
    progress: Progress = silent,
    isolated: bool = True,
    phases: Sequence[Phase] = ("forward",),
) -> Latency:
    """Times every subject at every shape and compares each with the first one, the reference.

    All subjects, and the reference a second time as identical-pair (A/A) control, are open at once, each in a process
    of its own, and opened anew several times. At every shape they are warmed up and then timed in rounds, each of which
    times every subject once in a new random order, while the others wait and compute nothing. A shape whose control's
    interval (95 %, corrected for the number of shapes) excludes 1 is measured again with twice the openings and rounds,
    up to three tries; the last one is kept and says in its control whether it is ok. Speed-ups are medians of per-round
    log ratios with a 95 % bootstrap interval over openings and rounds (`paired_speedup`).

    Args:
        subjects: the models; the first is the reference; names and variants together must be unique.
        shapes: (batch, sequence) pairs; one given twice is measured once.
        feeds: gives the inputs, name to array, for a batch and a sequence length.
        threads: threads that compute inside one operator.
        provider: ``cpu`` or ``cuda``.
        rounds: rounds of the first try of every shape, at least; they are split evenly over the openings.
        seed: of orders and bootstrap; not negative.
        progress: called after every round.
        isolated: off, ONNX files are all opened in this process: for many small ones, for which starting processes
            would take longer than timing them.
        phases: what runs do at every shape; all but ``forward`` need writers, see `Point`.

    Raises:
        ValueError: no subject, two subjects of one name and variant, no round, an unknown runtime, or PyTorch in a
            process that is shared.
        ProviderUnavailable: the provider is not installed or not the one that runs.
        CheckpointError: a file is missing or unreadable.
        DataError: a model does not take the inputs, or cannot run a shape.
        ResourceFailure: the process of a subject died, or memory ran out.
    """
    _check(subjects, rounds, isolated)
    points = tuple(Point(*shape, phase) for shape in dict.fromkeys(shapes) for phase in phases)
    inputs = [Inputs(point, feeds(point.batch, point.sequence)) for point in points]
    bench = _Bench(tuple(subjects), points, [Facts() for _ in (*subjects, "control")], threads, provider, seed)
    place = open_worker if isolated else _open_shared
    found = measure_controlled(
        bench.openers(place, inputs),
        [Shape(f"measuring {point}", (seed, point.batch, point.sequence)) for point in points],
        rounds=rounds,
        seed=seed,
        progress=progress,
    )
    return Latency(tuple(bench.measurements(found)), tuple(bench.controls(found)), ISOLATION if isolated else SHARED)


def _check(subjects: Sequence[Subject], rounds: int, isolated: bool) -> None:
    if len({(each.name, each.variant) for each in subjects}) != len(subjects) or not subjects or rounds < 1:
        raise ValueError(f"need uniquely named subjects and at least one round, got {list(subjects)} and {rounds}")
    usable = sorted(RUNTIMES if isolated else {"onnxruntime"})
    if unusable := sorted({each.runtime for each in subjects} - set(usable)):
        raise ValueError(f"runtimes {unusable} cannot be timed with isolated={isolated}, only {usable} can")


@contextmanager
def _open_shared(
    subject: Subject, shapes: Sequence[Inputs], facts: Facts, *, threads: int, provider: str
) -> Iterator[Prepare]:
    """Like `open_worker`, in this process."""
    opened = open_here(subject, threads=threads, provider=provider)
    facts.provider, facts.version = opened.provider, opened.version

    def prepare(shape: int) -> Run:
        point, arrays = shapes[shape].point, shapes[shape].arrays
        return timed(opened.feed(arrays, f"{subject.path} at {point}", point.phase))

    yield prepare


@dataclass(frozen=True)
class _Bench:
    """What is timed, and what was learnt of every column: the subjects, and the control as the last one."""

    subjects: tuple[Subject, ...]
    points: tuple[Point, ...]
    facts: Sequence[Facts]
    threads: int
    provider: str
    seed: int

    def openers(
        self, place: Callable[..., AbstractContextManager[Prepare]], inputs: Sequence[Inputs]
    ) -> list[Callable[[], AbstractContextManager[Prepare]]]:
        """One for every subject, then one more for the reference as its own control."""
        columns = zip((*self.subjects, self.subjects[0]), self.facts, strict=True)
        return [
            partial(place, subject, inputs, facts, threads=self.threads, provider=self.provider)
            for subject, facts in columns
        ]

    def controls(self, found: Sequence[Controlled]) -> Iterator[Control]:
        """One for every point."""
        for point, each in zip(self.points, found, strict=True):
            openings, rounds, _ = each.samples.ms.shape
            kept = each.ratio, openings, openings * rounds, each.retries
            yield Control(point.batch, point.sequence, *kept, phase=point.phase)

    def measurements(self, found: Sequence[Controlled]) -> Iterator[Measurement]:
        """One for every subject at every point; the control's column is left out."""
        for place, each in enumerate(found):
            for column in range(len(self.subjects)):
                yield self._measurement(place, column, each.samples)

    def _measurement(self, place: int, column: int, samples: Samples) -> Measurement:
        subject, facts, (batch, sequence, phase) = self.subjects[column], self.facts[column], self.points[place]
        pair = samples.ms[..., 0], samples.ms[..., column]
        return Measurement(
            subject=subject.name,
            variant=subject.variant,
            runtime=subject.runtime,
            provider=facts.provider,
            provider_asked=self.provider,
            batch=batch,
            sequence=sequence,
            threads=self.threads if subject.runtime != DEFAULT else default_threads(),
            round_ms=tuple(pair[1].ravel().tolist()),
            # The same seed for every subject, so that all are judged on the same resamples.
            speedup=paired_speedup(*pair, seed=(self.seed, batch, sequence)) if column else Ratio(1.0, 1.0, 1.0),
            repeats=samples.repeats,
            p_value=signed_rank_p(*pair) if column else None,
            peak_rss_mib=facts.peak_mib(place),
            runtime_version=facts.version,
            phase=phase,
        )

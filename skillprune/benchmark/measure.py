"""Times ONNX files side by side at several shapes; what follows from the numbers is left to `report` and the gate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skillprune.benchmark.sessions import bind, open_session, provider_of
from skillprune.benchmark.statistics import paired_speedup
from skillprune.benchmark.timing import Clocked, Controlled, Opener, Samples, Timer, clocked, measure_controlled
from skillprune.benchmark.torch_process import TorchProcess
from skillprune.benchmark.values import Control, Latency, Measurement, Ratio, Subject
from skillprune.progress import Progress, silent

Inputs = Mapping[str, NDArray[np.generic]]
Feeds = Callable[[int, int], Inputs]


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
    timer: Timer = time.perf_counter_ns,
) -> Latency:
    """Times every subject at every shape and compares each with the first one, the reference.

    At each shape all subjects, and the reference a second time as identical-pair (A/A) control, are open side by side:
    ONNX files in this process, with threads that stop spinning at the end of a run, and PyTorch models in a process of
    their own each, which answers once its threads sleep. All are opened anew several times, warmed up, and then timed
    in rounds, each of which times every subject once in a new random order. A shape whose control's interval (95 %,
    corrected for the number of shapes) excludes 1 is measured again with twice the openings and rounds, up to three
    tries; the last one is kept and says in its control whether it is ok. Speed-ups are medians of per-round log ratios
    with a 95 % bootstrap interval over openings and rounds (`paired_speedup`).

    Args:
        subjects: the files; the first is the reference; names and variants together must be unique.
        shapes: (batch, sequence) pairs; one given twice is measured once.
        feeds: gives the inputs, name to array, for a batch and a sequence length.
        threads: threads that compute inside one operator.
        provider: ``cpu`` or ``cuda``.
        rounds: rounds of the first try of every shape, at least; they are split evenly over the openings.
        seed: of orders and bootstrap; not negative.
        progress: called after every round.
        timer: nanoseconds since any fixed moment.

    Raises:
        ValueError: no subject, two subjects of one name and variant, or no round.
        ProviderUnavailable: the provider is not installed or not the one that runs.
        CheckpointError: a file is missing or unreadable.
        DataError: a graph does not take the inputs, or cannot run a shape.
    """
    if len({(each.name, each.variant) for each in subjects}) != len(subjects) or not subjects or rounds < 1:
        raise ValueError(f"need uniquely named subjects and at least one round, got {list(subjects)} and {rounds}")
    distinct = tuple(dict.fromkeys(shapes))
    bench = _Bench(tuple(subjects), feeds, threads, provider, rounds, len(distinct), seed, progress, timer)
    measurements: list[Measurement] = []
    controls: list[Control] = []
    for batch, sequence in distinct:
        controlled, providers = bench.measure(batch, sequence)
        measurements += bench.measurements(batch, sequence, controlled.samples, providers)
        openings, rounds_each, _ = controlled.samples.ms.shape
        controls.append(
            Control(batch, sequence, controlled.ratio, openings, openings * rounds_each, controlled.retries)
        )
    return Latency(tuple(measurements), tuple(controls))


@dataclass(frozen=True)
class _Bench:
    """What stays the same from shape to shape."""

    subjects: tuple[Subject, ...]
    feeds: Feeds
    threads: int
    provider: str
    rounds: int
    shapes: int
    seed: int
    progress: Progress
    timer: Timer

    def measure(self, batch: int, sequence: int) -> tuple[Controlled, list[str]]:
        """Samples of all subjects, then of the control; and the provider that ran each of them."""
        inputs = self.feeds(batch, sequence)
        subjects = (*self.subjects, self.subjects[0])
        providers = [""] * len(subjects)

        def opener(column: int) -> Opener:
            def open_run() -> Clocked:
                run, providers[column] = self._open(subjects[column], inputs, f"{batch} x {sequence}")
                return run

            return open_run

        controlled = measure_controlled(
            [opener(column) for column in range(len(subjects))],
            rounds=self.rounds,
            comparisons=self.shapes,
            seed=(self.seed, batch, sequence),
            what=f"measuring {batch} x {sequence}",
            progress=self.progress,
        )
        return controlled, providers

    def _open(self, subject: Subject, inputs: Inputs, shape: str) -> tuple[Clocked, str]:
        """What times the subject on the inputs, and the provider that runs it."""
        what = f"{subject.path} at {shape}"
        if subject.runtime == "onnxruntime":
            session = open_session(subject.path, threads=self.threads, provider=self.provider)
            return clocked(bind(session, inputs, what), self.timer), provider_of(session)
        process = TorchProcess(subject, inputs, threads=self.threads, provider=self.provider, what=what)
        return process.run, process.provider

    def measurements(
        self, batch: int, sequence: int, samples: Samples, providers: Sequence[str]
    ) -> Iterator[Measurement]:
        """One for every subject, in order; the control's column is left out."""
        for column, subject in enumerate(self.subjects):
            yield Measurement(
                subject=subject.name,
                variant=subject.variant,
                runtime=subject.runtime,
                provider=providers[column],
                provider_asked=self.provider,
                batch=batch,
                sequence=sequence,
                threads=self.threads,
                round_ms=tuple(samples.ms[..., column].ravel().tolist()),
                speedup=self._speedup(batch, sequence, samples, column),
                repeats=samples.repeats,
            )

    def _speedup(self, batch: int, sequence: int, samples: Samples, column: int) -> Ratio:
        # The same seed for every subject, so that all are judged on the same resamples.
        seed = (self.seed, batch, sequence)
        return (
            paired_speedup(samples.ms[..., 0], samples.ms[..., column], seed=seed) if column else Ratio(1.0, 1.0, 1.0)
        )

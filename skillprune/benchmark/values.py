"""What a latency measurement is made of and what comes out of it, as frozen values; nothing here measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Phase = Literal["forward", "first token", "next token"]


class Point(NamedTuple):
    """What is run: inputs of a size, and of models that write what they do with them.

    Attributes:
        batch: examples per run.
        sequence: tokens per example.
        phase: ``forward`` is one pass; ``first token`` reads the texts and says what comes first, ``next token`` is the
            step after that.
    """

    batch: int
    sequence: int
    phase: Phase = "forward"

    def __str__(self) -> str:
        size = f"{self.batch} x {self.sequence}"
        return size if self.phase == "forward" else f"{size}, {self.phase}"


@dataclass(frozen=True)
class Subject:
    """One model to time.

    Attributes:
        name: whose it is: ``dense``, ``pruned``.
        variant: which form of it: ``fp32``.
        path: an ONNX file, the directory of an ONNX writer, or for PyTorch that of a checkpoint.
        runtime: what runs it, a key of `skillprune.benchmark.runtimes.RUNTIMES`.
        model_class: name of the class of transformers that loads a checkpoint; empty for the one its config names.
        capture: records the kernels of a shape once as a CUDA graph and replays them; for ONNX graphs whose operators
            all run on CUDA.
    """

    name: str
    variant: str
    path: Path
    runtime: str = "onnxruntime"
    model_class: str = ""
    capture: bool = False


@dataclass(frozen=True)
class Ratio:
    """A quotient of two latencies with the two ends of its interval."""

    value: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Whether the interval contains a value."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Measurement:
    """The rounds of one subject at one shape: what was asked for, what really ran, and every timed sample.

    Attributes:
        subject: the subject's name.
        variant: the subject's variant.
        runtime: what ran the model, as the subject named it.
        provider: the execution provider read back from what ran it, in the recipe's words.
        provider_asked: the execution provider that was asked for.
        batch: examples per run.
        sequence: tokens per example.
        threads: threads that compute inside one operator.
        round_ms: milliseconds per run, one number per round, in the order of the rounds.
        speedup: latency of the reference over this one; the reference itself has exactly 1.
        repeats: consecutive runs that each of these numbers is the mean of.
        p_value: of `signed_rank_p` against the reference; None for the reference itself.
        peak_rss_mib: most memory in MiB that the subject's own process held resident, interpreter and libraries
            included, smallest over the openings; None where the process was shared or does not tell.
        runtime_version: version of the library that ran the model.
        phase: what a run is, see `Point`.
    """

    subject: str
    variant: str
    runtime: str
    provider: str
    provider_asked: str
    batch: int
    sequence: int
    threads: int
    round_ms: tuple[float, ...]
    speedup: Ratio
    repeats: int = 1
    p_value: float | None = None
    peak_rss_mib: float | None = None
    runtime_version: str | None = None
    phase: Phase = "forward"

    @property
    def point(self) -> Point:
        """What was run."""
        return Point(self.batch, self.sequence, self.phase)

    @property
    def p50_ms(self) -> float:
        """Median over rounds, in milliseconds per run."""
        return self._percentile(50)

    @property
    def p90_ms(self) -> float:
        """90th percentile over rounds, in milliseconds per run."""
        return self._percentile(90)

    @property
    def p99_ms(self) -> float:
        """99th percentile over rounds, in milliseconds per run; below 100 rounds it leans on the slowest one."""
        return self._percentile(99)

    @property
    def throughput(self) -> float:
        """Examples per second at the median latency; of the next token, tokens per second."""
        return 1000.0 * self.batch / self.p50_ms

    def _percentile(self, q: float) -> float:
        return float(np.percentile(self.round_ms, q))


@dataclass(frozen=True)
class Control:
    """The identical-pair (A/A) control of one shape: the reference timed against itself, opened a second time.

    Attributes:
        batch: examples per run.
        sequence: tokens per example.
        ratio: the reference over its double; the interval is corrected for the number of shapes.
        openings: times that everything was opened anew in the try that was kept.
        rounds: rounds of that try, all openings together.
        retries: tries thrown away before it because their interval excluded 1.
        phase: what a run is, see `Point`.
    """

    batch: int
    sequence: int
    ratio: Ratio
    openings: int
    rounds: int
    retries: int
    phase: Phase = "forward"

    @property
    def point(self) -> Point:
        """What was run."""
        return Point(self.batch, self.sequence, self.phase)

    @property
    def ok(self) -> bool:
        """Whether the interval contains 1, so that the speed-ups of this shape may be believed."""
        return self.ratio.covers(1.0)


@dataclass(frozen=True)
class Latency:
    """Everything one call of `measure_latency` found.

    Attributes:
        measurements: one for every subject at every shape, shape by shape.
        controls: one for every shape.
        isolation: what subjects shared while they were timed, and what idle threads did.
    """

    measurements: tuple[Measurement, ...]
    controls: tuple[Control, ...]
    isolation: str = ""

    def __str__(self) -> str:
        return "\n".join(
            f"  {row.subject:<14}{row.variant:<14}{row.point!s:<22}{row.p50_ms:>9.2f} ms"
            f"{row.speedup.value:>8.2f}x  [{row.speedup.low:.2f}, {row.speedup.high:.2f}]"
            for row in self.measurements
        )

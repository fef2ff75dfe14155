"""What a latency measurement is made of and what comes out of it, as frozen values; nothing here measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Subject:
    """One thing to time.

    Attributes:
        name: whose it is (``dense``, ``pruned``).
        variant: which number format (``fp32``).
        path: an ONNX file, or for the other runtimes a checkpoint directory that plain transformers can load.
        runtime: ``onnxruntime``, ``torch`` or ``torch-compile``.
        model_class: for the other runtimes, the name of the class of transformers that loads it.
    """

    name: str
    variant: str
    path: Path
    runtime: str = "onnxruntime"
    model_class: str = ""


@dataclass(frozen=True)
class Ratio:
    """A quotient of two latencies with the two ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """The rounds of one subject at one shape: what was asked for, what really ran, and every timed sample.

    Attributes:
        subject: the subject's name.
        variant: the subject's variant.
        runtime: the library that ran the file.
        provider: the execution provider read back from the session, in the recipe's words.
        provider_asked: the execution provider that was asked for.
        batch: examples per run.
        sequence: tokens per example.
        threads: threads that compute inside one operator.
        round_ms: milliseconds per run, one number per round, in the order of the rounds.
        speedup: latency of the reference over this one; the reference itself has exactly 1.
        repeats: consecutive runs that each of these numbers is the mean of.
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
        """Examples per second at the median latency."""
        return 1000.0 * self.batch / self.p50_ms

    def _percentile(self, q: float) -> float:
        return float(np.percentile(self.round_ms, q))


@dataclass(frozen=True)
class Control:
    """The identical-pair (A/A) control of one shape: the reference timed against a second session of itself.

    Attributes:
        batch: examples per run.
        sequence: tokens per example.
        ratio: first session over second; the interval is corrected for the number of shapes.
        openings: times that all sessions were opened anew in the try that was kept.
        rounds: rounds of that try, all openings together.
        retries: tries thrown away before it because their interval excluded 1.
    """

    batch: int
    sequence: int
    ratio: Ratio
    openings: int
    rounds: int
    retries: int

    @property
    def ok(self) -> bool:
        """Whether the interval contains 1, so that the speed-ups of this shape may be believed."""
        return self.ratio.low <= 1.0 <= self.ratio.high


@dataclass(frozen=True)
class Latency:
    """Everything one call of `measure_latency` found.

    Attributes:
        measurements: one for every subject at every shape, shape by shape.
        controls: one for every shape.
    """

    measurements: tuple[Measurement, ...]
    controls: tuple[Control, ...]

    def __str__(self) -> str:
        return "\n".join(
            f"  {row.subject:<14}{row.variant:<14}{row.batch:>4} x {row.sequence:<5}{row.p50_ms:>9.2f} ms"
            f"{row.speedup.value:>8.2f}x  [{row.speedup.low:.2f}, {row.speedup.high:.2f}]"
            for row in self.measurements
        )

"""Several files that compute the same compete: the fastest one is kept; making them is left to export."""

from __future__ import annotations

from collections.abc import Sequence

from skillprune.benchmark import Feeds, Subject, measure_latency
from skillprune.export import Candidates, OnnxArtifact
from skillprune.pipeline.choice import mean_speedups
from skillprune.pipeline.results import Tried
from skillprune.progress import Progress
from skillprune.recipe import BenchmarkSpec

ROUNDS = 24
"""Timed rounds of every shape; which of two files that differ by less than these can tell is kept hardly matters."""


def fastest(
    subject: str, candidates: Candidates, feeds: Feeds, spec: BenchmarkSpec, *, seed: int, progress: Progress
) -> tuple[OnnxArtifact, tuple[Tried, ...]]:
    """The file with the smallest times, the geometric mean over all shapes of the recipe, and how all of them did.

    Args:
        subject: ``dense`` or ``pruned``.
        candidates: files of one model that were each proven right, and those that were not.
        feeds: inputs of a batch and a sequence length.
        spec: shapes, threads and provider.
        seed: of inputs and orders.
        progress: told about rounds.
    """
    refused = tuple(Tried(subject, each.name, refused=each.why) for each in candidates.failed)
    if len(candidates.passed) == 1:
        (only,) = candidates.passed
        return only, (Tried(subject, only.backend), *refused)
    speeds = _speeds(candidates.passed, feeds, spec, seed, progress)
    best = max(candidates.passed, key=lambda each: speeds[each.backend])
    timed = (Tried(subject, name, speed / speeds[best.backend]) for name, speed in speeds.items())
    return best, (*sorted(timed, key=lambda each: -(each.speed or 0.0)), *refused)


def _speeds(
    files: Sequence[OnnxArtifact], feeds: Feeds, spec: BenchmarkSpec, seed: int, progress: Progress
) -> dict[str, float]:
    """Speed of every file by its exporter, relative to the first one's."""
    latency = measure_latency(
        [Subject("candidate", each.backend, each.path) for each in files],
        spec.shapes,
        feeds,
        threads=spec.threads,
        provider=spec.provider,
        rounds=ROUNDS,
        seed=seed,
        progress=progress,
        isolated=False,
    )
    return mean_speedups(latency, "candidate")

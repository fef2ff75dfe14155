"""Several files that compute the same compete: the fastest one is kept; making them is left to export."""

from __future__ import annotations

from collections.abc import Sequence

from skillprune.benchmark import Feeds, Subject, measure_latency, open_here
from skillprune.errors import CheckpointError, DataError, ProviderUnavailable, VerificationFailed
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

    Files that cannot run one of these shapes, or not on this provider, do not compete.

    Args:
        subject: ``dense`` or ``pruned``.
        candidates: files of one model that were each proven right, and those that were not.
        feeds: inputs of a batch and a sequence length.
        spec: shapes, threads and provider.
        seed: of inputs and orders.
        progress: told about rounds.

    Raises:
        VerificationFailed: no file runs.
    """
    troubles = {each.backend: _trouble(each, feeds, spec) for each in candidates.passed}
    fit = [each for each in candidates.passed if not troubles[each.backend]]
    failed = {each.name: each.why for each in candidates.failed} | {name: why for name, why in troubles.items() if why}
    refused = tuple(Tried(subject, name, refused=why) for name, why in failed.items())
    if not fit:
        told = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise VerificationFailed(f"no file of the {subject} model runs the shapes to be timed: {told}")
    if len(fit) == 1:
        return fit[0], (Tried(subject, fit[0].backend), *refused)
    speeds = _speeds(fit, feeds, spec, seed, progress)
    best = max(fit, key=lambda each: speeds[each.backend])
    timed = (Tried(subject, name, speed / speeds[best.backend]) for name, speed in speeds.items())
    return best, (*sorted(timed, key=lambda each: -(each.speed or 0.0)), *refused)


def _trouble(file: OnnxArtifact, feeds: Feeds, spec: BenchmarkSpec) -> str:
    """Why a file cannot run every shape; nothing where it can."""
    try:
        opened = open_here(Subject("candidate", file.backend, file.path), threads=spec.threads, provider=spec.provider)
        for shape in spec.shapes:
            opened.feed(feeds(*shape), f"{shape[0]} x {shape[1]}", "forward")
    except (CheckpointError, DataError, ProviderUnavailable) as failed:
        return str(failed)
    return ""


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

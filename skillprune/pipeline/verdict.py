"""What a run has to keep of its promises: the one place that says ok or not, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from skillprune.benchmark import Latency
from skillprune.evaluation import Comparison, is_within
from skillprune.export import OnnxArtifact
from skillprune.pipeline.choice import PRUNED, Choice
from skillprune.pipeline.results import Exports
from skillprune.planning import PruningPlan
from skillprune.recipe import DemandSpec

SPEEDUP_TOLERANCE = 0.05
"""Share by which a measured speed-up may stay behind the one that was planned for."""


def unmet_plan(plan: PruningPlan) -> tuple[str, ...]:
    """Why the plan is not what was asked for."""
    return () if plan.unmet is None else (plan.unmet,)


def failed_files(
    demand: DemandSpec,
    plan: PruningPlan,
    exports: Exports,
    latency: Latency,
    choice: Choice,
    *,
    asked: Collection[str] = (),
) -> tuple[str, ...]:
    """One sentence per demand or check of ONNX files that does not hold.

    Args:
        demand: what the recipe demands.
        plan: what was pruned.
        exports: the files.
        latency: their times.
        choice: the variant that is named best.
        asked: variants and exporters that were asked for by name, which makes it a failure that they are refused.
    """
    return (
        *(reason for each in exports.variants for reason in _not_smaller(plan, exports.dense, each.artifact)),
        *_elsewhere(latency),
        *_restless(latency),
        *_refused(exports, choice, asked),
        *_slower_than_planned(plan, choice.variant, latency),
        *_too_slow(demand, choice.variant, latency),
    )


def too_wrong(demand: DemandSpec, metric: str, comparison: Comparison) -> tuple[str, ...]:
    """Whether the test metric is worse than the demand allows."""
    if demand.max_drop is None or is_within(comparison.drop, demand.max_drop):
        return ()
    unit = {"perplexity": " times the dense model's", "loss": " nats per token"}.get(metric, "")
    return (f"the test {metric} is worse by {comparison.drop:.4f}{unit}; at most {demand.max_drop:g} was allowed",)


def _not_smaller(plan: PruningPlan, dense: OnnxArtifact, pruned: OnnxArtifact) -> Sequence[str]:
    if plan.width_after == plan.width_before or pruned.bytes < dense.bytes:
        return ()
    return (
        f"the pruned {pruned.variant} ONNX file has {pruned.bytes:,} bytes, the dense one {dense.bytes:,}: it is not "
        "smaller",
    )


def _elsewhere(latency: Latency) -> Sequence[str]:
    """ONNX Runtime falls back to another provider without a word."""
    found = {
        f"{each.subject} {each.variant} was to run on {each.provider_asked} and ran on {each.provider}"
        for each in latency.measurements
        if each.provider != each.provider_asked
    }
    return sorted(found)


def _refused(exports: Exports, choice: Choice, asked: Collection[str]) -> Iterator[str]:
    for tried in exports.tried:
        if tried.subject == PRUNED and tried.refused is not None and tried.exporter in asked:
            yield f"{tried.exporter} could not be made: {tried.refused}"
    for variant in exports.variants:
        if variant.name not in asked:
            continue
        if variant.refused is not None:
            yield f"{variant.name} is refused: {variant.refused}"
        if variant.name in choice.slower:
            speed, fp32 = choice.slower[variant.name]
            yield f"{variant.name} is refused: {speed:.3f}x is slower than fp32 with {fp32:.3f}x, mean over shapes"


def _restless(latency: Latency) -> Sequence[str]:
    return tuple(
        f"the dense file timed against itself at {control.point} gave {control.ratio.value:.3f} "
        f"[{control.ratio.low:.3f}, {control.ratio.high:.3f}] after {control.retries} retries: this machine is too "
        "busy to measure on"
        for control in latency.controls
        if not control.ok
    )


def _too_slow(demand: DemandSpec, variant: str, latency: Latency) -> Sequence[str]:
    if demand.min_speedup is None:
        return ()
    return tuple(
        f"speed-up at {each.point} is {each.speedup.value:.3f} "
        f"[{each.speedup.low:.3f}, {each.speedup.high:.3f}]; its lower end must reach {demand.min_speedup:g}"
        for each in latency.measurements
        if (each.subject, each.variant) == (PRUNED, variant) and each.speedup.low < demand.min_speedup
    )


def _slower_than_planned(plan: PruningPlan, variant: str, latency: Latency) -> Sequence[str]:
    asked = plan.budget.get("speedup")
    if asked is None or plan.unmet is not None:
        return ()
    slowest = min(
        each.speedup.value for each in latency.measurements if (each.subject, each.variant) == (PRUNED, variant)
    )
    if slowest >= (1 - SPEEDUP_TOLERANCE) * asked:
        return ()
    return (f"a speed-up of {asked:g} was planned, {slowest:.3f} was measured",)

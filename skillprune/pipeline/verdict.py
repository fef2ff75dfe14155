"""What a run has to keep of its promises: the one place that says ok or not, and why."""

from __future__ import annotations

from collections.abc import Sequence

from skillprune.benchmark import Latency
from skillprune.evaluation import Comparison, is_within
from skillprune.export import OnnxArtifact
from skillprune.pipeline.results import Exports
from skillprune.planning import PruningPlan
from skillprune.recipe import DemandSpec

SPEEDUP_TOLERANCE = 0.05
"""Share by which a measured speed-up may stay behind the one that was planned for."""


def unmet_plan(plan: PruningPlan) -> tuple[str, ...]:
    """Why the plan is not what was asked for."""
    return () if plan.unmet is None else (plan.unmet,)


def failed_files(demand: DemandSpec, plan: PruningPlan, exports: Exports, latency: Latency) -> tuple[str, ...]:
    """One sentence per demand or check of ONNX files that does not hold."""
    variant = exports.pruned.variant
    return (
        *_not_smaller(plan, exports.dense, exports.pruned),
        *_restless(latency),
        *_slower_than_planned(plan, variant, latency),
        *_too_slow(demand, variant, latency),
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
    return (f"the pruned ONNX file has {pruned.bytes:,} bytes, the dense one {dense.bytes:,}: it is not smaller",)


def _restless(latency: Latency) -> Sequence[str]:
    return tuple(
        f"the dense file timed against itself at {control.batch} x {control.sequence} gave {control.ratio.value:.3f} "
        f"[{control.ratio.low:.3f}, {control.ratio.high:.3f}] after {control.retries} retries: this machine is too "
        "busy to measure on"
        for control in latency.controls
        if not control.ok
    )


def _too_slow(demand: DemandSpec, variant: str, latency: Latency) -> Sequence[str]:
    if demand.min_speedup is None:
        return ()
    return tuple(
        f"speed-up at {each.batch} x {each.sequence} is {each.speedup.value:.3f} "
        f"[{each.speedup.low:.3f}, {each.speedup.high:.3f}]; its lower end must reach {demand.min_speedup:g}"
        for each in latency.measurements
        if (each.subject, each.variant) == ("pruned", variant) and each.speedup.low < demand.min_speedup
    )


def _slower_than_planned(plan: PruningPlan, variant: str, latency: Latency) -> Sequence[str]:
    asked = plan.budget.get("speedup")
    if asked is None or plan.unmet is not None:
        return ()
    slowest = min(
        each.speedup.value for each in latency.measurements if (each.subject, each.variant) == ("pruned", variant)
    )
    if slowest >= (1 - SPEEDUP_TOLERANCE) * asked:
        return ()
    return (f"a speed-up of {asked:g} was planned, {slowest:.3f} was measured",)

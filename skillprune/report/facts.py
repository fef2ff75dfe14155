"""What a report says, in sentences and selections: verdict, speed, cautions; laying them out is left to the views."""

from __future__ import annotations

from collections.abc import Iterator

from skillprune.recipe import Form
from skillprune.report import metrics, wording
from skillprune.report.schema import Report
from skillprune.report.sections import Artifact, Demand, LatencyRow, StackWidths

ACCEPTED_EXCESS = 1.05
"""How many times the speed-up that was asked for may be measured without a word."""

READABLE_WIDTH = 0.02
"""Widest interval of the difference, as a fraction, that still tells something when no drop was demanded."""


def best_variant(report: Report) -> str | None:
    """Name of the chosen variant; none where nothing is exported."""
    return None if report.best is None else report.best.variant


def headline_rows(report: Report) -> tuple[LatencyRow, ...]:
    """The pruned model's rows for the chosen variant, one per shape."""
    return tuple(row for row in report.latency if row.subject == "pruned" and row.variant == best_variant(report))


def dense_row(report: Report, row: LatencyRow) -> LatencyRow | None:
    """The dense reference that ``row`` is compared with: same shape, fp32."""
    for other in report.latency:
        if (other.subject, other.variant) == ("dense", "fp32") and other.shape == row.shape:
            return other
    return None


def best_artifact(report: Report) -> Artifact | None:
    """The chosen variant's file, if it was exported."""
    return next((artifact for artifact in report.artifacts if artifact.variant == best_variant(report)), None)


def checkpoint_value(report: Report) -> float:
    """The test metric of the PyTorch checkpoint: after recovery where there was one."""
    test = report.quality.test
    return test.pruned if test.recovered is None else test.recovered


def shipped_value(report: Report) -> float:
    """The test metric of the chosen ONNX file, of the checkpoint when there is no such file."""
    onnx = report.quality.test.onnx
    return checkpoint_value(report) if report.best is None else onnx.get(report.best.variant, checkpoint_value(report))


def shipped(report: Report) -> str:
    """What the numbers of quality are of."""
    return "checkpoint" if report.best is None else "ONNX file"


def is_uniform(stack: StackWidths) -> bool:
    """Whether every layer has the same width after pruning."""
    return len(set(stack.width_after)) <= 1


def checkpoint_format(report: Report) -> Form:
    """How the checkpoint is written; reports of earlier versions tell it by their widths alone."""
    if report.model.checkpoint_format is not None:
        return report.model.checkpoint_format
    return "uniform" if all(map(is_uniform, report.model.stacks)) else "per-layer"


def speed_with_interval(row: LatencyRow) -> str:
    """1.75x (1.71x to 1.79x), or a dash without a comparison."""
    if row.speedup is None:
        return "-"
    if row.speedup_low is None or row.speedup_high is None:
        return wording.ratio(row.speedup)
    return f"{wording.ratio(row.speedup)} ({wording.interval(row.speedup_low, row.speedup_high)})"


def verdict_line(report: Report) -> str:
    """One line: what was demanded, whether it was met, why not, and the two numbers that matter."""
    demanded = _demanded(report.verdict.demand, report.quality.metric)
    measured = f"Measured: {_measured(report)}."
    reasons = "; ".join(wording.plain(reason).rstrip(".") for reason in report.verdict.reasons)
    if report.verdict.ok and demanded:
        return f"**Met.** Demanded: {demanded}. {measured}"
    if report.verdict.ok:
        return f"**Nothing was demanded.** {measured}"
    stated = f"Demanded: {demanded}. " if demanded else ""
    return f"**Not met.** {stated}Failed: {reasons or 'no reason was recorded'}. {measured}"


def not_faster(report: Report) -> str | None:
    """A plain sentence naming the shapes without a proven speed-up; None when every measured shape is faster."""
    slow = [row for row in headline_rows(report) if (row.speedup_low or 0.0) <= 1.0]
    if not slow:
        return None
    named = "; ".join(f"{wording.shape(*row.shape)}: {_slowness(row)}" for row in slow)
    return f"This model did not get faster at {named}."


def cautions(report: Report) -> Iterator[str]:
    """Everything a reader must know before believing the headline, most important first."""
    if report.best is not None and not headline_rows(report):
        yield "No speed was measured for the chosen variant."
    if sentence := not_faster(report):
        yield sentence
    yield from _faster_than_asked(report)
    yield from too_small(report, report.verdict.demand.max_drop)
    yield from _restless(report)
    yield from wrong_provider(report)
    for file in report.artifacts:
        name = wording.plain(file.variant)
        if file.bytes >= file.dense_bytes:
            sizes = f"{wording.size(file.bytes)}, dense {wording.size(file.dense_bytes)}"
            yield f"The {name} file is not smaller than the dense one ({sizes})."
        if file.tolerance is not None and file.max_abs_diff > file.tolerance:
            found = wording.significant(file.max_abs_diff)
            yield f"The {name} file disagrees with PyTorch: {found}, accepted is {wording.significant(file.tolerance)}."


def too_small(report: Report, demanded: float | None) -> Iterator[str]:
    """A sentence where the test set cannot tell a drop of as much as was demanded from none."""
    quality = report.quality
    limit = READABLE_WIDTH if demanded is None else demanded
    unit = quality.test.dense if quality.metric == "perplexity" else 1.0
    width = (quality.ci_high - quality.ci_low) / unit
    if width > limit:
        yield (
            f"The test set ({report.task.splits.test} examples) is too small to tell a drop of "
            f"{metrics.drop(quality.metric, limit)} from none: the 95 % interval of the difference is "
            f"{metrics.drop(quality.metric, width)} wide."
        )


def wrong_provider(report: Report) -> Iterator[str]:
    """A sentence for every execution provider that ran in another's place."""
    pairs = {(row.provider_asked, row.provider) for row in report.latency if row.provider_asked != row.provider}
    for asked, ran in sorted(pairs):
        yield f"{wording.plain(asked)} was asked for, {wording.plain(ran)} ran."


def treatment(report: Report) -> str:
    """What happened to the weights after slicing, one sentence."""
    repaired = "" if report.repair_method is None else f" Repair: {wording.plain(report.repair_method)}."
    trained = "No training." if report.quality.test.recovered is None else "Trained after pruning."
    return trained + repaired


def _demanded(demand: Demand, metric: str) -> str:
    parts = []
    if demand.min_speedup is not None:
        parts.append(f"at least {wording.ratio(demand.min_speedup)} at every shape")
    if demand.max_drop is not None:
        parts.append(f"at most {metrics.drop(metric, demand.max_drop)} lost on the test set")
    return " and ".join(parts)


def _measured(report: Report) -> str:
    quality = report.quality
    dense, found = quality.test.dense, quality.test.dense + quality.difference
    lost = f"{wording.metric_name(quality.metric)} {metrics.change(quality.metric, dense, found)}"
    if report.best is None:
        return lost
    compared = [row for row in headline_rows(report) if row.speedup is not None]
    if not compared:
        return f"{lost}, no speed"
    # The demand looks at lower ends, so the shape that decides is the one with the lowest of them.
    decisive = min(compared, key=lambda row: row.speedup_low or row.speedup or 0.0)
    where = wording.shape(*decisive.shape)
    return f"{speed_with_interval(decisive)} at {where}, the smallest speed-up; {lost}"


def _slowness(row: LatencyRow) -> str:
    if row.speedup is None:
        return "not compared"
    slower = row.speedup_high is not None and row.speedup_high < 1.0
    return f"{speed_with_interval(row)}, {'slower' if slower else 'no difference that the measurement can tell'}"


def _faster_than_asked(report: Report) -> Iterator[str]:
    asked = None if report.plan is None else report.plan.speedup
    slowest = min((row.speedup for row in headline_rows(report) if row.speedup is not None), default=None)
    if asked is not None and slowest is not None and slowest > ACCEPTED_EXCESS * asked:
        yield (
            f"{wording.ratio(asked)} was asked for and {wording.ratio(slowest)} is the least that was measured: a plan "
            "for less may lose less."
        )


def _restless(report: Report) -> Iterator[str]:
    for control in report.controls:
        if not control.ok:
            found = f"{wording.ratio(control.ratio)}, {wording.interval(control.low, control.high)}"
            where = wording.shape(*control.shape)
            yield f"The identical-pair control is off at {where} ({found}): do not trust the speed-up there."

"""Judges reports by demands. It reads no file and measures nothing: the same reports get the same judgement."""

from __future__ import annotations

import math
from collections.abc import Iterator

from skillprune.benchmark import Ratio, quotient
from skillprune.evaluation import drop as drop_of
from skillprune.evaluation import is_within
from skillprune.gating import comparability
from skillprune.gating.values import MAX_SLOWDOWN, Check, Demands, Judgement
from skillprune.recipe import SHARES
from skillprune.report import LatencyRow, Report, facts, wording

DIGITS = 3
"""Decimals of printed ratios; more where fewer would not tell a number from its limit."""


def judge(report: Report, demands: Demands, baseline: Report | None = None) -> Judgement:
    """Holds a report to demands and, if there is one, to the report of another run.

    The run's own verdict counts always: each of its reasons is a check that failed. Nothing is said of runs whose A/A
    control is off, or of two that were measured under different conditions.

    Raises:
        RecipeError: a demand is out of range, or ``max_slowdown`` has no baseline.
    """
    demands.check(has_baseline=baseline is not None)
    obstacles = tuple(_obstacles(report, demands, baseline))
    warnings = tuple(facts.too_small(report, _limit_of_drop(report, demands)))
    notes = [f"drop of {_metric(report)}, not judged: {_drop_found(report)}"] if demands.max_drop is None else []
    if baseline is not None:
        notes += comparability.noteworthy(report, baseline)
    checks = () if obstacles else tuple(_checks(report, demands, baseline))
    return Judgement(report, baseline, demands, checks, obstacles, warnings, tuple(notes))


def _obstacles(report: Report, demands: Demands, baseline: Report | None) -> Iterator[str]:
    compares = baseline is not None
    yield from comparability.unbelievable(
        report,
        "the run",
        needs_times=demands.asks_for_speed or compares,
        needs_speedups=demands.min_speedup is not None or compares,
    )
    if baseline is not None:
        yield from comparability.unbelievable(baseline, "the baseline", needs_times=True, needs_speedups=True)
        yield from comparability.differences(report, baseline)


def _checks(report: Report, demands: Demands, baseline: Report | None) -> Iterator[Check]:
    yield from _verdict(report)
    yield from _provider(report)
    for row in facts.headline_rows(report):
        if demands.min_speedup is not None:
            yield _speedup(row, demands.min_speedup)
    for row in facts.headline_rows(report):
        if demands.max_p50_ms is not None:
            yield _median(row, demands.max_p50_ms)
    if demands.max_drop is not None:
        yield _drop(report, demands.max_drop)
    if baseline is not None:
        yield from _against(report, baseline, MAX_SLOWDOWN if demands.max_slowdown is None else demands.max_slowdown)


def _verdict(report: Report) -> Iterator[Check]:
    """The run's own verdict: one check if it is kept, else one for each reason."""
    demanded = "the run keeps what its recipe demands, and its own checks"
    reasons = report.verdict.reasons or (() if report.verdict.ok else ("not met; no reason was recorded",))
    if not reasons:
        yield Check("own verdict", True, "met", demanded)
    for number, reason in enumerate(reasons, start=1):
        yield Check("own verdict" if number == 1 else f"own verdict ({number})", False, reason.rstrip("."), demanded)


def _provider(report: Report) -> Iterator[Check]:
    if not report.latency:
        return
    asked = ", ".join(sorted({row.provider_asked for row in report.latency}))
    ran = ", ".join(sorted({row.provider for row in report.latency}))
    wrong = " ".join(facts.wrong_provider(report))
    yield Check("provider", not wrong, wrong.rstrip(".") or f"{ran} ran", asked)


def _speedup(row: LatencyRow, limit: float) -> Check:
    found = _ratio(row)
    digits = _digits(found.low, limit)
    return Check(
        name=f"speed-up at {_where(row)}",
        ok=found.low >= limit,
        measured=_told(found, digits),
        demanded=f"lower end at least {round(limit, 10)}x",
        value=found.value,
        low=found.low,
        high=found.high,
        limit=limit,
    )


def _median(row: LatencyRow, limit: float) -> Check:
    return Check(
        name=f"median time at {_where(row)}",
        ok=row.p50_ms <= limit,
        measured=f"{row.p50_ms:.{_digits(row.p50_ms, limit)}f} ms",
        demanded=f"at most {round(limit, 10)} ms",
        value=row.p50_ms,
        limit=limit,
    )


def _drop(report: Report, limit: float) -> Check:
    found, low, high = _drop_with_interval(report)
    unit, scale = _unit(report)
    return Check(
        name=f"drop of {_metric(report)}",
        ok=is_within(found, limit),
        measured=_drop_found(report, _digits(scale * found, scale * limit, least=2)),
        demanded=f"at most {round(scale * limit, 10)} {unit}",
        value=found,
        low=low,
        high=high,
        limit=limit,
    )


def _against(report: Report, baseline: Report, slowdown: float) -> Iterator[Check]:
    """The speed-ups of two runs at every shape, each against its own dense model."""
    before = {row.shape: row for row in facts.headline_rows(baseline)}
    floor = 1.0 - slowdown
    for row in facts.headline_rows(report):
        mine, other = _ratio(row), _ratio(before[row.shape])
        found = quotient(mine, other, comparisons=len(before))
        digits = _digits(found.high, floor)
        yield Check(
            name=f"speed-up over the baseline's at {_where(row)}",
            ok=not found.high < floor,
            measured=f"{_told(found, digits, 'interval')}, from {mine.value:.3f}x and {other.value:.3f}x",
            demanded=f"interval not wholly below {round(floor, 10)}x",
            value=found.value,
            low=found.low,
            high=found.high,
            limit=floor,
        )


def _limit_of_drop(report: Report, demands: Demands) -> float | None:
    return report.verdict.demand.max_drop if demands.max_drop is None else demands.max_drop


def _drop_with_interval(report: Report) -> tuple[float, float, float]:
    """How much worse what is shipped is, in the unit of ``max_drop``, and its paired interval."""
    quality, dense = report.quality, report.quality.test.dense
    found, *ends = (
        drop_of(quality.metric, dense, dense + change)
        for change in (quality.difference, quality.ci_low, quality.ci_high)
    )
    return found if quality.drop is None else quality.drop, min(ends), max(ends)


def _drop_found(report: Report, digits: int = 2) -> str:
    unit, scale = _unit(report)
    found, low, high = (f"{scale * each + 0.0:.{digits}f}" for each in _drop_with_interval(report))
    return f"{found} {unit}, 95 % interval {low} to {high}, paired, {report.task.splits.test} test examples"


def _unit(report: Report) -> tuple[str, float]:
    """The unit of a drop as a person reads it, and how many of it make one of ``max_drop``."""
    if report.quality.metric in SHARES:
        return "points", 100.0
    return ("%", 100.0) if report.quality.metric == "perplexity" else ("nats", 1.0)


def _metric(report: Report) -> str:
    return wording.metric_name(report.quality.metric)


def _where(row: LatencyRow) -> str:
    return wording.shape(*row.shape)


def _ratio(row: LatencyRow) -> Ratio:
    """The speed-up of a row that has one; those without were told before anything is judged."""
    if row.speedup is None or row.speedup_low is None or row.speedup_high is None:
        raise ValueError(f"{row.subject} {row.variant} at {_where(row)} has no speed-up")
    return Ratio(row.speedup, row.speedup_low, row.speedup_high)


def _told(ratio: Ratio, digits: int, interval: str = "95 % interval") -> str:
    return f"{ratio.value:.{digits}f}x, {interval} {ratio.low:.{digits}f}x to {ratio.high:.{digits}f}x"


def _digits(value: float, limit: float, least: int = DIGITS) -> int:
    """Decimals that a number needs to read otherwise than its limit, unless it is equal."""
    digits = least
    while digits < 10 and not math.isclose(value, limit, rel_tol=1e-9) and round(value - limit, digits) == 0:
        digits += 1
    return digits

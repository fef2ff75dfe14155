"""Renders ``report.md``: the verdict first, then the rest in order of importance; it computes nothing new."""

from __future__ import annotations

from collections.abc import Iterator

from skillprune.report import details, facts, metrics, wording
from skillprune.report.loading import loading_code
from skillprune.report.schema import Report


def render_markdown(report: Report) -> str:
    """``report.md``: verdict, what you get, then the details. Ends with a newline."""
    sections = [
        ("", _opening(report)),
        ("What you get", _gains(report)),
        ("How to load it", _loading(report)),
        ("Widths", details.widths(report)),
        *([("Skill neurons", details.skills(report))] if report.task.labels else []),
        ("Repair", details.repair(report)),
        *([("Recovery", details.recovery(report))] if report.recovery or report.prompts else []),
        *(_exported(report) if report.best is not None else []),
        ("Environment", details.environment(report)),
        ("Stages", details.stages(report)),
    ]
    return "\n\n".join(f"## {title}\n\n{body}" if title else body for title, body in sections) + "\n"


def _exported(report: Report) -> list[tuple[str, str]]:
    """What there is to say of ONNX files."""
    return [
        ("Files", details.artifacts(report)),
        ("Latency", details.latency(report)),
        *([("Where the time goes", details.profile(report))] if report.profile else []),
        ("A/A controls", details.controls(report)),
    ]


def render_summary(report: Report) -> str:
    """The part of ``report.md`` that fits a terminal: verdict and what you get."""
    return f"{_opening(report)}\n\n{_gains(report)}\n"


def _opening(report: Report) -> str:
    lines = [f"# {wording.plain(report.model.source)}, pruned for {wording.plain(report.task.name)}"]
    lines.append(facts.verdict_line(report))
    lines.extend(f"> **Caution.** {sentence}" for sentence in facts.cautions(report))
    return "\n\n".join(lines)


def _gains(report: Report) -> str:
    rows = [*_size_rows(report), *_quality_rows(report), *_speed_rows(report)]
    quality = report.quality
    where = f"{report.task.splits.test} test examples"
    between = metrics.interval(quality.metric, quality.ci_low, quality.ci_high)
    note = (
        f"Difference of the shipped {facts.shipped(report).removeprefix('ONNX ')} from the dense model on {where}: "
        f"{metrics.difference(quality.metric, quality.difference)}, "
        f"95 % interval {between}, paired, {wording.p_value(quality.p_value)}."
    )
    if quality.agreement is not None:
        note += f" Both answer alike on {wording.percent(quality.agreement)} of them."
    best = facts.treatment(report)
    if report.best is not None:
        why = wording.plain(report.best.why).rstrip(".")
        best += f" Shipped variant: {wording.plain(report.best.variant)} ({why})."
    return f"{wording.table(['', 'dense', 'pruned', 'change'], rows)}\n\n{note}\n\n{best}"


def _size_rows(report: Report) -> Iterator[list[str]]:
    model = report.model
    unit = "MACs per token" if model.macs_sequence is None else f"MACs at 1 x {model.macs_sequence}"
    for name, before, after in [
        ("parameters", model.parameters_before, model.parameters_after),
        ("FFN parameters", model.ffn_parameters_before, model.ffn_parameters_after),
        (unit, model.macs_before, model.macs_after),
    ]:
        yield [name, wording.count(before), wording.count(after), wording.change(before, after)]
    if (file := facts.best_artifact(report)) is not None:
        change = wording.change(file.dense_bytes, file.bytes)
        yield ["ONNX file", wording.size(file.dense_bytes), wording.size(file.bytes), change]


def _quality_rows(report: Report) -> Iterator[list[str]]:
    name, test = wording.metric_name(report.quality.metric), report.quality.test
    metric = report.quality.metric
    values = {facts.shipped(report): facts.shipped_value(report), "checkpoint": facts.checkpoint_value(report)}
    if test.recovered is not None:
        values["checkpoint before training"] = test.pruned
    for what, value in values.items():
        cells = [metrics.value(metric, test.dense), metrics.value(metric, value)]
        yield [f"{name} on test, {what}", *cells, metrics.change(metric, test.dense, value)]


def _speed_rows(report: Report) -> Iterator[list[str]]:
    for row in facts.headline_rows(report):
        dense = facts.dense_row(report, row)
        before = "-" if dense is None else wording.milliseconds(dense.p50_ms)
        name = f"median time at {wording.shape(*row.shape)}"
        yield [name, before, wording.milliseconds(row.p50_ms), facts.speed_with_interval(row)]
    yield from _memory_rows(report)


def _memory_rows(report: Report) -> Iterator[list[str]]:
    """At the shape that takes most of it."""
    told = [row for row in facts.headline_rows(report) if row.peak_rss_mib is not None]
    if not told:
        return
    row = max(told, key=lambda each: each.peak_rss_mib or 0.0)
    dense = facts.dense_row(report, row)
    if dense is not None and dense.peak_rss_mib is not None and row.peak_rss_mib is not None:
        name = f"peak memory at {wording.shape(*row.shape)}"
        change = wording.change(dense.peak_rss_mib, row.peak_rss_mib)
        yield [name, wording.mebibytes(dense.peak_rss_mib), wording.mebibytes(row.peak_rss_mib), change]


def _loading(report: Report) -> str:
    code = loading_code(facts.checkpoint_format(report), report.task.type)
    if report.best is None:
        return f"```python\n{code}\n```\n\nPaths are relative to this file's directory."
    file = facts.best_artifact(report)
    onnx = "No ONNX file was exported." if file is None else f"ONNX file: {wording.plain(file.path)}"
    return f"```python\n{code}\n```\n\n{onnx} (paths are relative to this file's directory)."

"""Renders ``README.md`` of the pruned checkpoint, with Hugging Face front matter; saving it is done elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from skillprune.report import facts, metrics, wording
from skillprune.report.details import widths
from skillprune.report.loading import PIPELINES, loading_code, loading_section
from skillprune.report.schema import Report

HUB_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "perplexity": "perplexity", "exact_match": "exact_match"}
"""Names under which the hub files our metrics."""


def render_model_card(report: Report) -> str:
    """``README.md`` of the checkpoint of a finished run."""
    form = facts.checkpoint_format(report)
    title = f"# {wording.plain(_source_name(report))}, pruned with skillprune"
    parts = [
        _front_matter(report),
        title,
        loading_section(form, loading_code(form, report.task.type)),
        f"## What was removed\n\n{_removed(report)}",
        f"## What was measured\n\n{_measured(report)}",
        f"## How it was measured\n\n{_method(report)}",
        f"## Limits\n\n{_bullets(_limits(report))}",
    ]
    return "\n\n".join(parts) + "\n"


def _source_name(report: Report) -> str:
    # A card gets published: of a local directory only the last name is shown, never the path.
    return report.model.hub_id or re.split(r"[/\\:]", report.model.source.rstrip("/\\"))[-1] or "model"


def _front_matter(report: Report) -> str:
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[report.task.type],
        "tags": ["skillprune", "pruned"],
        "metrics": [_hub_metric(report)],
    }
    if report.model.hub_id is not None:
        fields["base_model"] = report.model.hub_id
    fields["model-index"] = [{"name": f"{_source_name(report)}-pruned", "results": [_result(report)]}]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _result(report: Report) -> dict[str, Any]:
    metric = {
        "type": _hub_metric(report),
        "name": f"{report.quality.metric} on {report.task.splits.test} test examples",
        "value": facts.checkpoint_value(report),
    }
    return {
        "task": {"type": PIPELINES[report.task.type]},
        "dataset": {"name": report.task.name, "type": report.task.name, "split": "test"},
        "metrics": [metric],
    }


def _hub_metric(report: Report) -> str:
    return HUB_METRICS.get(report.quality.metric, report.quality.metric)


def _removed(report: Report) -> str:
    model = report.model
    change = wording.change(model.parameters_before, model.parameters_after)
    ffn_change = wording.change(model.ffn_parameters_before, model.ffn_parameters_after)
    text = (
        f"FFN neurons that matter least for the task {wording.plain(report.task.name)}, "
        f"ranked by {wording.plain(report.scoring.criterion)} on {report.scoring.examples} calibration examples. "
        f"Attention and embeddings are untouched in shape. Parameters: {wording.count(model.parameters_before)} to "
        f"{wording.count(model.parameters_after)} ({change}), of these in FFNs "
        f"{wording.count(model.ffn_parameters_before)} to {wording.count(model.ffn_parameters_after)} ({ffn_change}). "
        f"{facts.treatment(report)}"
    )
    return f"{text}\n\n{widths(report)}"


def _measured(report: Report) -> str:
    quality, test = report.quality, report.quality.test
    name = wording.metric_name(quality.metric)
    values = {"dense": test.dense, "this checkpoint": facts.checkpoint_value(report)}
    if test.recovered is not None:
        values["before training"] = test.pruned
    values |= {f"ONNX {wording.plain(variant)}": value for variant, value in test.onnx.items()}
    rows = [[f"{name}, {what}", metrics.value(quality.metric, value)] for what, value in values.items()]
    rows.extend(
        [f"speed-up at {wording.shape(*row.shape)}", facts.speed_with_interval(row)]
        for row in facts.headline_rows(report)
    )
    difference = (
        f"Difference of the shipped {facts.shipped(report)} from the dense model: "
        f"{metrics.difference(quality.metric, quality.difference)}, "
        f"95 % interval {metrics.interval(quality.metric, quality.ci_low, quality.ci_high)}, "
        f"{wording.p_value(quality.p_value)}."
    )
    return f"{wording.table(['', 'value'], rows)}\n\n{difference}"


def _method(report: Report) -> str:
    splits, env = report.task.splits, report.environment
    quality = (
        f"Quality: {splits.test} test examples, read once; {splits.calibration} calibration and {splits.validation} "
        "validation examples are other ones. The interval is paired, the p-value is "
        f"{metrics.test(report.quality.metric)}."
    )
    machine = (
        f"Machine: {wording.plain(env.cpu)}, {env.cores} cores, GPU {wording.plain(env.gpu or 'none')}, "
        f"{wording.plain(env.os)}; torch {wording.plain(env.torch)}, transformers {wording.plain(env.transformers)}, "
        f"onnxruntime {wording.plain(env.onnxruntime)}."
    )
    made = f"Made by skillprune {wording.plain(report.skillprune_version)}, seed {report.seed}."
    return _bullets([quality, *_timing(report), machine, made])


def _timing(report: Report) -> Iterator[str]:
    if report.best is None:
        return
    settings = {
        f"{wording.plain(row.runtime)} {wording.plain(row.provider)}, {row.threads} threads, {row.rounds} rounds"
        for row in facts.headline_rows(report)
    }
    speed = (
        "Speed is that of the exported ONNX file, not of this PyTorch checkpoint: dense fp32 against pruned "
        f"{wording.plain(report.best.variant)}, rounds interleaved, batch x tokens, 95 % intervals"
    )
    yield "; ".join([speed, *sorted(settings)]) + "."


def _limits(report: Report) -> Iterator[str]:
    yield from facts.cautions(report)
    if not report.verdict.ok:
        yield facts.verdict_line(report)
    yield f"Only {wording.plain(report.task.name)} was measured; expect more loss on other tasks, domains or languages."
    if report.best is not None:
        yield "Speed-ups hold for the machine and the shapes above; measure again on others."
    yield "Bias and robustness were not measured; pruning can hurt rare classes more than the average shows."
    yield "Licence and intended use are those of the model it was made from."


def _bullets(lines: Iterator[str] | list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)

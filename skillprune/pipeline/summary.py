"""Condenses a finished run into its `Report` and writes the report's views; nothing is computed but the verdict."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skillprune import report as paper
from skillprune.benchmark import Control, Measurement, environment
from skillprune.checkpoint import read_record
from skillprune.pipeline.directory import StageRecord, write_text
from skillprune.pipeline.results import Variant
from skillprune.pipeline.run import Run
from skillprune.pipeline.verdict import failed_files, too_wrong, unmet_plan
from skillprune.planning import PruningPlan
from skillprune.repair import LayerError


def report_on(run: Run) -> paper.Report:
    """Runs whatever stages are missing and writes ``report.json``, ``report.md`` and the model card.

    Raises:
        SkillPruneError: a stage failed.
    """
    assert run.quality is not None  # every stage is done now
    report = build_report(run)
    write_report(report, run.directory.path)
    return report


def build_report(run: Run) -> paper.Report:
    """The report of a run whose stages are all done."""
    return paper.Report(
        schema_version=1,
        skillprune_version=version("skillprune"),
        created=datetime.now(UTC),
        seed=run.recipe.seed,
        environment=_environment(),
        model=_model(run),
        task=_task(run),
        scoring=_scoring(run),
        quality=_quality(run),
        **_exported(run),
        repair=_repair(run.errors),
        repair_method=run.recipe.repair.method,
        plan=_planned(run),
        recovery=_training(run),
        prompts=_prompts(run),
        stages=tuple(map(_stage, run.directory.records)),
        verdict=_verdict(run),
    )


def _exported(run: Run) -> dict[str, Any]:
    """The parts of a report that speak of ONNX files."""
    if not run.recipe.is_exported:
        return {"artifacts": (), "best": None, "latency": (), "controls": ()}
    dense = run.exports.dense.bytes
    return {
        "artifacts": tuple(_artifact(each, dense, run.directory.path) for each in run.exports.variants),
        "candidates": tuple(paper.CandidateRow.model_validate(asdict(each)) for each in run.exports.tried),
        "best": paper.Best(variant=run.choice.variant, why=run.choice.why),
        "latency": tuple(map(latency_row, run.latency.measurements)),
        "controls": tuple(map(control_row, run.latency.controls)),
        "isolation": run.latency.isolation,
        "profile": tuple(paper.ProfileRow.model_validate(asdict(each)) for each in run.profile),
    }


def write_report(report: paper.Report, directory: Path) -> None:
    """Writes ``report.json``, ``report.md`` and the model card into a run directory."""
    paper.write_json(report, directory / "report.json")
    write_text(directory / "report.md", paper.render_markdown(report))
    write_text(directory / "model" / "README.md", paper.render_model_card(report))


def _environment() -> paper.Environment:
    found = environment()
    fields = {name: found[name] for name in paper.Environment.model_fields if name in found}
    packages = {name: str(found[name]) for name in ("numpy", "onnx") if found[name]}
    return paper.Environment.model_validate({**fields, "packages": packages})


def _model(run: Run) -> paper.Model:
    plan, record = run.plan, read_record(run.directory.path / "model")
    return paper.Model(
        source=_shown(run.recipe.model.name),
        hub_id=run.source.hub_id,
        fingerprint=run.source.fingerprint,
        model_type=run.source.model.config.model_type,
        stacks=_stacks(plan),
        parameters_before=plan.before.parameters,
        parameters_after=plan.after.parameters,
        ffn_parameters_before=plan.before.ffn_parameters,
        ffn_parameters_after=plan.after.ffn_parameters,
        macs_before=plan.before.macs,
        macs_after=plan.after.macs,
        macs_sequence=plan.before.sequence,
        checkpoint_format=None if record is None else record.form,
    )


def _shown(name: str) -> str:
    """A directory as seen from the working directory, which is how people name it; anything else as it is."""
    try:
        return os.path.relpath(name) if os.path.isdir(name) else name
    except ValueError:  # another drive
        return name


def _stacks(plan: PruningPlan) -> tuple[paper.StackWidths, ...]:
    return tuple(
        paper.StackWidths(name=stack, width_before=plan.width_before[stack], width_after=widths)
        for stack, widths in plan.width_after.items()
    )


def _task(run: Run) -> paper.TaskFacts:
    splits = run.splits
    return paper.TaskFacts(
        name=run.task.name,
        metric=run.task.metric,
        splits=paper.SplitSizes(
            calibration=len(splits.calibration), validation=len(splits.validation), test=len(splits.test)
        ),
        labels=run.task.labels,
        type=run.recipe.task.type,
    )


def _planned(run: Run) -> paper.Planned:
    return paper.Planned(
        budget=", ".join(f"{name}: {value}" for name, value in run.plan.budget.items()),
        speedup=run.plan.budget.get("speedup"),
        unmet=run.plan.unmet,
        latency=tuple(paper.ExpectedTime.model_validate(asdict(timing)) for timing in run.plan.latency),
    )


def _scoring(run: Run) -> paper.Scoring:
    return paper.Scoring(
        criterion=run.plan.criterion,
        examples=len(run.splits.calibration),
        seconds=next(record.seconds for record in run.directory.records if record.name == "score"),
        best_per_layer={scores.criterion: scores.best_per_layer() for scores in run.scores},
    )


def _quality(run: Run) -> paper.Quality:
    quality, labels = run.quality, Counter(example.label for example in run.splits.test)
    return paper.Quality(
        metric=run.task.metric,
        test=paper.MetricValues(
            dense=quality.dense,
            pruned=quality.pruned,
            recovered=quality.recovered,
            onnx=quality.onnx,
        ),
        difference=quality.comparison.difference,
        ci_low=quality.comparison.low,
        ci_high=quality.comparison.high,
        p_value=quality.comparison.p_value,
        agreement=quality.comparison.agreement,
        drop=quality.comparison.drop,
        labels={name: labels[index] for index, name in enumerate(run.task.labels)},
    )


def _artifact(variant: Variant, dense_bytes: int, directory: Path) -> paper.Artifact:
    file = variant.artifact
    return paper.Artifact(
        variant=file.variant,
        path=file.path.relative_to(directory).as_posix(),
        bytes=file.bytes,
        dense_bytes=dense_bytes,
        backend=file.backend,
        opset=file.opset,
        max_abs_diff=file.max_abs_diff,
        tolerance=file.tolerance,
        validation=variant.validation,
        kept_in_fp32=variant.kept,
        refused=variant.refused,
    )


def latency_row(row: Measurement) -> paper.LatencyRow:
    """A measurement as the report has it."""
    same = ("subject", "variant", "runtime", "provider", "provider_asked", "batch", "sequence", "phase", "threads")
    computed = ("p50_ms", "p90_ms", "p99_ms", "throughput", "p_value", "peak_rss_mib", "runtime_version")
    return paper.LatencyRow.model_validate(
        {
            **{name: getattr(row, name) for name in (*same, *computed)},
            "rounds": len(row.round_ms),
            "speedup": row.speedup.value,
            "speedup_low": row.speedup.low,
            "speedup_high": row.speedup.high,
        }
    )


def control_row(control: Control) -> paper.ControlRow:
    """An A/A control as the report has it."""
    return paper.ControlRow(
        batch=control.batch,
        sequence=control.sequence,
        phase=control.phase,
        ratio=control.ratio.value,
        low=control.ratio.low,
        high=control.ratio.high,
        ok=control.ok,
        openings=control.openings,
        rounds=control.rounds,
        retries=control.retries,
    )


def _repair(errors: Sequence[LayerError]) -> dict[str, tuple[paper.LayerRepair, ...]]:
    rows: dict[str, tuple[paper.LayerRepair, ...]] = {}
    for error in errors:
        row = paper.LayerRepair(layer=error.layer, error_before=error.before, error_after=error.after)
        rows[error.stack] = (*rows.get(error.stack, ()), row)
    return rows


def _training(run: Run) -> paper.Training | None:
    done = run.recovered.training
    if done is None:
        return None
    before, after = done.epochs[0], done.epochs[done.best]
    # Losses come with their sign turned, since of epochs the highest metric is the best.
    metric, sign = (run.task.metric, 1) if run.task.classifies else ("loss", -1)
    return paper.Training(
        epochs=len(done.epochs) - 1,
        best_epoch=done.best,
        trained=run.recipe.recovery.train,
        examples=run.recovered.examples,
        metric=metric,
        validation_before=sign * before.metric,
        validation_after=sign * after.metric,
        loss_before=before.loss,
        loss_after=after.loss,
    )


def _prompts(run: Run) -> tuple[paper.RetunedPrompt, ...]:
    return tuple(paper.RetunedPrompt(loss_before=each.before, loss_after=each.after) for each in run.recovered.prompts)


def _stage(record: StageRecord) -> paper.Stage:
    return paper.Stage(name=record.name, seconds=record.seconds, peak_rss_mib=record.peak_rss_mib, cached=record.cached)


def _verdict(run: Run) -> paper.Verdict:
    demand = run.recipe.demand
    reasons = unmet_plan(run.plan)
    if run.recipe.is_exported:
        asked = (*run.recipe.variants, *run.recipe.export.backends)
        reasons += failed_files(demand, run.plan, run.exports, run.latency, run.choice, asked=asked)
    reasons += too_wrong(demand, run.task.metric, run.quality.comparison)
    return paper.Verdict(
        ok=not reasons,
        reasons=reasons,
        demand=paper.Demand(min_speedup=demand.min_speedup, max_drop=demand.max_drop),
    )

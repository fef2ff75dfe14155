"""Whether a number may be believed, and two runs be compared: what stands in the way, and what is only worth saying."""

from __future__ import annotations

from collections.abc import Iterator

from skillprune.report import ControlRow, Report, facts, wording

Shape = tuple[int, int, str]

SAME = ("cpu", "gpu", "cores", "cpu_flags", "onnxruntime")
"""What of two environments must agree before their times may be compared."""

NOTED = ("os", "python", "torch", "transformers")
"""What of two environments may differ, and is told."""


def shapes_of(report: Report) -> tuple[Shape, ...]:
    """Every shape at which the best variant was timed, in order."""
    return tuple(dict.fromkeys(row.shape for row in facts.headline_rows(report)))


def is_quiet(control: ControlRow) -> bool:
    """Whether an A/A control held: its interval contains 1."""
    return control.ok and control.low <= 1.0 <= control.high


def unbelievable(report: Report, whose: str, *, needs_times: bool, needs_speedups: bool) -> Iterator[str]:
    """Why what one run measured cannot be judged.

    Args:
        report: of the run.
        whose: what to call it.
        needs_times: whether times are asked for.
        needs_speedups: whether speed-ups with their intervals are.
    """
    for control in report.controls:
        if not is_quiet(control):
            where = wording.shape(*control.shape)
            found = f"{control.ratio:.3f} ({control.low:.3f} to {control.high:.3f})"
            yield (
                f"the A/A control of {whose} is off at {where}: the dense file timed against itself gave {found}, "
                "which should contain 1; measure again on a quieter machine"
            )
    rows = facts.headline_rows(report)
    if needs_times and not rows:
        yield f"{whose} has no times of its best variant: nothing was exported, or nothing was timed"
    if not needs_speedups:
        return
    controlled = {control.shape for control in report.controls}
    for row in rows:
        where = wording.shape(*row.shape)
        if None in (row.speedup, row.speedup_low, row.speedup_high):
            yield f"{whose} has no speed-up with an interval at {where}"
        if row.shape not in controlled:
            yield f"{whose} has no A/A control at {where}"


def differences(run: Report, baseline: Report) -> Iterator[str]:
    """What keeps the speed-ups of two runs from being compared: one sentence with both values each."""
    mine, other = _conditions(run), _conditions(baseline)
    if None not in (run.model.fingerprint, baseline.model.fingerprint):  # the same weights may lie elsewhere
        mine["model"], other["model"] = run.model.fingerprint, baseline.model.fingerprint
    for name in dict.fromkeys([*mine, *other]):
        if mine.get(name) != other.get(name):
            yield f"{name}: {_told(mine.get(name))} in the run, {_told(other.get(name))} in the baseline"


def noteworthy(run: Report, baseline: Report) -> Iterator[str]:
    """What differs between two comparable runs and may explain what is found."""
    for name in NOTED:
        mine, other = getattr(run.environment, name), getattr(baseline.environment, name)
        if mine != other:
            yield f"{name}: {mine} in the run, {other} in the baseline"
    if run.skillprune_version != baseline.skillprune_version:
        yield f"skillprune: {run.skillprune_version} in the run, {baseline.skillprune_version} in the baseline"
    mine, other = map(_dense_exporter, (run, baseline))
    if None not in (mine, other) and mine != other:
        yield f"exporter of the dense file: {mine} in the run, {other} in the baseline"
    if facts.best_variant(run) != facts.best_variant(baseline):
        told = map(_told, map(facts.best_variant, (run, baseline)))
        yield "best variant: {} in the run, {} in the baseline".format(*told)
    for reason in baseline.verdict.reasons:
        yield f"the baseline did not keep its own promises: {reason}"


def _dense_exporter(report: Report) -> str | None:
    """What wrote the file that speed-ups are over."""
    return next((each.exporter for each in report.candidates if each.subject == "dense"), None)


def _conditions(report: Report) -> dict[str, str | None]:
    """What two runs must share."""
    rows = facts.headline_rows(report)
    dense = [row for row in (facts.dense_row(report, each) for each in rows) if row is not None]
    found = {name: getattr(report.environment, name) for name in SAME}
    for name in ("runtime", "provider", "threads"):
        found[name] = ", ".join(sorted({str(getattr(row, name)) for row in (*rows, *dense)}))
    found["shapes"] = ", ".join(wording.shape(*shape) for shape in sorted(shapes_of(report)))
    found["model"] = report.model.hub_id or report.model.source
    found["model_type"] = report.model.model_type
    for stack in report.model.stacks:
        found[f"dense widths of {stack.name}"] = ", ".join(map(str, stack.width_before))
    return {name: None if value is None else str(value) for name, value in found.items()}


def _told(value: str | None) -> str:
    return value or "nothing"

"""What a judgement looks like: JSON, Markdown, JUnit XML, and ratios for a benchmark history. Text is its ``str``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from skillprune.gating.comparability import is_quiet
from skillprune.gating.values import Check, Judgement
from skillprune.report import LatencyRow, Report, facts, wording

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write."""


def to_json(judgement: Judgement) -> str:
    """One JSON object; ends with a newline."""
    value: dict[str, Any] = {
        "outcome": judgement.outcome,
        "run": _identity(judgement.report),
        "baseline": None if judgement.baseline is None else _identity(judgement.baseline),
        "demands": asdict(judgement.demands),
        "checks": [asdict(check) for check in judgement.checks],
        "obstacles": judgement.obstacles,
        "warnings": judgement.warnings,
        "notes": judgement.notes,
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def to_markdown(judgement: Judgement) -> str:
    """A section to append to a page, such as the step summary of GitHub Actions; ends with a newline."""
    report = judgement.report
    parts = [
        f"## Gate: {judgement.outcome}",
        f"{wording.plain(report.model.source)}, pruned for {wording.plain(report.task.name)}. {judgement.summary}",
    ]
    if judgement.obstacles:
        parts.append("\n".join(f"- {wording.plain(each)}" for each in judgement.obstacles))
    if judgement.checks:
        rows = [_row(check) for check in judgement.checks]
        parts.append(wording.table(["result", "check", "measured", "demanded"], rows))
    parts += [f"> **Caution.** {each}" for each in judgement.warnings]
    if judgement.notes:
        parts.append("\n".join(f"- {wording.plain(each)}" for each in judgement.notes))
    return "\n\n".join(parts) + "\n"


def to_junit(judgement: Judgement) -> str:
    """JUnit XML with a test case for every check, or with a single error where nothing can be judged."""
    counts = {
        "tests": str(len(judgement.checks) or 1),
        "failures": str(len(judgement.failed)),
        "errors": str(int(bool(judgement.obstacles))),
        "skipped": "0",
        "time": "0",
    }
    root = ElementTree.Element("testsuites", {"name": "skillprune gate", **counts})
    written = judgement.report.created.strftime("%Y-%m-%dT%H:%M:%S")
    suite = ElementTree.SubElement(root, "testsuite", {"name": "skillprune gate", **counts, "timestamp": written})
    if judgement.obstacles:
        _case(suite, "comparable", "error", judgement.summary, judgement.obstacles)
    for check in judgement.checks:
        lines = [f"measured: {check.measured}", f"demanded: {check.demanded}"]
        _case(suite, check.name, None if check.ok else "failure", "; ".join(lines), lines)
    if remarks := [*judgement.warnings, *judgement.notes]:
        ElementTree.SubElement(suite, "system-out").text = _xml("\n".join(remarks))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def to_benchmark(judgement: Judgement) -> str:
    """The list that github-action-benchmark reads as ``customSmallerIsBetter``; ends with a newline.

    One entry for every shape: time of the pruned model over time of the dense one in the same run, which can be
    followed from one machine to another as milliseconds cannot. Shapes whose A/A control is off are left out. So is the
    drop of the metric: it may be zero or negative, and the action divides by it.
    """
    report = judgement.report
    off = {each.shape for each in report.controls if not is_quiet(each)}
    rows = [row for row in facts.headline_rows(report) if row.speedup and row.shape not in off]
    return json.dumps([_entry(report, row, judgement) for row in rows], indent=2, ensure_ascii=False) + "\n"


def _identity(report: Report) -> dict[str, Any]:
    return {
        "model": report.model.source,
        "task": report.task.name,
        "created": report.created.isoformat(),
        "skillprune_version": report.skillprune_version,
        "variant": facts.best_variant(report),
    }


def _row(check: Check) -> list[str]:
    cells = [check.name, check.measured, check.demanded]
    return ["passed" if check.ok else "**failed**", *map(wording.plain, cells)]


def _case(suite: ElementTree.Element, name: str, kind: str | None, message: str, lines: Sequence[str]) -> None:
    attributes = {"classname": "skillprune.gate", "name": _xml(name), "time": "0"}
    case = ElementTree.SubElement(suite, "testcase", attributes)
    if kind is not None:
        found = ElementTree.SubElement(case, kind, {"message": _xml(message), "type": "gate"})
        found.text = _xml("\n".join(lines))


def _xml(text: str) -> str:
    return _NOT_XML.sub("?", text)


def _entry(report: Report, row: LatencyRow, judgement: Judgement) -> dict[str, Any]:
    entry = {
        "name": f"{Path(report.model.source).name}, {report.task.name}, {wording.shape(*row.shape)}",
        "unit": "pruned time / dense time",
        "value": 1.0 / (row.speedup or 1.0),
    }
    if row.speedup_low is not None and row.speedup_high is not None:
        entry["range"] = f"{1.0 / row.speedup_high:.4f} to {1.0 / row.speedup_low:.4f}"
    p50 = wording.milliseconds(row.p50_ms)
    return {**entry, "extra": f"{row.variant}, {row.provider}, {row.threads} threads, {p50}; gate: {judgement.outcome}"}

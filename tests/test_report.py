"""The report: its schema against real JSON, its file on disk, and what the pages that a person reads say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import AwareDatetime, BaseModel, ValidationError

from skillprune.errors import OutputError, ResourceFailure
from skillprune.report import (
    Report,
    StackWidths,
    read_report,
    render_markdown,
    render_model_card,
    report_schema,
    wording,
    write_json,
)

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "report.schema.json"

# The promise to scripts: these keys, nested like this. Written out by hand so that renaming a field turns a test red.
CONTRACT: dict[str, Any] = yaml.safe_load("""
? schema_version
? skillprune_version
? created
? seed
environment: {cpu, cores, gpu, os, python, torch, transformers, onnxruntime}
model:
  stacks: [{name, width_before, width_after}]
  ? source
  ? model_type
  ? parameters_before
  ? parameters_after
  ? ffn_parameters_before
  ? ffn_parameters_after
  ? macs_before
  ? macs_after
task: {name, metric, labels, splits: {calibration, validation, test}}
scoring: {criterion, examples, seconds}
quality: {metric, difference, ci_low, ci_high, p_value, test: {dense, pruned, onnx}}
artifacts: [{variant, path, bytes, dense_bytes, backend, opset, max_abs_diff, tolerance}]
best: {variant, why}
latency:
- {subject, variant, runtime, provider, provider_asked, batch, sequence, threads, rounds, p50_ms, p90_ms, p99_ms,
   throughput, speedup, speedup_low, speedup_high}
controls: [{batch, sequence, ratio, low, high}]
repair: {encoder: [{layer, error_before, error_after}]}
stages: [{name, seconds, peak_rss_mib, cached}]
verdict: {ok, reasons}
""")

# What a run of the size of MiniLM on SST-2 would write; the latency rows are added below.
EXAMPLE = """
schema_version: 1
skillprune_version: 0.1.0
created: "2026-01-02T03:04:05Z"
seed: 0
environment: {cpu: Some CPU @ 2.60GHz, cores: 2, gpu: null, os: Linux 6.1 x86_64, python: 3.11.7, torch: 2.13.0,
              transformers: 5.23.0, onnxruntime: 1.22.0}
model:
  source: models/minilm-sst2
  model_type: bert
  stacks:
  - {name: encoder, width_before: [1536, 1536, 1536, 1536, 1536, 1536], width_after: [384, 384, 384, 384, 384, 384]}
  parameters_before: 22714000
  parameters_after: 17396000
  ffn_parameters_before: 7091000
  ffn_parameters_after: 1773000
  macs_before: 10620000
  macs_after: 5310000
task: {name: sst2, metric: accuracy, labels: [negative, positive],
       splits: {calibration: 2048, validation: 1000, test: 872}}
scoring: {criterion: wanda, examples: 2048, seconds: 21.5}
quality: {metric: accuracy, test: {dense: 0.891, pruned: 0.876, onnx: {fp32: 0.875}},
          difference: -0.016, ci_low: -0.029, ci_high: -0.002, p_value: 0.0213}
artifacts:
- {variant: fp32, path: onnx/fp32/model.onnx, bytes: 69600000, dense_bytes: 90900000, backend: torchscript, opset: 17,
   max_abs_diff: 0.0000021, tolerance: 0.0001}
best: {variant: fp32, why: the only variant asked for}
controls:
- {batch: 1, sequence: 32, ratio: 1.002, low: 0.99, high: 1.01}
- {batch: 8, sequence: 128, ratio: 1.001, low: 0.99, high: 1.01}
repair:
  encoder: [{layer: 0, error_before: 0.61, error_after: 0.24}, {layer: 1, error_before: 0.5964, error_after: 0.0303}]
stages:
- {name: score, seconds: 21.5, peak_rss_mib: 1200.0, cached: true}
- {name: benchmark, seconds: 75.0, peak_rss_mib: 1500.4, cached: false}
verdict: {ok: true, reasons: []}
"""

ROW = """
{runtime: onnxruntime, provider: CPUExecutionProvider, provider_asked: CPUExecutionProvider, threads: 2, rounds: 60}
"""

# Per shape: dense and pruned median in milliseconds, speed-up and its interval.
TIMES = {(1, 32): (12.34, 7.05, 1.75, 1.71, 1.79), (8, 128): (148.2, 91.4, 1.62, 1.6, 1.65)}


def latency_row(subject: str, shape: tuple[int, int], p50: float, speedup: tuple[float | None, ...]) -> dict[str, Any]:
    """One row of the latency section, tails and throughput derived from the median."""
    row: dict[str, Any] = yaml.safe_load(ROW)
    row.update(subject=subject, variant="fp32", batch=shape[0], sequence=shape[1])
    row.update(p50_ms=p50, p90_ms=1.1 * p50, p99_ms=1.3 * p50, throughput=1000 * shape[0] / p50)
    row.update(zip(("speedup", "speedup_low", "speedup_high"), speedup, strict=True))
    return row


def example() -> dict[str, Any]:
    """The example as plain JSON values, new at every call."""
    value: dict[str, Any] = yaml.safe_load(EXAMPLE)
    value["latency"] = []
    for shape, (dense, pruned, *speedup) in TIMES.items():
        value["latency"].append(latency_row("dense", shape, dense, (None, None, None)))
        value["latency"].append(latency_row("pruned", shape, pruned, tuple(speedup)))
    return value


def build(**sections: dict[str, Any]) -> Report:
    """The example report with some keys of some sections replaced."""
    value = example()
    for name, changes in sections.items():
        value[name] = {**value.get(name, {}), **changes}
    return Report.model_validate(value)


def with_speedup(value: dict[str, Any], shape: tuple[int, int], speedup: float, low: float, high: float) -> None:
    """Gives the pruned model another speed-up at one shape."""
    for row in value["latency"]:
        if row["subject"] == "pruned" and (row["batch"], row["sequence"]) == shape:
            row.update(speedup=speedup, speedup_low=low, speedup_high=high)


# ---- reading rendered Markdown: a naive parser of its tables


def split_cells(line: str) -> list[str]:
    """The cells of one table line, at every bar that no backslash escapes, unescaped."""
    cells, cell, characters = [], "", iter(line.strip()[1:])
    for character in characters:
        if character == "\\":
            cell += next(characters)
        elif character == "|":
            cells.append(cell.strip())
            cell = ""
        else:
            cell += character
    assert cell == "", f"the line does not end with a bar: {line}"
    return cells


def tables(markdown: str) -> Iterator[list[list[str]]]:
    """Every table as rows of cells, header first; a row of another length than the header fails."""
    for block in re.split(r"\n\s*\n", markdown):
        lines = block.splitlines()
        if lines and lines[0].startswith("|"):
            rows = [split_cells(line) for line in lines]
            assert {len(row) for row in rows} == {len(rows[0])}
            assert all(re.fullmatch(r":?-+:?", cell) for cell in rows[1])
            yield [rows[0], *rows[2:]]


def find_table(markdown: str, *header: str) -> list[list[str]]:
    """The rows of the one table whose header holds these words."""
    (found,) = [table for table in tables(markdown) if set(header) <= set(table[0])]
    return found[1:]


# ---- schema


def paths(keys: Any, value: Any) -> Iterator[tuple[str | int, ...]]:
    """Every path that the contract names, through the first item of each list."""
    if isinstance(keys, dict):
        for key, below in keys.items():
            yield (key,)
            yield from ((key, *rest) for rest in paths(below, value[key]))
    elif isinstance(keys, list):
        yield from ((0, *rest) for rest in paths(keys[0], value[0]))


REQUIRED = [path for path in paths(CONTRACT, example()) if path != ("repair", "encoder")]


def parent_of(value: Any, path: tuple[str | int, ...]) -> Any:
    """The object that holds the last key of ``path``."""
    for key in path[:-1]:
        value = value[key]
    return value


def validator() -> Draft202012Validator:
    """The published schema, ready to judge."""
    return Draft202012Validator(json.loads(PUBLISHED.read_text()), format_checker=FormatChecker())


def test_published_schema_is_the_generated_one() -> None:
    assert json.loads(PUBLISHED.read_text()) == report_schema()
    Draft202012Validator.check_schema(report_schema())


def test_schema_accepts_the_json_of_a_report() -> None:
    validator().validate(json.loads(build().model_dump_json()))
    validator().validate(example())


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: ".".join(map(str, path)))
def test_every_key_of_the_contract_is_required(path: tuple[str | int, ...]) -> None:
    value = example()
    del parent_of(value, path)[path[-1]]
    assert not validator().is_valid(value)
    with pytest.raises(ValidationError):
        Report.model_validate(value)


@pytest.mark.parametrize("path", [path for path in REQUIRED if path[0] != "repair"], ids=str)
def test_unknown_keys_are_refused_everywhere(path: tuple[str | int, ...]) -> None:
    value = example()
    holder = parent_of(value, path)
    holder["surprise"] = 1
    assert not validator().is_valid(value)
    with pytest.raises(ValidationError):
        Report.model_validate(value)


def test_every_field_is_described() -> None:
    schema = report_schema()
    for name, section in {**schema["$defs"], "Report": schema}.items():
        assert section["additionalProperties"] is False
        for field, value in section["properties"].items():
            assert len(value.get("description", "")) > 5, f"{name}.{field}"


def test_reports_are_values() -> None:
    report = build()
    with pytest.raises(ValidationError):
        report.quality.difference = 0.5
    for impossible in (math.nan, math.inf):
        with pytest.raises(ValidationError):
            build(quality={"difference": impossible})


def test_widths_before_and_after_name_the_same_layers() -> None:
    with pytest.raises(ValidationError, match="2 layers"):
        StackWidths(name="encoder", width_before=(8, 8), width_after=(4,))


# ---- the file


def test_written_report_reads_back(tmp_path: Path) -> None:
    report = build()
    write_json(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report
    assert read_report(tmp_path) == report
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_write_replaces_the_file_instead_of_emptying_it(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")
    before = target.stat().st_ino
    write_json(build(), target)
    assert target.stat().st_ino != before


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceFailure, match="No space left"):
        write_json(build(), target)
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    assert target.read_text() == "old"


def test_write_into_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResourceFailure, match="nowhere"):
        write_json(build(), tmp_path / "nowhere" / "report.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a skillprune report"),
        ("{}", "schema_version"),
        (json.dumps({**example(), "schema_version": 2}), "schema_version is 2, this skillprune reads 1"),
        (json.dumps({**example(), "seed": "0"}), "seed"),
        (json.dumps({**example(), "verdict": {"ok": True}}), r"verdict\.reasons: Field required"),
        (b"\xff\xfe\x00", "not valid JSON"),
    ],
)
def test_unreadable_reports_are_explained(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(OutputError, match=message) as caught:
        read_report(file)
    assert str(file) in str(caught.value)


def test_missing_report_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such file"):
        read_report(tmp_path / "report.json")


# ---- report.md


def test_headline_table_holds_the_numbers() -> None:
    rows = {row[0]: row[1:] for row in find_table(render_markdown(build()), "dense", "pruned", "change")}
    assert rows == {
        "parameters": ["22.7 M", "17.4 M", "-23.4 %"],
        "FFN parameters": ["7.09 M", "1.77 M", "-75.0 %"],
        "MACs per token": ["10.6 M", "5.31 M", "-50.0 %"],
        "ONNX file": ["90.9 MB", "69.6 MB", "-23.4 %"],
        "accuracy on test, ONNX file": ["89.1 %", "87.5 %", "-1.6 points"],
        "accuracy on test, checkpoint": ["89.1 %", "87.6 %", "-1.5 points"],
        "median time at 1 x 32": ["12.3 ms", "7.05 ms", "1.75x (1.71x to 1.79x)"],
        "median time at 8 x 128": ["148 ms", "91.4 ms", "1.62x (1.60x to 1.65x)"],
    }


def test_difference_is_given_with_interval_and_p_value() -> None:
    text = render_markdown(build(quality={"agreement": 0.951}))
    assert "-1.6 points, 95 % interval -2.9 to -0.2 points, paired, p = 0.021" in text
    assert "alike on 95.1 %" in text


def test_latency_table_equals_the_report() -> None:
    report = build()
    rows = find_table(render_markdown(report), "p50", "p90", "p99")
    assert len(rows) == len(report.latency)
    for row, printed in zip(report.latency, rows, strict=True):
        values = [float(cell.removesuffix(" ms")) for cell in printed[2:6]]
        assert values == pytest.approx([row.p50_ms, row.p90_ms, row.p99_ms, row.throughput], rel=5e-3)
        assert printed[0].split()[0] == row.subject
        assert printed[1] == f"{row.batch} x {row.sequence}"
        if row.speedup is not None and row.speedup_low is not None and row.speedup_high is not None:
            numbers = [float(number) for number in re.findall(r"([\d.]+)x", printed[6])]
            assert numbers == pytest.approx([row.speedup, row.speedup_low, row.speedup_high], abs=5e-3)


def test_p_values_and_memory_stand_beside_the_times() -> None:
    value = example()
    dense, pruned = value["latency"][2:4]
    dense["peak_rss_mib"], pruned["peak_rss_mib"], pruned["p_value"] = 200.0, 150.0, 0.03125
    page = render_markdown(Report.model_validate({**value, "isolation": "one process per subject"}))
    assert [row[7:9] for row in find_table(page, "p50", "p99")[2:4]] == [["-", "200 MiB"], ["0.0312", "150 MiB"]]
    assert ["peak memory at 8 x 128", "200 MiB", "150 MiB", "-25.0 %"] in find_table(page, "dense", "change")
    assert "Timed with one process per subject." in page


def test_a_profile_is_summed_by_kind_of_part() -> None:
    parts = [("dense", "layer 0 ffn", "ffn", 3.0), ("dense", "layer 1 ffn", "ffn", 2.0), ("dense", "head", "head", 5.0)]
    parts += [("pruned", "layer 0 ffn", "ffn", 1.0), ("pruned", "head", "head", 3.0)]
    shape, whole = {"variant": "fp32", "batch": 8, "sequence": 128}, {"dense": 10.0, "pruned": 4.0}
    rows = [{"subject": s, "part": p, "kind": k, "ms": ms, "share": ms / whole[s], **shape} for s, p, k, ms in parts]
    page = render_markdown(Report.model_validate({**example(), "profile": rows}))
    assert find_table(page, "part at 8 x 128") == [
        ["FFN", "5.00 ms, 50.0 %", "1.00 ms, 25.0 %"],
        ["head", "5.00 ms, 50.0 %", "3.00 ms, 75.0 %"],
    ]
    assert "Where the time goes" not in render_markdown(build())


def test_repair_files_controls_and_stages_are_listed() -> None:
    text = render_markdown(build())
    repaired = find_table(text, "sliced only", "repaired")
    assert repaired == [["encoder", "0", "0.610", "0.240"], ["encoder", "1", "0.596", "0.0303"]]
    assert find_table(text, "exporter") == [
        ["onnx/fp32/model.onnx", "69.6 MB", "90.9 MB", "torchscript, opset 17", "2.1e-06", "1.0e-04", "-"]
    ]
    assert find_table(text, "ratio")[0] == ["1 x 32", "1.00x", "0.99x to 1.01x", "0", "yes"]
    assert find_table(text, "stage") == [
        ["score", "21.5 s", "1,200 MiB", "cached"],
        ["benchmark", "1 min 15 s", "1,500 MiB", ""],
    ]
    assert "The stages of this run took 1 min 15 s" in text  # a cached stage cost this run nothing
    assert ["CPU", "Some CPU @ 2.60GHz, 2 cores"] in find_table(text, "value")


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (wording.count(950), "950"),
        (wording.count(999_499), "999 k"),
        (wording.count(999_500), "1.00 M"),
        (wording.count(7_000_000_000), "7.00 B"),
        (wording.size(90_868_376), "90.9 MB"),
        (wording.milliseconds(0.9531), "0.953 ms"),
        (wording.milliseconds(2500.0), "2500 ms"),
        (wording.seconds(125.4), "2 min 05 s"),
        (wording.percent(0.8911), "89.1 %"),
        (wording.points(0.003), "+0.3 points"),
        (wording.points(-0.0004), "-0.04 points"),
        (wording.points(-0.0), "0.0 points"),
        (wording.p_value(0.0004), "p < 0.001"),
        (wording.p_value(0.2149), "p = 0.215"),
        (wording.change(0, 5), "-"),
        (wording.significant(2.1e-6), "2.10e-06"),
    ],
)
def test_numbers_are_written_for_people(printed: str, expected: str) -> None:
    assert printed == expected


@pytest.mark.parametrize("unmet", [None, "there is no more to remove"])
def test_a_planned_speed_up_stands_beside_what_was_measured(unmet: str | None) -> None:
    expected = {"batch": 8, "sequence": 128, "before_ms": 150.0, "after_ms": 100.0}
    asked = {"budget": "speedup: 1.5", "unmet": unmet, "latency": [expected]}
    shown = render_markdown(Report.model_validate({**example(), "plan": asked}))
    assert "Asked for: speedup: 1.5. At 8 x 128 1.50x was planned, 1.62x measured." in shown
    assert (f"Not met: {unmet}." in shown) == (unmet is not None)
    assert "Asked for" not in render_markdown(Report.model_validate(example()))


def test_uniform_widths_take_one_sentence() -> None:
    text = render_markdown(build())
    assert "Every one of the 6 layers of encoder went from 1536 to 384 neurons." in text
    assert not [table for table in tables(text) if "neurons before" in table[0]]
    assert "import skillprune" not in text


def test_one_layer_is_not_called_several() -> None:
    stack = {"name": "decoder", "width_before": [1024], "width_after": [672]}
    model = {**example()["model"], "stacks": [stack]}
    text = render_markdown(Report.model_validate({**example(), "model": model}))
    assert "The one layer of decoder went from 1024 to 672 neurons." in text


def test_uneven_widths_are_grouped_in_a_table_and_need_the_plugin() -> None:
    stack = {"name": "encoder", "width_before": [64] * 5, "width_after": [16, 16, 64, 0, 0]}
    text = render_markdown(build(model={"stacks": [stack]}))
    assert find_table(text, "neurons before") == [
        ["encoder", "0 to 1", "64", "16", "25.0 %"],
        ["encoder", "2", "64", "64", "100.0 %"],
        ["encoder", "3 to 4", "64", "0", "0.0 %"],
    ]
    assert "import skillprune" in text


def verdict_of(report: Report) -> str:
    """The line under the title, where the verdict stands."""
    return render_markdown(report).split("\n\n")[1]


def test_verdict_when_the_demand_is_met() -> None:
    verdict = {"ok": True, "reasons": [], "demand": {"min_speedup": 1.3, "max_drop": 0.02}}
    line = verdict_of(build(verdict=verdict))
    assert line == (
        "**Met.** Demanded: at least 1.30x at every shape and at most 2.0 points lost on the test set. "
        "Measured: 1.62x (1.60x to 1.65x) at 8 x 128, the smallest speed-up; accuracy -1.6 points."
    )


def test_verdict_when_the_demand_failed() -> None:
    reason = "speed-up at 8 x 128 is 1.62x, its lower end 1.60x is below 1.7x."
    verdict = {"ok": False, "reasons": [reason, "another"], "demand": {"min_speedup": 1.7}}
    line = verdict_of(build(verdict=verdict))
    assert line.startswith("**Not met.** Demanded: at least 1.70x at every shape. Failed: speed-up at 8 x 128 is 1.62x")
    assert "below 1.7x; another. Measured:" in line


def test_nothing_demanded_and_slower_is_said_plainly() -> None:
    value = example()
    with_speedup(value, (1, 32), 0.9, 0.85, 0.95)
    with_speedup(value, (8, 128), 1.02, 0.99, 1.05)
    text = render_markdown(Report.model_validate(value))
    assert text.split("\n\n")[1].startswith("**Nothing was demanded.** Measured: 0.90x")
    assert (
        "This model did not get faster at 1 x 32: 0.90x (0.85x to 0.95x), slower; 8 x 128: 1.02x (0.99x to 1.05x), "
        "no difference that the measurement can tell."
    ) in text
    assert "did not get faster" not in render_markdown(build())


@pytest.mark.parametrize(("asked", "more"), [(None, False), (1.2, True), (1.5, True), (1.6, False), (2.0, False)])
def test_more_speed_than_was_asked_for_is_said(asked: float | None, more: bool) -> None:
    # The example's smallest speed-up is 1.62, more than 5 % above 1.54.
    report = build(plan={"budget": "speedup", "speedup": asked, "unmet": None, "latency": []})
    assert ("a plan for less may lose less" in render_markdown(report)) is more


@pytest.mark.parametrize(("max_drop", "small"), [(None, True), (0.01, True), (0.027, False), (0.05, False)])
def test_too_small_test_set_is_called_so(max_drop: float | None, small: bool) -> None:
    # The example's interval is 2.7 points wide; without a demand, two points are readable.
    report = build(
        verdict={"demand": {"max_drop": max_drop}},
        quality={"ci_low": -0.026, "ci_high": 0.001},
    )
    assert ("too small to tell" in render_markdown(report)) is small


def test_false_wins_are_named() -> None:
    value = example()
    value["controls"][1].update(ratio=1.05, low=1.03, high=1.08, ok=False)
    value["artifacts"][0].update(bytes=90_900_000, max_abs_diff=0.5)
    value["latency"][0]["provider_asked"] = "CUDAExecutionProvider"
    text = render_markdown(Report.model_validate(value))
    assert "control is off at 8 x 128 (1.05x, 1.03x to 1.08x)" in text
    assert "not smaller than the dense one" in text
    assert "disagrees with PyTorch: 0.500" in text
    assert "CUDAExecutionProvider was asked for, CPUExecutionProvider ran." in text


def test_user_text_cannot_break_tables() -> None:
    awkward = "a|b\nc\\|d `e` <f>"
    value = example()
    value["stages"][0]["name"] = awkward
    value["model"]["source"] = awkward
    text = render_markdown(Report.model_validate(value))
    assert find_table(text, "stage")[0][0] == "a|b c\\|d `e` <f>"
    assert len(text.split("\n\n")[0].splitlines()) == 1


# ---- model card


def front_matter(card: str) -> dict[str, Any]:
    """The YAML between the first two rulers."""
    start, header, _ = card.split("---\n", 2)
    assert start == ""
    fields = yaml.safe_load(header)
    assert isinstance(fields, dict)
    return fields


def test_card_front_matter_holds_the_metric() -> None:
    fields = front_matter(render_model_card(build()))
    assert fields["library_name"] == "transformers"
    assert fields["pipeline_tag"] == "text-classification"
    assert fields["tags"] == ["skillprune", "pruned"]
    assert "base_model" not in fields
    (result,) = fields["model-index"][0]["results"]
    assert result["metrics"][0]["type"] == "accuracy"
    assert result["metrics"][0]["value"] == 0.876
    assert result["dataset"]["name"] == "sst2"


def test_card_names_the_base_model_only_on_a_hub() -> None:
    report = build(model={"source": "someone/classifier", "hub_id": "someone/classifier"})
    assert front_matter(render_model_card(report))["base_model"] == "someone/classifier"


def test_card_does_not_publish_local_paths() -> None:
    for source in ("/home/someone/secret/minilm", "C:\\Users\\someone\\minilm", "../someone/minilm/"):
        card = render_model_card(build(model={"source": source}))
        assert "someone" not in card
        assert "minilm" in card


def test_card_installs_the_plugin_first_where_it_is_needed() -> None:
    with_plugin = render_model_card(build(model={"checkpoint_format": "per-layer"}))
    assert 0 < with_plugin.index("pip install skillprune") < with_plugin.index("import skillprune")
    assert with_plugin.index("import skillprune") < with_plugin.index("from transformers")
    for form in ("uniform", "padded", "auto_map"):
        plain = render_model_card(build(model={"checkpoint_format": form}))
        assert "pip install" not in plain
        assert "import skillprune" not in plain
        assert ("trust_remote_code=True" in plain) == (form == "auto_map")
        assert ("neurons that do nothing" in plain) == (form == "padded")


@pytest.mark.parametrize(("widths", "form"), [((8, 8), "uniform"), ((8, 4), "per-layer")])
def test_a_report_that_names_no_form_has_it_by_its_widths(widths: tuple[int, ...], form: str) -> None:
    stacks = [{"name": "encoder", "width_before": (16, 16), "width_after": widths}]
    report = build(model={"stacks": stacks})
    assert report.model.checkpoint_format is None
    for page in (render_markdown(report), render_model_card(report)):
        assert ("import skillprune" in page) == (form == "per-layer")


def test_card_reports_the_recovered_checkpoint() -> None:
    test = {"dense": 0.891, "pruned": 0.86, "recovered": 0.885, "onnx": {"fp32": 0.884}}
    card = render_model_card(build(quality={"test": test, "metric": "macro_f1"}))
    metric = front_matter(card)["model-index"][0]["results"][0]["metrics"][0]
    assert (metric["type"], metric["value"]) == ("f1", 0.885)
    rows = dict(find_table(card, "value"))
    assert rows["macro F1, this checkpoint"] == "88.5 %"
    assert rows["macro F1, ONNX fp32"] == "88.4 %"
    assert rows["speed-up at 8 x 128"] == "1.62x (1.60x to 1.65x)"
    assert "Trained after pruning." in card


def test_card_repeats_what_went_wrong() -> None:
    value = example()
    with_speedup(value, (1, 32), 0.9, 0.85, 0.95)
    value["verdict"] = {"ok": False, "reasons": ["too slow at 1 x 32"]}
    limits = render_model_card(Report.model_validate(value)).split("## Limits")[1]
    assert "did not get faster at 1 x 32" in limits
    assert "Failed: too slow at 1 x 32" in limits


def test_loading_lines_load_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "good", "bad"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    wrapped.save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=4, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for page in (render_markdown(build()), render_model_card(build())):
        (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        names: dict[str, Any] = {}
        exec(code, names)  # the lines are ours: the page prints them for the reader to run
        assert names["model"]("good")[0]["label"] in {"no", "yes"}


# ---- any valid report


def values_of(annotation: Any, metadata: list[Any]) -> SearchStrategy[Any]:
    """Values of one annotation of the report's models, within the bounds its metadata sets."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values_of(arguments[0], [*metadata, *arguments[1:]])
    if origin in (Union, UnionType):
        return st.one_of([values_of(argument, metadata) for argument in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0], []), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=8), values_of(arguments[1], []), max_size=2)
    if annotation in (int, float):
        return numbers(annotation, metadata)
    if annotation is str:
        return st.text(max_size=20) | st.sampled_from(["fp32", "dense", "pruned", "a|b", "x\ny", "\\", "`", "---"])
    if annotation is bool:
        return st.booleans()
    if annotation is NoneType:
        return st.none()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return sections(annotation)
    assert annotation is AwareDatetime, f"no values known for {annotation}"
    return st.datetimes(timezones=st.just(timezone(timedelta(hours=2))))


def numbers(kind: type, metadata: list[Any]) -> SearchStrategy[Any]:
    """Numbers within the bounds that pydantic keeps in a field's metadata."""
    flat = [item for entry in metadata for item in getattr(entry, "metadata", [entry])]
    bound = {name: getattr(item, name) for item in flat for name in ("ge", "gt", "le") if hasattr(item, name)}
    low, high = bound.get("ge", bound.get("gt")), bound.get("le")
    if kind is int:
        return st.integers(-(10**6) if low is None else low, 10**13 if high is None else high)
    lowest, highest = -1e9 if low is None else low, 1e9 if high is None else high
    return st.floats(lowest, highest, exclude_min="gt" in bound, allow_nan=False)


def sections(model: type[BaseModel]) -> SearchStrategy[Any]:
    """Instances of one of the report's models, built field by field."""
    if model is StackWidths:
        pairs = st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 4096)), max_size=4)
        widths = pairs.map(lambda rows: (tuple(row[0] for row in rows), tuple(row[1] for row in rows)))
        return st.builds(
            lambda name, both: StackWidths(name=name, width_before=both[0], width_after=both[1]), st.text(), widths
        )
    fields = {name: values_of(field.annotation, field.metadata) for name, field in model.model_fields.items()}
    return st.builds(model, **fields)


@settings(max_examples=60, deadline=None)
@given(report=sections(Report))
def test_any_report_renders_validates_and_round_trips(report: Report) -> None:
    text = report.model_dump_json()
    assert Report.model_validate_json(text, strict=True) == report
    validator().validate(json.loads(text))
    page = render_markdown(report)
    found = list(tables(page))
    assert len(find_table(page, "stage")) == len(report.stages)
    assert len(found) >= 3  # what you get, environment and stages are always there
    if report.latency and report.best is not None:
        assert len(find_table(page, "p50")) == len(report.latency)
    card = render_model_card(report)
    assert list(tables(card))
    values = front_matter(card)["model-index"][0]["results"][0]["metrics"]
    test = report.quality.test
    assert values[0]["value"] == (test.pruned if test.recovered is None else test.recovered)


def test_dates_need_a_time_zone() -> None:
    with pytest.raises(ValidationError):
        Report.model_validate({**example(), "created": datetime(2026, 1, 2)})

"""The gate: what it lets pass, what it fails, what it refuses to judge, and the files it leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import invoke, tree
from test_report import example, find_table, with_speedup

import skillprune
from skillprune.errors import Incomparable, OutputError, RecipeError, ResourceFailure
from skillprune.gating import Demands, Judgement, judge, to_benchmark, to_json, to_junit, to_markdown
from skillprune.report import Report

SHAPES = ((1, 32), (8, 128))
Change = Callable[[dict[str, Any]], None]


def report(change: Change = lambda value: None) -> Report:
    """The example of the report's tests, changed; its speed-ups are 1.75 (1.71 to 1.79) and 1.62 (1.60 to 1.65)."""
    value = example()
    for row in value["latency"]:
        row.update(provider="cpu", provider_asked="cpu")
    change(value)
    return Report.model_validate(value)


def faster(factor: float) -> Report:
    """The example with every speed-up, and both ends of its interval, that much larger."""

    def change(value: dict[str, Any]) -> None:
        for row in value["latency"]:
            if row["subject"] == "pruned":
                row.update({name: factor * row[name] for name in ("speedup", "speedup_low", "speedup_high")})

    return report(change)


def put(*path: Any, to: Any) -> Change:
    """A change of the value at the end of a path of keys."""

    def change(value: dict[str, Any]) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


def each_row(**fields: Any) -> Change:
    """A change of every row of the latency section."""

    def change(value: dict[str, Any]) -> None:
        for row in value["latency"]:
            row.update(fields)

    return change


def without_shape(shape: tuple[int, int]) -> Change:
    """Takes one shape out of the measurement."""

    def change(value: dict[str, Any]) -> None:
        for section in ("latency", "controls"):
            value[section] = [row for row in value[section] if (row["batch"], row["sequence"]) != shape]

    return change


def not_exported(value: dict[str, Any]) -> None:
    """The report of a kind of task without ONNX files."""
    value.update(artifacts=[], best=None, latency=[], controls=[])
    value["quality"]["test"]["onnx"] = {}


def failed(judgement: Judgement) -> list[str]:
    """Names of the checks that did not hold."""
    return [check.name for check in judgement.failed]


def save(folder: Path, found: Report, name: str = "run") -> Path:
    """A run directory that holds this report."""
    path = folder / name
    path.mkdir()
    (path / "report.json").write_text(found.model_dump_json(), encoding="utf-8")
    return path


# ---- one run


def test_without_a_demand_the_runs_own_verdict_and_its_provider_decide() -> None:
    judgement = judge(report(), Demands())
    assert judgement.ok and judgement.outcome == "passed"
    assert [check.name for check in judgement.checks] == ["own verdict", "provider"]


def test_every_reason_of_the_runs_own_verdict_fails_the_gate() -> None:
    found = judge(report(put("verdict", to={"ok": False, "reasons": ["it is not smaller", "too slow."]})), Demands())
    assert found.outcome == "failed"
    assert [check.measured for check in found.failed] == ["it is not smaller", "too slow"]
    assert len({check.name for check in found.checks}) == len(found.checks)
    assert failed(judge(report(put("verdict", to={"ok": False, "reasons": []})), Demands())) == ["own verdict"]


def test_another_provider_than_was_asked_for_fails() -> None:
    judgement = judge(report(each_row(provider_asked="cuda")), Demands())
    assert failed(judgement) == ["provider"]
    assert "cuda was asked for, cpu ran" in judgement.failed[0].measured


@pytest.mark.parametrize(
    ("limit", "names"),
    [
        (1.6, []),  # exactly reaching it is reaching it
        (1.61, ["speed-up at 8 x 128"]),
        (1.71, ["speed-up at 8 x 128"]),
        (1.72, ["speed-up at 1 x 32", "speed-up at 8 x 128"]),
    ],
)
def test_the_lower_end_must_reach_the_speedup_at_every_shape(limit: float, names: list[str]) -> None:
    judgement = judge(report(), Demands(min_speedup=limit))
    assert failed(judgement) == names
    assert [(check.value, check.low) for check in judgement.checks[2:]] == [(1.75, 1.71), (1.62, 1.6)]


@pytest.mark.parametrize(
    ("limit", "names"),
    [(91.4, []), (91.3, ["median time at 8 x 128"]), (7, ["median time at 1 x 32", "median time at 8 x 128"])],
)
def test_the_median_must_be_short_enough_at_every_shape(limit: float, names: list[str]) -> None:
    assert failed(judge(report(), Demands(max_p50_ms=limit))) == names


def test_only_the_best_variant_of_the_pruned_model_counts() -> None:
    def change(value: dict[str, Any]) -> None:
        slow = {**value["latency"][1], "variant": "int8-dynamic", "p50_ms": 900.0, "speedup_low": 0.1}
        value["latency"] += [slow, {**value["latency"][1], "subject": "torch", "speedup_low": 0.1}]

    assert judge(report(change), Demands(min_speedup=1.5, max_p50_ms=100)).ok


@pytest.mark.parametrize(("right_before", "right_after"), [(20, 18), (9, 7), (13, 11), (20, 20), (18, 20)])
def test_a_drop_of_exactly_the_limit_is_fine(right_before: int, right_after: int) -> None:
    """Two of twenty: shares of a test set seldom subtract to the round number that is demanded."""
    found = report(put("quality", "drop", to=right_before / 20 - right_after / 20))
    assert judge(found, Demands(max_drop=0.1)).ok
    assert failed(judge(found, Demands(max_drop=0.0))) == ["drop of accuracy"] * (right_after < right_before)


@pytest.mark.parametrize(
    ("metric", "dense", "difference", "drop", "low", "high", "said"),
    [
        ("accuracy", 0.9, -0.016, 0.016, 0.002, 0.029, "1.60 points"),
        ("perplexity", 20.0, 2.0, 0.1, 0.05, 0.15, "10.00 %"),
        ("loss", 2.0, 0.25, 0.25, 0.125, 0.375, "0.250 nats"),
    ],
)
def test_the_drop_and_its_interval_are_in_the_unit_of_the_demand(
    metric: str, dense: float, difference: float, drop: float, low: float, high: float, said: str
) -> None:
    """A report of an earlier version has no drop: then it follows from the difference."""
    scale = dense if metric == "perplexity" else 1.0
    ends = (-high, -low) if metric == "accuracy" else (low * scale, high * scale)

    def change(value: dict[str, Any]) -> None:
        value["quality"].update(metric=metric, difference=difference, ci_low=ends[0], ci_high=ends[1])
        value["quality"]["test"]["dense"] = dense

    check = judge(report(change), Demands(max_drop=drop - 0.001)).checks[-1]
    assert (check.value, check.low, check.high) == pytest.approx((drop, low, high))
    assert not check.ok and said in check.measured and "872 test examples" in check.measured
    assert judge(report(change), Demands(max_drop=drop)).ok


def test_the_interval_of_the_drop_is_printed_even_when_it_is_not_judged() -> None:
    assert "1.60 points, 95 % interval 0.20 to 2.90, paired" in str(judge(report(), Demands()))
    assert "1.60 points, 95 % interval 0.20 to 2.90, paired" in str(judge(report(), Demands(max_drop=0.02)))


def test_a_test_set_that_is_too_small_is_told() -> None:
    (warning,) = judge(report(), Demands(max_drop=0.02)).warnings
    assert "too small" in warning and "872" in warning
    assert judge(report(), Demands(max_drop=0.03)).warnings == ()


def test_a_number_that_misses_by_little_does_not_read_like_its_limit() -> None:
    found = judge(report(lambda value: with_speedup(value, (1, 32), 1.6, 1.49999, 1.7)), Demands(min_speedup=1.5))
    assert "1.49999x" in found.failed[0].measured
    found = judge(report(put("quality", "drop", to=0.0100001)), Demands(max_drop=0.01))
    assert "1.00001 points" in found.failed[0].measured and "1.0 points" in found.failed[0].demanded


def test_a_task_that_is_not_exported_can_be_held_to_its_drop_alone() -> None:
    assert judge(report(not_exported), Demands(max_drop=0.02)).ok
    for demands in (Demands(min_speedup=0.1), Demands(max_p50_ms=1e6)):
        judgement = judge(report(not_exported), demands)
        assert judgement.outcome == "incomparable" and "no times" in judgement.obstacles[0]


@given(st.floats(0.5, 3.0), st.floats(0.3, 1.0), st.floats(0.5, 3.0), st.floats(0.01, 0.5))
@settings(max_examples=60, deadline=None)
def test_a_slower_run_never_passes_where_a_faster_one_fails(
    speed: float, factor: float, limit: float, slowdown: float
) -> None:
    for demands, baseline in ((Demands(min_speedup=limit), None), (Demands(max_slowdown=slowdown), report())):
        fast, slow = (judge(faster(each), demands, baseline) for each in (speed, speed * factor))
        assert set(failed(fast)) <= set(failed(slow))
        assert len(fast.checks) == len(slow.checks)


# ---- a baseline


def test_equal_runs_pass() -> None:
    judgement = judge(report(), Demands(max_slowdown=1e-9), report())
    assert judgement.ok and judgement.notes[1:] == ()
    assert [check.name for check in judgement.checks[2:]] == [
        f"speed-up over the baseline's at {shape}" for shape in ("1 x 32", "8 x 128")
    ]


def test_a_lost_speedup_fails_only_where_the_whole_interval_says_so() -> None:
    assert failed(judge(faster(0.94), Demands(), report())) == []  # more than 5 % is lost, and not surely
    assert len(failed(judge(faster(0.9), Demands(), report()))) == 2
    assert failed(judge(faster(0.9), Demands(max_slowdown=0.1), report())) == []
    assert failed(judge(faster(1.5), Demands(), report())) == []
    slow = report(lambda value: with_speedup(value, (8, 128), 1.4, 1.39, 1.41))
    assert failed(judge(slow, Demands(), report())) == ["speed-up over the baseline's at 8 x 128"]


def test_a_shape_among_others_must_be_surer_than_one_alone() -> None:
    """The chance that any of several shapes is failed by accident stays that of one."""
    alone, among = without_shape((8, 128)), lambda value: None
    found = {}
    for name, change in (("alone", alone), ("among", among)):
        checks = judge(report(change), Demands(), report(change)).checks
        found[name] = next(check for check in checks if check.name.endswith("1 x 32") and "baseline" in check.name)
    assert found["among"].high > found["alone"].high > 1.0  # type: ignore[operator]


def test_speedups_are_compared_and_not_milliseconds() -> None:
    assert judge(report(each_row(p50_ms=1000.0)), Demands(), report()).ok


# ---- what cannot be judged

REFUSED = {
    "cpu": put("environment", "cpu", to="Another CPU"),
    "gpu": put("environment", "gpu", to="Some GPU"),
    "cores": put("environment", "cores", to=64),
    "cpu_flags": put("environment", "cpu_flags", to="avx2"),
    "onnxruntime": put("environment", "onnxruntime", to="1.99.0"),
    "runtime": each_row(runtime="another"),
    "provider": each_row(provider="cuda", provider_asked="cuda"),
    "threads": each_row(threads=7),
    "shapes": without_shape((8, 128)),
    "model": put("model", "source", to="another/model"),
    "model_type": put("model", "model_type", to="roberta"),
    "dense widths of encoder": put("model", "stacks", 0, "width_before", to=[1536] * 5 + [3072]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_runs_under_different_conditions_are_not_compared(name: str) -> None:
    for run, baseline in ((report(REFUSED[name]), report()), (report(), report(REFUSED[name]))):
        judgement = judge(run, Demands(), baseline)
        assert judgement.outcome == "incomparable" and not judgement.ok and judgement.checks == ()
        (obstacle,) = judgement.obstacles
        assert obstacle.startswith(f"{name}: ")
        with pytest.raises(Incomparable, match=f"{name}: .* in the run, .* in the baseline"):
            judgement.raise_if_incomparable()


def test_both_values_of_every_difference_are_told() -> None:
    def change(value: dict[str, Any]) -> None:
        for name in ("cpu", "threads", "shapes"):
            REFUSED[name](value)

    judgement = judge(report(change), Demands(), report())
    text = "\n".join(judgement.obstacles)
    assert len(judgement.obstacles) == 3
    for value in ("Another CPU", "Some CPU @ 2.60GHz", "threads: 7", "2 in the baseline", "1 x 32, 8 x 128"):
        assert value in text


def test_no_shape_in_common_is_refused() -> None:
    judgement = judge(report(without_shape((8, 128))), Demands(), report(without_shape((1, 32))))
    assert judgement.obstacles == ("shapes: 1 x 32 in the run, 8 x 128 in the baseline",)


@pytest.mark.parametrize("name", ["os", "python", "torch", "transformers"])
def test_other_versions_are_noted_and_not_refused(name: str) -> None:
    judgement = judge(report(put("environment", name, to="9.9")), Demands(), report())
    assert judgement.ok
    assert [note for note in judgement.notes if note.startswith(f"{name}: 9.9 in the run, ")]


def test_what_the_baseline_did_not_keep_is_noted() -> None:
    broken = report(put("verdict", to={"ok": False, "reasons": ["it is not smaller"]}))
    judgement = judge(report(), Demands(), broken)
    assert judgement.ok and any("it is not smaller" in note for note in judgement.notes)


def test_one_model_from_the_hub_is_one_wherever_it_was_downloaded_to() -> None:
    def hub(source: str) -> Report:
        return report(lambda value: value["model"].update(source=source, hub_id="me/it"))

    assert judge(hub("cache/a"), Demands(), hub("cache/b")).ok


def test_the_same_weights_are_one_model_wherever_they_lie_and_others_at_their_place_are_another() -> None:
    def at(source: str, fingerprint: str) -> Report:
        return report(lambda value: value["model"].update(source=source, fingerprint=fingerprint))

    assert judge(at("here/model", "abc"), Demands(), at("../there/model", "abc")).ok
    trained = judge(at("here/model", "abc"), Demands(), at("here/model", "def"))
    assert trained.obstacles == ("model: abc in the run, def in the baseline",)


def test_another_exporter_of_the_dense_file_is_noted() -> None:
    def written(exporter: str) -> Report:
        row = {"subject": "dense", "exporter": exporter, "speed": 1.0, "refused": None}
        return report(put("candidates", to=[row]))

    judgement = judge(written("native"), Demands(), written("torchscript"))
    assert judgement.ok
    assert "exporter of the dense file: native in the run, torchscript in the baseline" in judgement.notes


OFF = {"low": 1.01, "high": 1.05, "ratio": 1.03}


@pytest.mark.parametrize("control", [OFF, {"ok": False}, {**OFF, "ok": False}])
@pytest.mark.parametrize("whose", ["the run", "the baseline"])
def test_a_control_that_is_off_refuses_everything(control: dict[str, Any], whose: str) -> None:
    noisy = report(lambda value: value["controls"][1].update(control))
    run, baseline = (noisy, report()) if whose == "the run" else (report(), noisy)
    judgement = judge(run, Demands(), baseline)
    assert judgement.outcome == "incomparable"
    (obstacle,) = judgement.obstacles
    assert whose in obstacle and "8 x 128" in obstacle
    assert judge(noisy, Demands()).outcome == "incomparable"  # without a baseline and a demand too


@pytest.mark.parametrize("ends", [(1.0, 1.05), (0.95, 1.0)])
def test_a_control_that_touches_one_is_fine(ends: tuple[float, float]) -> None:
    assert judge(report(lambda value: value["controls"][0].update(low=ends[0], high=ends[1])), Demands()).ok


def test_a_speedup_without_control_or_interval_is_not_judged() -> None:
    no_control = report(put("controls", to=[]))
    no_interval = report(lambda value: with_speedup(value, (1, 32), 1.7, None, None))  # type: ignore[arg-type]
    for found, said in ((no_control, "no A/A control"), (no_interval, "no speed-up")):
        assert judge(found, Demands()).ok
        for judgement in (judge(found, Demands(min_speedup=1.1)), judge(report(), Demands(), found)):
            assert judgement.outcome == "incomparable" and said in judgement.obstacles[0]


# ---- numbers that cannot be demanded


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("min_speedup", (0.0, -1.0, float("nan"), float("inf"))),
        ("max_drop", (-0.01, float("nan"), float("inf"))),
        ("max_p50_ms", (0.0, -5.0, float("nan"))),
        ("max_slowdown", (0.0, 1.0, -0.1, 5.0, float("nan"))),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(RecipeError, match=name):
            judge(report(), Demands(**{name: value}), report())
    judge(report(), Demands(max_drop=0.0))


def test_a_slowdown_needs_a_baseline_and_all_problems_are_told_at_once() -> None:
    with pytest.raises(RecipeError, match="needs a baseline"):
        judge(report(), Demands(max_slowdown=0.1))
    with pytest.raises(RecipeError) as caught:
        judge(report(), Demands(min_speedup=-1, max_drop=-1, max_p50_ms=-1, max_slowdown=0.1))
    assert len(caught.value.problems) == 4


# ---- views

OUTCOMES = {
    "passed": (report(), Demands(min_speedup=1.5, max_drop=0.02), None),
    "failed": (report(), Demands(min_speedup=1.7, max_drop=0.01), None),
    "incomparable": (report(), Demands(), report(REFUSED["cpu"])),
}


@pytest.fixture(params=OUTCOMES)
def judgement(request: pytest.FixtureRequest) -> Judgement:
    return judge(*OUTCOMES[request.param])


def test_the_text_has_a_line_for_every_check(judgement: Judgement) -> None:
    lines = str(judgement).splitlines()
    assert len([line for line in lines if line.startswith(("passed", "FAILED"))]) == len(judgement.checks)
    for check in judgement.checks:
        (line,) = [line for line in lines if f"  {check.name}: " in line]
        assert line.startswith("passed" if check.ok else "FAILED")
        assert check.measured in line and check.demanded in line
    assert all(any(obstacle in line for line in lines) for obstacle in judgement.obstacles)
    assert lines[-1] == judgement.summary


def test_the_summary_counts() -> None:
    assert judge(*OUTCOMES["passed"]).summary == "The gate passed: 5 checks."
    assert judge(*OUTCOMES["failed"]).summary == "The gate failed: 2 of 5 checks."


def test_json_holds_everything(judgement: Judgement) -> None:
    value = json.loads(to_json(judgement))
    assert value["outcome"] == judgement.outcome
    assert [(each["name"], each["ok"], each["value"]) for each in value["checks"]] == [
        (check.name, check.ok, check.value) for check in judgement.checks
    ]
    assert value["obstacles"] == list(judgement.obstacles) and value["warnings"] == list(judgement.warnings)
    assert value["demands"]["min_speedup"] == judgement.demands.min_speedup
    assert value["run"]["model"] == "models/minilm-sst2"
    assert (value["baseline"] is None) == (judgement.baseline is None)


def test_markdown_says_the_outcome_and_every_check(judgement: Judgement) -> None:
    text = to_markdown(judgement)
    assert text.startswith(f"## Gate: {judgement.outcome}\n") and text.endswith("\n")
    if judgement.checks:
        rows = {row[1]: row for row in find_table(text, "measured", "demanded")}
        assert {name: row[0] == "passed" for name, row in rows.items()} == {
            check.name: check.ok for check in judgement.checks
        }
    for obstacle in judgement.obstacles:
        assert obstacle in text


def test_junit_is_what_its_readers_need(judgement: Judgement) -> None:
    root = ElementTree.fromstring(to_junit(judgement))
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    cases = suite.findall("testcase")
    for element in (root, suite):
        assert int(element.attrib["tests"]) == len(cases) > 0
        assert int(element.attrib["failures"]) == len(suite.findall("testcase/failure")) == len(judgement.failed)
        assert int(element.attrib["errors"]) == len(suite.findall("testcase/error"))
        assert int(element.attrib["skipped"]) == 0 and float(element.attrib["time"]) == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
    names = [case.attrib["name"] for case in cases]
    assert len(set(names)) == len(names) and all(case.attrib["classname"] for case in cases)
    if judgement.obstacles:
        (error,) = suite.findall("testcase/error")
        assert error.attrib["message"] and all(each in (error.text or "") for each in judgement.obstacles)
    else:
        assert names == [check.name for check in judgement.checks]
    for case, check in zip(cases, judgement.checks, strict=False):
        assert [child.tag for child in case] == ["failure"] * (not check.ok)
        if not check.ok:
            assert check.measured in case[0].attrib["message"] and check.demanded in (case[0].text or "")


def test_user_text_cannot_break_a_view() -> None:
    nasty = "a|b\x1b[31m<c>&\"'\x00\ud800".encode("utf-16", "replace").decode("utf-16")

    def change(value: dict[str, Any]) -> None:
        value["task"]["name"] = value["model"]["source"] = nasty
        value["verdict"] = {"ok": False, "reasons": [nasty]}

    judgement = judge(report(change), Demands())
    suite = ElementTree.fromstring(to_junit(judgement))[0]
    assert "a|b" in suite[0][0].attrib["message"]
    assert json.loads(to_json(judgement))["run"]["task"] == nasty
    assert len(find_table(to_markdown(judgement), "measured")) == 2


def test_benchmark_entries_are_ratios_of_which_less_is_better(judgement: Judgement) -> None:
    entries = json.loads(to_benchmark(judgement))
    assert [entry["name"] for entry in entries] == ["minilm-sst2, sst2, 1 x 32", "minilm-sst2, sst2, 8 x 128"]
    assert [entry["value"] for entry in entries] == pytest.approx([1 / 1.75, 1 / 1.62])
    low, high = map(float, entries[0]["range"].split(" to "))
    assert (low, high) == pytest.approx((1 / 1.79, 1 / 1.71), abs=1e-4)
    assert all(set(entry) == {"name", "unit", "value", "range", "extra"} for entry in entries)
    assert all(judgement.outcome in entry["extra"] for entry in entries)


def test_a_shape_whose_control_is_off_leaves_no_benchmark_entry() -> None:
    judgement = judge(report(lambda value: value["controls"][0].update(OFF)), Demands())
    assert [entry["name"] for entry in json.loads(to_benchmark(judgement))] == ["minilm-sst2, sst2, 8 x 128"]


# ---- files and the command


def test_python_says_what_the_command_says(tmp_path: Path) -> None:
    run = save(tmp_path, report())
    before = tree(run)
    judgement = skillprune.gate(run, min_speedup=1.5, max_drop=0.02, json=tmp_path / "gate.json")
    said = invoke("gate", run / "report.json", "--min-speedup", 1.5, "--max-drop", 0.02)
    assert judgement.ok and said.code == 0
    assert said.out == f"{judgement}\n"
    assert (tmp_path / "gate.json").read_text(encoding="utf-8") == to_json(judgement)
    assert not skillprune.gate(str(run), min_speedup=1.7).ok
    assert tree(run) == before


FLAGS = {
    "passed": (0, ["--min-speedup", 1.5, "--max-drop", 0.02, "--max-p50-ms", 100]),
    "failed": (1, ["--min-speedup", 1.7]),
    "incomparable": (4, ["--baseline", "other"]),
}


@pytest.mark.parametrize("outcome", FLAGS)
def test_files_are_written_whatever_comes_out(outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, _ = save(tmp_path, report()), save(tmp_path, report(REFUSED["cpu"]), "other")
    before = tree(run)
    code, flags = FLAGS[outcome]
    Path("summary.md").write_text("# Mine\n", encoding="utf-8")
    said = invoke(
        *("gate", "run", *flags, "--markdown", "summary.md", "--junit", "gate.xml", "--json-file", "gate.json"),
        *("--benchmark", "history.json", "--json"),
    )
    assert said.code == code, said.text
    assert json.loads(said.out) == json.loads(Path("gate.json").read_text(encoding="utf-8"))
    assert json.loads(said.out)["outcome"] == outcome
    assert Path("summary.md").read_text(encoding="utf-8").startswith(f"# Mine\n\n## Gate: {outcome}\n")
    assert len(ElementTree.parse("gate.xml").getroot()[0].findall("testcase/error")) == (outcome == "incomparable")
    assert len(json.loads(Path("history.json").read_text(encoding="utf-8"))) == 2
    assert tree(run) == before
    names = {"run", "other", "summary.md", "gate.xml", "gate.json", "history.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_what_is_incomparable_is_an_error_that_names_every_difference(tmp_path: Path) -> None:
    run, other = save(tmp_path, report(REFUSED["cpu"])), save(tmp_path, report(REFUSED["threads"]), "other")
    said = invoke("gate", run, "--baseline", other)
    assert said.code == 4 and said.out == "" and "Traceback" not in said.err
    for value in ("Another CPU", "Some CPU @ 2.60GHz", "threads: 2 in the run, 7 in the baseline"):
        assert value in said.text
    with pytest.raises(Incomparable, match="Another CPU"):
        skillprune.gate(run, baseline=other, junit=tmp_path / "gate.xml")
    assert (tmp_path / "gate.xml").is_file()


def test_with_a_slowdown_a_lost_speedup_can_be_let_pass(tmp_path: Path) -> None:
    run, other = save(tmp_path, faster(0.85)), save(tmp_path, report(), "other")
    assert invoke("gate", run, "--baseline", other).code == 1
    assert invoke("gate", run, "--baseline", other, "--max-slowdown", 0.2).code == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--min-speedup", 0], "min_speedup: should be greater than 0"),
        (["--max-drop", -1], "max_drop: should be 0 or greater"),
        (["--max-p50-ms", "nan"], "max_p50_ms"),
        (["--max-slowdown", 0.1], "needs a baseline"),
        (["--max-slowdown", 1, "--baseline", "run"], "should lie between 0 and 1"),
        (["--min-speedup", "fast"], "min-speedup"),
        (["--baseline", "gone"], "gone: no such file"),
        (["--junit", "no/such/gate.xml"], "there is no directory no/such"),
        (["--markdown", "run"], "is a directory"),
        (["--json-file", "run/report.json"], "the report that is judged"),
        (["--json-file", "gate", "--junit", "gate"], "json"),
    ],
)
def test_bad_input_writes_nothing(flags: list[Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, report())
    before = tree(tmp_path)
    found = invoke("gate", "run", "--benchmark", "history.json", *flags)
    assert found.code == 2 and said in found.text and "Traceback" not in found.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ("{", "not valid JSON"),
        (json.dumps({**example(), "schema_version": 2}), "schema_version is 2, this skillprune reads 1"),
        (json.dumps({**example(), "latency": 3}), "latency"),
    ],
)
def test_a_directory_without_a_readable_report_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content, encoding="utf-8")
    good = tmp_path / "good"
    good.mkdir()
    run = save(good, report())
    for arguments in ((tmp_path,), (run, "--baseline", tmp_path)):
        found = invoke("gate", *arguments)
        assert found.code == 2 and said in found.text and str(tmp_path / "report.json") in found.text
    with pytest.raises(OutputError):
        skillprune.gate(tmp_path)


@pytest.mark.parametrize("flag", ["--markdown", "--junit", "--json-file", "--benchmark"])
def test_a_full_disk_is_a_failure_outside(flag: str, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    found = invoke("gate", save(tmp_path, report()), flag, "/dev/full")
    assert found.code == 3 and "/dev/full" in found.text and "Traceback" not in found.err


def test_a_file_that_cannot_be_replaced_is_a_failure_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    run = save(tmp_path, report())
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceFailure, match="No space left"):
        skillprune.gate(run, junit=tmp_path / "gate.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

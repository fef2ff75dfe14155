"""The gate between files: reads reports, has them judged, and writes the views that are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from skillprune.errors import OutputError, ResourceFailure
from skillprune.gating import views
from skillprune.gating.judging import judge
from skillprune.gating.values import Demands, Judgement
from skillprune.report import read_report, write_text

_VIEWS = {
    "markdown": views.to_markdown,
    "junit": views.to_junit,
    "json": views.to_json,
    "benchmark": views.to_benchmark,
}


@dataclass(frozen=True)
class Outputs:
    """Where to write what; None is nowhere.

    Attributes:
        markdown: a page that the judgement is appended to.
        junit: JUnit XML.
        json: one JSON object.
        benchmark: the list for github-action-benchmark.
    """

    markdown: Path | None = None
    junit: Path | None = None
    json: Path | None = None
    benchmark: Path | None = None

    def paths(self) -> dict[str, Path]:
        """Those that are asked for, by view."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: path for name, path in found.items() if path is not None}


def gate(
    run: str | Path,
    *,
    min_speedup: float | None = None,
    max_drop: float | None = None,
    max_p50_ms: float | None = None,
    baseline: str | Path | None = None,
    max_slowdown: float | None = None,
    markdown: str | Path | None = None,
    junit: str | Path | None = None,
    json: str | Path | None = None,
    benchmark: str | Path | None = None,
) -> Judgement:
    """Holds a finished run to numbers, and to another run; ``skillprune gate`` in Python.

    Args:
        run: the run directory, or its ``report.json``. It is read only, and nothing is measured.
        min_speedup: what the lower end of the speed-up's interval must reach at every measured shape.
        max_drop: how much worse the test metric may be, in the unit of the recipe's ``demand.max_drop``.
        max_p50_ms: most milliseconds of the median, one number for every shape.
        baseline: another run, or its ``report.json``, whose speed-ups must not be lost.
        max_slowdown: share of the baseline's speed-up that may be lost; 0.05 unless said.
        markdown: file that the judgement is appended to.
        junit: file to write as JUnit XML.
        json: file to write as JSON.
        benchmark: file to write for github-action-benchmark.

    Returns:
        What was judged; ``ok`` says whether the run passed. The files are written whatever the outcome is.

    Raises:
        RecipeError: a number is out of range.
        OutputError: a report cannot be read, or a file not be written where it should be.
        Incomparable: an A/A control is off, or the two runs were measured under different conditions.
        ResourceFailure: the disk failed.
    """
    judgement = judge_runs(
        Path(run),
        Demands(min_speedup=min_speedup, max_drop=max_drop, max_p50_ms=max_p50_ms, max_slowdown=max_slowdown),
        baseline=None if baseline is None else Path(baseline),
        outputs=Outputs(*(None if path is None else Path(path) for path in (markdown, junit, json, benchmark))),
    )
    judgement.raise_if_incomparable()
    return judgement


def judge_runs(run: Path, demands: Demands, *, baseline: Path | None = None, outputs: Outputs = Outputs()) -> Judgement:
    """`gate` with its arguments as values; runs that cannot be judged come back as such.

    Raises:
        SkillPruneError: as `gate` does, but for Incomparable.
    """
    demands.check(has_baseline=baseline is not None)
    _check_outputs(outputs, [run] if baseline is None else [run, baseline])
    judgement = judge(read_report(run), demands, None if baseline is None else read_report(baseline))
    for name, path in outputs.paths().items():
        text = _VIEWS[name](judgement)
        if name == "markdown" or (path.exists() and not path.is_file()):  # a device, or a pipe
            _append(path, text)
        else:
            write_text(path, text)
    return judgement


def _check_outputs(outputs: Outputs, runs: list[Path]) -> None:
    """Looks whether every file can be written, before anything is.

    Raises:
        OutputError: a directory is missing, a path is a directory, or two of the files are one.
    """
    taken = {file.resolve(): "the report that is judged" for file in _reports(runs)}
    for name, path in outputs.paths().items():
        if path.is_dir():
            raise OutputError(f"{path}: is a directory; {name} needs a file")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: there is no directory {path.parent}")
        if path.is_file() or not path.exists():
            if (other := taken.setdefault(path.resolve(), name)) != name:
                raise OutputError(f"{path}: cannot hold {name}, it is {other} already")


def _reports(runs: list[Path]) -> Iterator[Path]:
    for run in runs:
        yield run / "report.json" if run.is_dir() else run


def _append(path: Path, text: str) -> None:
    """Adds a section to the end of a page.

    Raises:
        ResourceFailure: the disk failed.
    """
    try:
        with path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(f"\n{text}" if path.is_file() and path.stat().st_size else text)
    except OSError as error:
        raise ResourceFailure(f"{path}: could not be written ({error.strerror or error})") from error

"""``skillprune gate``: a finished run held to numbers or to another run; all of it is in `skillprune.gating`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from skillprune.cli.errors import exit_codes
from skillprune.cli.options import AsJson, Debug

FAILED = 1

out = Console()
err = Console(stderr=True)


def _file(flag: str, help_text: str) -> Any:
    return typer.Option(flag, metavar="FILE", help=help_text, show_default=False)


def _number(flag: str, help_text: str) -> Any:
    return typer.Option(flag, metavar="NUMBER", help=help_text, show_default=False)


def gate_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run: its directory, or its report.json.")],
    min_speedup: Annotated[
        float | None, _number("--min-speedup", "What the lower end of the speed-up must reach at every shape.")
    ] = None,
    max_drop: Annotated[
        float | None, _number("--max-drop", "How much worse the test metric may be; 0.01 is one point of accuracy.")
    ] = None,
    max_p50_ms: Annotated[
        float | None, _number("--max-p50-ms", "Most milliseconds of the median; one number for every shape.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Another run, whose speed-ups must not be lost.", show_default=False),
    ] = None,
    max_slowdown: Annotated[
        float | None, _number("--max-slowdown", "Share of the baseline's speed-up that may be lost; 0.05 unless said.")
    ] = None,
    markdown: Annotated[Path | None, _file("--markdown", "Append the judgement to this page.")] = None,
    junit: Annotated[Path | None, _file("--junit", "Write JUnit XML.")] = None,
    json_file: Annotated[Path | None, _file("--json-file", "Write the JSON object that --json prints.")] = None,
    benchmark: Annotated[
        Path | None, _file("--benchmark", "Write ratios for github-action-benchmark (customSmallerIsBetter).")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Hold a finished run to numbers, or to another run. Reads its report; measures nothing and leaves the run alone.

    The run's own verdict counts always, and so does the execution provider: the one that ran must be the one that was
    asked for. With nothing demanded these alone are judged. With a baseline speed-ups are compared, each against its
    own dense model: at no shape may the whole interval of their quotient lie below 1 - max-slowdown.

    Exit code 0: everything held. 1: something did not. 2: a report or a number is not usable. 3: a file could not be
    written. 4: incomparable: an A/A control is off, or the two runs differ in machine, ONNX Runtime, provider, threads,
    shapes or dense model. Files are written with 0, 1 and 4.

    For example: skillprune gate runs/ci --min-speedup 1.3 --max-drop 0.02 --junit gate.xml
    """
    with exit_codes(err, debug=debug):
        from skillprune.gating import Demands, Outputs, judge_runs, to_json

        judgement = judge_runs(
            run,
            Demands(min_speedup=min_speedup, max_drop=max_drop, max_p50_ms=max_p50_ms, max_slowdown=max_slowdown),
            baseline=baseline,
            outputs=Outputs(markdown=markdown, junit=junit, json=json_file, benchmark=benchmark),
        )
        if as_json:
            _print(to_json(judgement).rstrip("\n"))
        judgement.raise_if_incomparable()
        if not as_json:
            _print(str(judgement))
        if not judgement.ok:
            raise typer.Exit(FAILED)


def _print(text: str) -> None:
    out.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

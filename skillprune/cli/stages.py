"""``skillprune run`` and the stages one at a time; everything they do is a call of `skillprune.pipeline`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from skillprune.cli.errors import exit_codes
from skillprune.cli.options import AsJson, Debug, NoCache, Output, Overrides, RecipePath, output_directory
from skillprune.cli.progress import shown_progress

if TYPE_CHECKING:
    from skillprune.pipeline import Run

UNMET = 1

out = Console()
err = Console(stderr=True)


def run_command(
    recipe: RecipePath,
    output: Output = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print predicted widths and sizes, write nothing.")
    ] = False,
    no_cache: NoCache = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Carry out a recipe: score, plan, prune, repair, export, benchmark, report.

    Exit code 0: done, and what the recipe demands was met. 1: done, but a demand or a check was not met. 2: the recipe,
    the data or the model is not usable; nothing was written. 3: disk, memory or network failed.
    """
    with _prepared(recipe, output, overrides, no_cache, debug) as run:
        if dry_run:
            prediction = run.predict()
            _print(json.dumps(asdict(prediction), indent=2) if as_json else str(prediction))
            if prediction.unmet is not None:
                raise typer.Exit(UNMET)
            return
        from skillprune.pipeline import report_on
        from skillprune.report import render_summary

        report = report_on(run)
        if as_json:
            _print(report.model_dump_json(indent=2))
        else:
            out.print(Markdown(render_summary(report)))
            _print(f"Everything is in {run.directory.path}; start with report.md.")
        if not report.verdict.ok:
            raise typer.Exit(UNMET)


def report_command(
    recipe: RecipePath,
    output: Output = None,
    overrides: Overrides = None,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Write report.json, report.md and the model card, after everything else; prints report.md."""
    with _prepared(recipe, output, overrides, no_cache, debug) as run:
        from skillprune.pipeline import report_on
        from skillprune.report import render_markdown

        report = report_on(run)
        _print(render_markdown(report))
        if not report.verdict.ok:
            raise typer.Exit(UNMET)


def stage_command(name: str, help_text: str) -> Any:
    """A command that carries a recipe up to one stage, in the same run directory as ``run``."""

    def command(
        recipe: RecipePath,
        output: Output = None,
        overrides: Overrides = None,
        no_cache: NoCache = False,
        debug: Debug = False,
    ) -> None:
        with _prepared(recipe, output, overrides, no_cache, debug) as run:
            from skillprune.pipeline import STAGES

            value = STAGES[name](run)
            for line in value if isinstance(value, tuple) else (value,):
                _print(str(line))
            if name != "score" and run.plan.unmet is not None:
                raise typer.Exit(UNMET)

    command.__doc__ = help_text
    return command


@contextmanager
def _prepared(
    recipe: Path, output: Path | None, overrides: list[str] | None, no_cache: bool, debug: bool
) -> Iterator[Run]:
    err.quiet = os.environ.get("RANK", "0") != "0"  # of the processes that torchrun starts, the first one speaks
    with exit_codes(err, debug=debug):
        from skillprune.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or ())  # wrong recipes are told at once, before torch is imported
        from transformers.utils import logging as transformers_logging

        from skillprune.pipeline import Run

        transformers_logging.disable_progress_bar()
        with _shown_warnings(), shown_progress(err) as progress:
            with Run(loaded, output_directory(recipe, output), cache=not no_cache, progress=progress) as run:
                if run.is_helper:
                    run.help()
                    raise typer.Exit
                yield run


@contextmanager
def _shown_warnings() -> Iterator[None]:
    """What libraries log goes to standard error for the time of the command, and not to a stream that may be closed."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _print(text: str) -> None:
    out.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

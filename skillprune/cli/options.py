"""The arguments that commands share, with the help that teaches them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file. `skillprune recipes list` names ready ones.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Run directory; default: runs/NAME-OF-THE-RECIPE.", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY.PATH=VALUE",
        help="Override a key of the recipe, e.g. --set plan.keep_ratio=0.5. May be repeated.",
        show_default=False,
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do every stage again instead of resuming.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def output_directory(recipe: Path, output: Path | None) -> Path:
    """The run directory of a recipe file when none is named."""
    return output or Path("runs") / recipe.stem

"""The command line: parses, calls one library function, prints. Nothing can be done here that Python cannot do too."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from skillprune.cli.checkpoints import convert_command, families_command
from skillprune.cli.gate import gate_command
from skillprune.cli.recipe_commands import recipes_app, schema_command, validate_command
from skillprune.cli.stages import report_command, run_command, stage_command

app = typer.Typer(
    name="skillprune",
    help="Find the FFN neurons that carry a skill, remove the others, and prove that what came out is faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("run")(run_command)
for _name, _help in {
    "score": "Score every FFN neuron; writes scores.safetensors.",
    "plan": "Choose which neurons stay, after scoring; writes plan.json.",
    "prune": "Prune and repair, after planning; writes the pruned checkpoint and proves that it reloads.",
    "recover": "Train the pruned model, after pruning, if the recipe asks for it; writes model/.",
    "export": "Export dense and pruned to ONNX, after recovery; proves that the files compute what PyTorch does.",
    "bench": "Time dense against pruned in ONNX Runtime, after exporting.",
}.items():
    app.command(_name)(stage_command(_name, _help))
app.command("report")(report_command)
app.command("gate")(gate_command)
app.command("convert")(convert_command)
app.command("families")(families_command)
app.command("validate")(validate_command)
app.command("schema")(schema_command)
app.add_typer(recipes_app, name="recipes")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"skillprune {version('skillprune')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point of the ``skillprune`` command."""
    app()

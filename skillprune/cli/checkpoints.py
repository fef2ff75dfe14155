"""``skillprune convert`` and ``skillprune families``: what forms checkpoints can have, and of which models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from skillprune.cli.errors import exit_codes
from skillprune.cli.options import AsJson, Debug
from skillprune.cli.progress import shown_progress

if TYPE_CHECKING:
    from skillprune.families import Family

out = Console()
err = Console(stderr=True)


class Form(StrEnum):
    """The forms a pruned checkpoint can be written in."""

    UNIFORM = "uniform"
    PER_LAYER = "per-layer"
    PADDED = "padded"
    AUTO_MAP = "auto_map"


class Dtype(StrEnum):
    """Number formats of weights."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def convert_command(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A pruned checkpoint in any form, for example runs/my-model/model."),
    ],
    form: Annotated[Form, typer.Option("--format", "-f", help="The form to write; see above.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", help="A new or empty directory.", show_default=False),
    ],
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", help="Number format of the weights; default: as they are.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a pruned checkpoint in another form. The model computes the same in each of them.

    uniform: a stock checkpoint, which anything loads. Possible where the architecture's config can say the widths: the
    same in every layer of a stack.

    per-layer: any widths. Loaded by from_pretrained after `import skillprune`; fails loudly without.

    padded: any widths, as a stock checkpoint: narrow layers are filled up with neurons that do nothing. Exact, but as
    large and as slow as the filled layers are. For serving engines that know stock checkpoints only.

    auto_map: any widths. Brings modeling_skillprune.py along, so it is loaded by transformers alone, with
    trust_remote_code=True.

    Before OUT appears, it has been loaded in a fresh process and its outputs were compared. Exit code 0: done. 1: it
    did not reload as the same model, and nothing was kept. 2: DIR is no pruned checkpoint, its widths cannot be written
    in this form, or OUT is not empty.

    For example: skillprune convert runs/my-model/model --format padded --output my-model-padded
    """
    with exit_codes(err, debug=debug):
        from transformers.utils import logging as transformers_logging

        from skillprune.pipeline import convert_checkpoint

        transformers_logging.disable_progress_bar()
        with shown_progress(err) as progress:
            done = convert_checkpoint(
                directory,
                output,
                form=form.value,
                dtype=None if dtype is None else dtype.value,
                progress=progress,
            )
        _print(json.dumps(asdict(done), indent=2) if as_json else str(done))


def families_command(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the architectures that can be pruned, and what was verified of each.

    The kind of a stack's FFNs is plain, gated, or fused (a gate in one matrix with up); further parallel, beside
    attention instead of behind it, shared by all layers, or a mixture of experts. "verified" counts the checks that
    passed on a tiny model of the architecture, for each line of transformers; their names stand below the table, and
    `--json` has them in full.
    """
    with exit_codes(err, debug=debug):
        from skillprune.families import list_families

        families = list_families()
        _print(json.dumps([asdict(family) for family in families], indent=2) if as_json else _table(families))


def _table(families: Sequence[Family]) -> str:
    rows = [["model_type", "stack", "kind", "width held by", "verified (checks)"]]
    for family in families:
        passed = ", ".join(f"{line} ({len(checks)})" for line, checks in family.verified.items())
        for number, stack in enumerate(family.stacks):
            first = (family.model_type, passed or "-") if number == 0 else ("", "")
            rows.append([first[0], stack.name, ", ".join(stack.kinds), stack.width_attribute or "-", first[1]])
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{size}}" for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows]
    checks = dict.fromkeys(check for family in families for passed in family.verified.values() for check in passed)
    return "\n".join([*lines, "", f"checks: {', '.join(checks)}"])


def _print(text: str) -> None:
    out.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

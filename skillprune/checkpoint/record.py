"""``skillprune.json``: what a checkpoint was pruned from and how wide its layers are, in whatever form it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skillprune.checkpoint.files import file_of
from skillprune.checkpoint.formats import Widths
from skillprune.errors import CheckpointError
from skillprune.recipe import FORMS, Form

NAME = "skillprune.json"
_FORMAT = "skillprune-checkpoint-1"


@dataclass(frozen=True)
class Record:
    """What the file says.

    Attributes:
        form: how the checkpoint is written.
        widths: neurons per stack and layer, without those that only pad.
        history: every pruning that led here, the first one first.
    """

    form: Form
    widths: Widths
    history: Sequence[Mapping[str, Any]] = ()


def write_record(record: Record, directory: Path) -> None:
    """Writes it into a checkpoint directory."""
    text = json.dumps({"format": _FORMAT, **asdict(record)}, indent=2)
    (directory / NAME).write_text(text + "\n", encoding="utf-8")


def read_record(location: str | Path, revision: str | None = None) -> Record | None:
    """What a checkpoint's directory or hub id says; none if nothing was pruned there.

    Raises:
        CheckpointError: the file is there and cannot be understood.
    """
    path = file_of(location, NAME, revision)
    if path is None:
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.pop("format") != _FORMAT or fields["form"] not in FORMS:
            raise CheckpointError(f"{path}: not a record of a format this version knows")
        return Record(fields["form"], dict(fields["widths"]), tuple(fields["history"]))
    except (KeyError, TypeError, ValueError, AttributeError) as broken:
        raise CheckpointError(f"{path}: not a record of a pruned checkpoint ({broken})") from broken

"""Tokens that are no words: what starts, ends and pads what a model writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillprune.errors import CheckpointError


@dataclass(frozen=True)
class Signs:
    """Tokens that are no words.

    Attributes:
        start: what a decoder is given before anything is written; None if it continues a text.
        ends: after any of these a text is over.
        pad: stands behind texts that are over.
        first: written first, whatever the model says.
        last: written last where a text is cut off, whatever the model says.
    """

    start: int | None = None
    ends: tuple[int, ...] = ()
    pad: int = 0
    first: int | None = None
    last: int | None = None


def read_signs(directory: Path) -> Signs:
    """What ``generation_config.json`` says of the tokens that are no words.

    Raises:
        CheckpointError: there is none, or it is not JSON.
    """
    try:
        config: dict[str, Any] = json.loads((directory / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / 'generation_config.json'} cannot be read: {error}") from error
    ends = config.get("eos_token_id")
    ends = () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
    pad = config.get("pad_token_id")
    return Signs(
        start=config.get("decoder_start_token_id"),
        ends=ends,
        pad=pad if pad is not None else ends[0] if ends else 0,
        first=config.get("forced_bos_token_id"),
        last=config.get("forced_eos_token_id"),
    )

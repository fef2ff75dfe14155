"""Compares a writer's files with PyTorch, which reads every text anew and keeps no cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from skillprune.errors import ParityError
from skillprune.export.generation.decoder import takes_positions
from skillprune.export.parity import TOLERANCE
from skillprune.generation import Feeds, Writer

STEPS = 3
"""Tokens written one at a time after every text, enough for what a step leaves behind to be read by a later one."""


def check_writer(
    model: PreTrainedModel, writer: Writer, texts: Sequence[Feeds], *, steps: int = STEPS
) -> tuple[float, float]:
    """The largest difference of a logit over texts and the tokens that follow, and the tolerance it is within.

    The tokens that follow are those PyTorch finds likeliest; with the logits alike the writer writes the same, unless
    two tokens are as likely as each other.

    Args:
        model: in evaluation mode.
        writer: its files, opened.
        texts: what is read: ``input_ids`` and ``attention_mask``, padded on the left where they are continued.
        steps: tokens written after each.

    Raises:
        ParityError: some logit differs by more than the tolerance, or is not a number.
    """
    worst, allowed = 0.0, TOLERANCE
    for feeds in texts:
        for where, expected, found in _answers(model, writer, feeds, steps):
            tolerance = TOLERANCE * max(1.0, float(np.abs(expected).max()))
            difference = float(np.abs(found - expected).max())
            if not difference <= tolerance:
                what = f"logits of texts of shape {feeds['input_ids'].shape}, {where}"
                raise ParityError(what, difference, tolerance)
            worst, allowed = max(worst, difference), max(allowed, tolerance)
    return worst, allowed


def writers_apart(first: Writer, second: Writer, texts: Sequence[Feeds], *, steps: int = STEPS) -> float:
    """The largest difference of a logit between two writers after the same texts and the same tokens.

    Args:
        first: says which tokens follow.
        second: writes the same ones.
        texts: what is read.
        steps: tokens written after each.
    """
    apart = 0.0
    for feeds in texts:
        (said, mine), (other, its) = first.read(feeds), second.read(feeds)
        apart = max(apart, float(np.abs(said - other).max()))
        for _ in range(steps):
            tokens = said.argmax(axis=1)
            (said, mine), (other, its) = first.step(tokens, mine), second.step(tokens, its)
            apart = max(apart, float(np.abs(said - other).max()))
    return apart


def _answers(
    model: PreTrainedModel, writer: Writer, feeds: Feeds, steps: int
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """Where, PyTorch's logits and the writer's: after the text, after each token that follows, and everywhere."""
    ids = torch.from_numpy(feeds["input_ids"]).to(model.device)
    start = writer.signs.start if model.config.is_encoder_decoder else None
    written = ids[:, :0] if start is None else torch.full_like(ids[:, :1], start)
    found, state = writer.read(feeds)
    for step in range(steps + 1):
        expected = _logits(model, feeds, written)
        yield f"{step} tokens later", expected[:, -1].cpu().numpy(), found
        if step < steps:
            likeliest = expected[:, -1].argmax(-1)
            found, state = writer.step(likeliest.cpu().numpy(), state)
            written = torch.cat([written, likeliest[:, None]], dim=1)
    whole = {name: value.cpu().numpy() for name, value in _inputs(model, feeds, written).items()}
    real = whole["attention_mask"].astype(bool) if start is None else np.ones(written.shape, dtype=bool)
    yield "read at once", expected.cpu().numpy()[real], writer.logits(whole)[real]


def _logits(model: PreTrainedModel, feeds: Feeds, written: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(**_inputs(model, feeds, written), use_cache=False).logits.float()
    return logits


def _inputs(model: PreTrainedModel, feeds: Feeds, written: Tensor) -> dict[str, Tensor]:
    """What a model without a cache is given to say what follows ``written``, ``(batch, tokens)``."""
    ids, mask = (torch.from_numpy(feeds[name]).to(model.device) for name in ("input_ids", "attention_mask"))
    if model.config.is_encoder_decoder:
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": written}
    mask = torch.cat([mask, torch.ones_like(written)], dim=1)
    given = {"input_ids": torch.cat([ids, written], dim=1), "attention_mask": mask}
    return given | ({"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if takes_positions(model) else {})

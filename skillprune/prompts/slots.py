"""Makes room for soft-prompt slots in a batch; what stands in the slots is left to voices."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PretrainedConfig

from skillprune.data import NO_TARGET, Batch
from skillprune.errors import Problem, RecipeError
from skillprune.families import position_limit


def check_fit(batch: Batch, config: PretrainedConfig, tokens: int) -> None:
    """Sees to it that the model has positions for the longest input and its slots.

    Raises:
        RecipeError: it has not.
    """
    # A model put together of two has one configuration per half; the slots are in the half that reads.
    limit, longest = position_limit(getattr(config, "encoder", config)), _width(batch.mask, _leading(batch.mask))
    if limit is None or longest + tokens <= limit:
        return
    room = max(0, limit - longest)
    fits = f"at most {room} slots fit" if room else "no slot fits"
    shorter = f", or lower task.max_length to {limit - tokens}" if tokens < limit else ""
    message = f"the model has {limit} positions and the longest input {longest} tokens: {fits}{shorter}"
    raise RecipeError([Problem("scoring.prompt.tokens", str(tokens), message)])


def insert_slots(batch: Batch, tokens: int, after: int, filler: int) -> Batch:
    """The batch with slots after the first ``after`` real tokens of every input, and the padding on the right.

    On the right padding moves nobody's position, neither in models that count positions over the padding nor in those
    that read the order off the sequence; and the slots of all examples stand in the same columns, next to the text.

    Args:
        batch: padded on either side; explicit ``position_ids`` count on over the slots.
        tokens: number of slots.
        after: real tokens in front of the slots.
        filler: what ``input_ids`` holds at the slots, a token that does not pad.

    Returns:
        The batch, wider by ``tokens`` less the columns that held nothing but padding. A decoder's inputs and targets
        are as they were.
    """
    start = _leading(batch.mask)
    width = _width(batch.mask, start)

    def widened(values: Tensor, inserted: Tensor | int | bool) -> Tensor:
        aligned = _aligned(values, start)[:, :width]
        room = torch.as_tensor(inserted, dtype=values.dtype, device=values.device).expand(len(values), tokens)
        return torch.cat([aligned[:, :after], room, aligned[:, after:]], dim=1)

    inputs = dict(batch.inputs)
    for name, values in batch.inputs.items():
        if name == "position_ids":
            inputs[name] = _counted_on(batch, start, width, tokens, after)
        elif not name.startswith("decoder_"):
            given = {"input_ids": filler, "attention_mask": 1}.get(name, _aligned(values, start)[:, :1])
            inputs[name] = widened(values, given)
    answer, targets = batch.answer, batch.targets
    if answer is not None:
        answer = answer - start.to(answer.device)
        answer = answer + tokens * (answer >= after)
    if targets is not None and "decoder_input_ids" not in inputs:
        targets = widened(targets, NO_TARGET)
    return replace(
        batch,
        inputs=inputs,
        special=widened(batch.special, False),
        answer=answer,
        targets=targets,
        prompt=widened(torch.zeros_like(batch.special), True),
    )


def without_slots(values: Tensor, tokens: int) -> Tensor:
    """Undoes an insertion in front: ``(batch, tokens + sequence)`` becomes ``(batch, sequence)``."""
    return values[:, tokens:]


def _counted_on(batch: Batch, start: Tensor, width: int, tokens: int, after: int) -> Tensor:
    """Position ids with the slots counted in; those of padding stay, as a table may have a row just for it."""
    ids, mask = (_aligned(values, start)[:, :width] for values in (batch.inputs["position_ids"], batch.mask))
    slots = ids[:, :1] + after + torch.arange(tokens, device=ids.device)
    return torch.cat([ids[:, :after], slots, ids[:, after:] + tokens * mask[:, after:]], dim=1)


def _leading(mask: Tensor) -> Tensor:
    """How much padding every row starts with, ``(batch,)``."""
    return mask.to(torch.uint8).argmax(dim=1)


def _width(mask: Tensor, start: Tensor) -> int:
    """Columns up to the last real token of any row, once the rows start with a real one."""
    columns = _aligned(mask, start).any(dim=0).nonzero()
    return int(columns.max()) + 1 if len(columns) else 0


def _aligned(values: Tensor, start: Tensor) -> Tensor:
    """Every row of ``(batch, sequence)`` rotated so that it begins at its ``start``."""
    length = values.shape[1]
    return values.gather(1, (torch.arange(length, device=start.device) + start.unsqueeze(1)) % length)

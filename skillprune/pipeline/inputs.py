"""Model inputs that are not examples: random token ids of a given shape, for parity checks and timing."""

from __future__ import annotations

import inspect

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from skillprune.errors import Problem, RecipeError
from skillprune.generation import left_padded

PARITY_SHAPES = ((2, 16), (3, 29))
"""Batch and sequence of the inputs on which an ONNX file must agree with PyTorch; the first is traced."""


def parity_inputs(model: PreTrainedModel, tokenizer: Tokenizer, *, seed: int) -> list[dict[str, NDArray[np.int64]]]:
    """Padded inputs of `PARITY_SHAPES`."""
    return [random_inputs(model, tokenizer, *shape, seed=seed, padded=True) for shape in PARITY_SHAPES]


def parity_texts(model: PreTrainedModel, tokenizer: Tokenizer, *, seed: int) -> list[dict[str, NDArray[np.int64]]]:
    """Padded texts of `PARITY_SHAPES`, on the left where a model continues them."""
    texts = parity_inputs(model, tokenizer, seed=seed)
    return texts if model.config.is_encoder_decoder else list(map(left_padded, texts))


def random_inputs(
    model: PreTrainedModel, tokenizer: Tokenizer, batch: int, sequence: int, *, seed: int, padded: bool = False
) -> dict[str, NDArray[np.int64]]:
    """Random token ids with whatever else the model takes, ``(batch, sequence)`` each.

    With ``padded``, every row but the first ends in padding, a different amount each. Timing uses full rows. No row is
    longer than the model's inputs may be.
    """
    sequence = min(sequence, tokenizer.model_max_length)
    rng = np.random.default_rng([seed, batch, sequence])
    mask = np.ones((batch, sequence), np.int64)
    if padded:
        lengths = np.linspace(sequence, max(1, sequence // 2), batch).astype(np.int64)
        mask = (np.arange(sequence) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(0, model.config.vocab_size, size=(batch, sequence), dtype=np.int64)
    padding = model.config.pad_token_id or 0
    values = {
        "input_ids": np.where(mask == 1, ids, padding),
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(mask),
    }
    accepted = inspect.signature(model.forward).parameters
    return {name: values[name] for name in tokenizer.model_input_names if name in values and name in accepted}


def check_shapes(tokenizer: Tokenizer, shapes: tuple[tuple[int, int], ...], *, more: int = 0) -> None:
    """Refuses shapes the model cannot run.

    Args:
        tokenizer: knows how much the model reads.
        shapes: (batch, sequence) pairs.
        more: tokens that follow.

    Raises:
        RecipeError: a sequence is longer than the model's inputs may be.
    """
    limit = tokenizer.model_max_length
    wanted = f"the model reads at most {limit} tokens" + (f", {more} of which is written" if more else "")
    too_long = [Problem("benchmark.shapes", str(list(shape)), wanted) for shape in shapes if shape[1] + more > limit]
    if too_long:
        raise RecipeError(too_long)

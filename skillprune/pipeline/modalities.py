"""Random inputs for a model of any kind, told from its config and what it accepts: texts, images, sound."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel

from skillprune.families import position_limit

BATCH, LENGTH = 2, 12
_Arrays = dict[str, NDArray[Any]]


def arbitrary_inputs(model: PreTrainedModel, *, seed: int = 0) -> _Arrays:
    """Two random examples, ``(2, ...)`` each: whatever of texts, images and sound the model reads.

    Texts have 12 tokens, or as many as the model has positions for; the second one ends in padding.
    """
    config, rng = model.config, np.random.default_rng(seed)
    accepted = inspect.signature(model.forward).parameters
    found: _Arrays = {}
    for name, make in _MADE.items():
        if name in accepted:
            found |= make(config, rng)
    if config.is_encoder_decoder and "decoder_input_ids" in accepted:
        texts = _texts(config, rng)
        found |= {f"decoder_{name}": array for name, array in texts.items() if f"decoder_{name}" in accepted}
    return {name: array for name, array in found.items() if name in accepted}


def _texts(config: PretrainedConfig, rng: np.random.Generator) -> _Arrays:
    text = config.get_text_config()
    length = min(LENGTH, position_limit(text) or LENGTH)
    mask = (np.arange(length) < np.array([[length], [max(1, length - 3)]])).astype(np.int64)
    ids = rng.integers(0, text.vocab_size, (BATCH, length))
    return {"input_ids": np.where(mask == 1, ids, getattr(text, "pad_token_id", None) or 0), "attention_mask": mask}


def _images(config: PretrainedConfig, rng: np.random.Generator) -> _Arrays:
    vision = getattr(config, "vision_config", config)
    size = vision.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    shape = (BATCH, getattr(vision, "num_channels", 3), height, width)
    return {"pixel_values": rng.standard_normal(shape).astype(np.float32)}


def _waveforms(config: PretrainedConfig, rng: np.random.Generator) -> _Arrays:
    samples = 40 * math.prod(config.conv_stride)  # 40 frames or so, behind what the convolutions take
    return {"input_values": rng.standard_normal((BATCH, samples)).astype(np.float32)}


def _spectrograms(config: PretrainedConfig, rng: np.random.Generator) -> _Arrays:
    frames = 2 * config.max_source_positions  # whisper reads windows of one length
    return {"input_features": rng.standard_normal((BATCH, config.num_mel_bins, frames)).astype(np.float32)}


_MADE: dict[str, Callable[[PretrainedConfig, np.random.Generator], _Arrays]] = {
    "input_ids": _texts,
    "pixel_values": _images,
    "input_values": _waveforms,
    "input_features": _spectrograms,
}
"""What makes an input, by its name among the arguments of ``forward``."""

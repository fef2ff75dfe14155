"""Attention masks made by indexing, which a tracer follows; transformers 4.57 makes them by vmap, which none does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, and_masks, eager_mask, padding_mask_function

_BY_INDEX = "use_vmap" in inspect.signature(eager_mask).parameters
"""Whether this transformers makes masks by indexing already, as version 5 does unless told otherwise."""


@contextmanager
def traceable_masks() -> Iterator[None]:
    """Inside the context the masks of eager attention can be traced, at every length, windows included."""
    if _BY_INDEX:
        yield
        return
    ALL_MASK_ATTENTION_FUNCTIONS["eager"] = indexed_mask
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS["eager"]  # uncovers the one that was registered


def indexed_mask(
    batch_size: int,
    cache_position: Tensor,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    kv_offset: int = 0,
    dtype: torch.dtype = torch.float32,
    **_: Any,
) -> Tensor:
    """What ``transformers.masking_utils.eager_mask`` of version 4.57 makes, without vmap.

    Args:
        batch_size: examples.
        cache_position: ``(queries,)``, where each token stands among all that are in the cache.
        kv_length: tokens that can be looked at.
        mask_function: says of indices of example, head, query and key whether the key is seen.
        attention_mask: ``(batch, kv_length)``, which tokens are no padding.
        kv_offset: index of the first key.
        dtype: of the result.

    Returns:
        ``(batch, 1, queries, kv_length)``: zero where the key is seen, else the lowest number.
    """
    device = cache_position.device
    sees = mask_function if attention_mask is None else and_masks(mask_function, padding_mask_function(attention_mask))
    example = torch.arange(batch_size, device=device)[:, None, None, None]
    head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    key = torch.arange(kv_length, device=device)[None, None, None, :] + kv_offset
    seen = sees(example, head, cache_position[None, None, :, None], key).expand(batch_size, -1, -1, -1)
    return torch.where(seen, torch.zeros((), dtype=dtype, device=device), torch.finfo(dtype).min)

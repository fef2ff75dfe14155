"""Caches of keys and values as flat tensors, as a graph takes and gives them; what they mean is left to models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import Cache, DynamicLayer

Pair = tuple[Tensor, Tensor]
"""Keys and values of a layer, ``(batch, heads, length, size)`` each."""


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer that begin as they are given; the original begins with a tensor of one axis.

    It keeps every token, whatever the window of the layer is: what is out of sight is the mask's to say.
    """

    def __init__(self, start: Pair | None) -> None:
        DynamicLayer.__init__(self)
        if start is not None:
            self._hold(*start)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Pair:
        """Appends and returns all that there is."""
        if self.is_initialized:
            return super().update(key_states, value_states)
        self._hold(key_states, value_states)
        return key_states, value_states

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True


def growing_cache(start: Sequence[Pair | None]) -> DynamicCache:
    """A cache with a layer for every pair, empty where it is None."""
    cache = DynamicCache()
    cache.layers = [GrowingLayer(pair) for pair in start]
    return cache


def growing_pair(own: Sequence[Pair | None], crossed: Sequence[Pair | None]) -> EncoderDecoderCache:
    """Caches of a decoder: of what it wrote, and of what the encoder said."""
    return EncoderDecoderCache(growing_cache(own), growing_cache(crossed))


def flat(cache: Cache) -> tuple[Tensor, ...]:
    """Keys and values of the first layer, of the second, and so on."""
    layers: Sequence[Any] = cache.layers
    return tuple(tensor for layer in layers for tensor in (layer.keys, layer.values))


def pairs(tensors: Sequence[Tensor]) -> list[Pair]:
    """What `flat` made flat."""
    return list(zip(tensors[::2], tensors[1::2], strict=True))

"""Hidden states on their way from block to block: in memory while there is room, in files beyond."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from skillprune.activations import DiskArrays, free_bytes
from skillprune.data import Batch
from skillprune.families import Side

MEMORY_SHARE = 0.1
"""Most of the free memory, on the device that holds them, that one set of states may take; a repair holds eight:
of both networks, a lesson's four, what the layer at hand reads, and how its neurons fire."""


class States:
    """One tensor per batch; each may be replaced by another of the same shape."""

    def __init__(self, files: DiskArrays | None = None) -> None:
        """In memory, or in files."""
        self._files = files
        self._kept: list[Tensor] = []
        self._devices: list[torch.device] = []

    def append(self, tensor: Tensor) -> None:
        """Takes the next batch's."""
        self._kept.append(self._stored(tensor))
        self._devices.append(tensor.device)

    def copy(self, dtype: torch.dtype | None = None) -> States:
        """The same values, perhaps in another dtype, to be replaced independently."""
        twin = States(None if self._files is None else DiskArrays())
        for tensor in self:
            twin.append(tensor.to(dtype or tensor.dtype))
        return twin

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Tensor:
        kept = self._kept[number]
        # Out of a file comes a copy: what is put in its place later must not change what somebody still holds.
        return kept.to(self._devices[number], copy=self._files is not None)

    def __setitem__(self, number: int, tensor: Tensor) -> None:
        self._devices[number] = tensor.device  # a model spread over devices moves its states from one to the next
        # In half precision some models add to their stream in float32, and go on with that.
        if self._files is None or tensor.dtype != self._kept[number].dtype:
            self._kept[number] = self._stored(tensor)
        else:
            with torch.inference_mode():  # where what came out of a traced model was put into its file
                self._kept[number].copy_(tensor)

    def _stored(self, tensor: Tensor) -> Tensor:
        return tensor if self._files is None else self._files.zeros(tensor.shape, tensor.dtype).copy_(tensor)


def room_for(first: Tensor, batches: Sequence[Batch], side: Side) -> States:
    """Empty states for all batches, where there is room for them, given some of them, ``(..., features)``."""
    tokens = sum(batch.mask_of(side).numel() for batch in batches)
    wanted = tokens * first.shape[-1] * first.element_size()
    return States(None if wanted <= MEMORY_SHARE * free_bytes(first.device) else DiskArrays())

"""Pooled responses of every neuron to every example, in files that are gone when they are no longer needed.

The one place of scoring whose size grows with the number of examples; it grows on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from skillprune.activations import DiskArrays, Observation
from skillprune.errors import DataError
from skillprune.families import FFN
from skillprune.scoring.criterion import Criterion, Read, Settings, Split, State

CHUNK = 1024
"""Examples whose responses are in memory at a time, to be sent or standardised."""


class ResponseCriterion(Criterion):
    """A criterion that needs all responses at once; subclasses turn them into scores."""

    def __init__(self, ffns: Sequence[FFN], settings: Settings) -> None:
        super().__init__(ffns, settings)
        self._files: DiskArrays | None = None

    def start(self, ffn: FFN, split: Split, device: torch.device) -> State:
        """Responses ``(examples, neurons)`` on disk, the label of each example, and which examples were seen."""
        examples = self.settings.examples[split]
        return {
            "responses": self.on_disk(examples, ffn.columns),
            "labels": torch.zeros(examples, dtype=torch.long),
            "seen": torch.zeros(examples, dtype=torch.bool),
        }

    def update(self, read: Read, seen: Observation) -> None:
        """Writes the batch's rows; of several soft-prompt slots the mean counts."""
        state, rows = self.state(seen.ffn, read.split), seen.batch.indices.cpu()
        if int(rows.max()) >= len(state["seen"]):
            raise DataError(f"{self.name} needs examples numbered from 0; make batches of these examples alone")
        state["responses"][rows] = seen.pooled.mean(dim=1).cpu().to(self.settings.dtype)
        state["labels"][rows] = seen.batch.labels.cpu()
        state["seen"][rows] = True

    def merge(self, ffn: FFN, split: Split, other: State) -> None:
        """Takes the rows of the examples that the other saw; a piece says where it starts."""
        state, seen = self.state(ffn, split), other["seen"].bool()
        rows = seen.nonzero().squeeze(1) + int(other.get("first", torch.tensor(0)))
        for key in ("responses", "labels", "seen"):
            state[key][rows] = other[key][seen].to(state[key].dtype)

    def pieces(self, state: State) -> Iterator[State]:
        """Some rows after the other, so that the file is never in memory as a whole."""
        for first in range(0, len(state["seen"]), CHUNK):
            rows = slice(first, first + CHUNK)
            yield {key: value[rows] for key, value in state.items()} | {"first": torch.tensor(first)}

    def forget(self, ffn: FFN) -> None:
        """Drops the responses of one FFN; the files go with the last one."""
        super().forget(ffn)
        if not self._states and self._files is not None:
            self._files.remove()
            self._files = None

    def on_disk(self, rows: int, columns: int) -> Tensor:
        """Zeros ``(rows, columns)`` in a file that is gone when the criterion is.

        Raises:
            OSError: the disk is full.
        """
        if self._files is None:
            self._files = DiskArrays()
        return self._files.zeros((rows, columns), self.settings.dtype)

    def responses(self, ffn: FFN, split: Split) -> tuple[Tensor, Tensor]:
        """Responses ``(examples, neurons)`` and labels ``(examples,)`` of the examples that were seen."""
        state = self.state(ffn, split)
        if bool(state["seen"].all()):
            return state["responses"], state["labels"]
        return state["responses"][state["seen"]], state["labels"][state["seen"]]

"""What a criterion is: a streaming statistic per FFN that ends in one importance score per neuron."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from skillprune.activations import Position
from skillprune.data import Batch
from skillprune.families import FFN

Split = Literal["calibration", "validation"]


@dataclass(frozen=True)
class Settings:
    """What criteria may need to know beside activations and weights.

    Attributes:
        position: which position of a sequence pooled criteria read.
        labels: class names, in the order of their ids.
        class_counts: examples per class id, for every split.
        seed: seed of criteria that draw.
    """

    position: Position
    labels: tuple[str, ...]
    class_counts: dict[Split, tuple[int, ...]]
    seed: int


class Criterion(ABC):
    """Scores neurons. Subclasses keep sums whose size does not depend on the number of examples.

    ``reads`` lists the splits it wants streamed, in order; () means weights are enough. The engine runs the model once
    per batch for all criteria together and calls `update` for every FFN, then asks for `finish`.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[Split, ...]] = ()

    def __init__(self, ffns: Sequence[FFN], settings: Settings) -> None:
        self.ffns = tuple(ffns)
        self.settings = settings

    def update(self, split: Split, ffn: FFN, activations: Tensor, batch: Batch) -> None:
        """Takes in one FFN's activations ``(batch, sequence, neurons)`` of one batch; criteria that read define it."""
        raise TypeError(f"{self.name} reads no activations")

    @abstractmethod
    def finish(self, ffn: FFN) -> NDArray[np.float64]:
        """The importance scores ``(neurons,)`` of one FFN, after everything was streamed."""

"""What a criterion is: sums per FFN, filled in passes that all criteria share, that end in one score per neuron."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skillprune.activations import PLAIN, Observation, Reading
from skillprune.families import FFN, Site

Split = Literal["calibration", "validation"]

SPLITS: tuple[Split, Split] = ("calibration", "validation")
"""The splits in the order they are read: baselines come before what is compared with them."""

State = dict[str, Tensor]
"""What a criterion knows of one FFN: tensors whose size does not depend on how much was seen."""


@dataclass(frozen=True)
class Read:
    """A pass over data that a criterion wants to see.

    Attributes:
        split: which examples.
        quantity: whose gradients are wanted: `PLAIN` none, ``loss`` of the right answer, ``sampled`` random contrasts
            of the model's own outputs.
        examples: how many examples suffice, the first ones of the split (which is a random sample); None for all.
    """

    split: Split
    quantity: str = PLAIN
    examples: int | None = None

    def end(self, total: int) -> int:
        """How many of ``total`` examples to read."""
        return total if self.examples is None else min(self.examples, total)


@dataclass(frozen=True)
class Settings:
    """What criteria may need to know beside observations and weights.

    Attributes:
        reading: where pooled criteria read a sequence.
        labels: class names, in the order of their ids; empty where the task has no classes.
        class_counts: examples per class id, for every split.
        examples: examples of every split.
        seed: seed of whatever is drawn.
        positions: how many positions the reading has.
        dtype: number format of pooled responses, float32 at least.
        multiclass: tests that predictivity makes of more than two classes.
        reduce: how predictivity makes one number of its tests.
        balanced: whether predictivity gives every class the same weight, however many examples it has.
        keep_metric: whether `skill` keeps its output metric ``(hidden, hidden)`` as a detail, to choose again with.
    """

    reading: Reading = field(default_factory=Reading)
    labels: tuple[str, ...] = ()
    class_counts: Mapping[Split, tuple[int, ...]] = field(default_factory=dict)
    examples: Mapping[Split, int] = field(default_factory=dict)
    seed: int = 0
    positions: int = 1
    dtype: torch.dtype = torch.float32
    multiclass: Literal["ovr", "pairwise", "reference"] = "ovr"
    reduce: Literal["max", "mean"] = "max"
    balanced: bool = True
    keep_metric: bool = False


@dataclass(frozen=True, eq=False)
class LayerScores:
    """What a criterion says of one FFN.

    Attributes:
        scores: importance of every neuron, ``(neurons,)``; higher means keep.
        details: further arrays by name, for reports and planning.
    """

    scores: NDArray[np.float64]
    details: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def per_neuron(found: LayerScores, ffn: FFN) -> LayerScores:
    """Makes one neuron of those that have the same index in several experts: their mean.

    Experts count as much as routing lets them, because activations enter multiplied by routing weights, and as zero
    for tokens that were sent elsewhere.
    """

    def mean(values: NDArray[Any]) -> NDArray[Any]:
        if ffn.experts == 1 or values.shape[-1] != ffn.columns:
            return values
        over_experts = values.reshape(*values.shape[:-1], ffn.experts, ffn.width).mean(axis=-2)
        return np.asarray(np.sign(over_experts) if values.dtype.kind == "i" else over_experts, dtype=values.dtype)

    return LayerScores(mean(found.scores), {name: mean(values) for name, values in found.details.items()})


class Criterion(ABC):
    """Scores neurons. A subclass says what it reads, how one observation changes its sums, and what they amount to.

    The engine runs the model once per batch and pass for all criteria together, calibration first. When a split is
    done, the states of all processes are merged, so later splits and `finish` know everything.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[Read, ...]] = ()

    def __init__(self, ffns: Sequence[FFN], settings: Settings) -> None:
        """Prepares for a model's FFNs.

        Raises:
            DataError: the data cannot be scored by this criterion.
        """
        self.ffns = tuple(ffns)
        self.settings = settings
        self._states: dict[tuple[Site, Split], State] = {}

    def start(self, ffn: FFN, split: Split, device: torch.device) -> State:
        """The state before anything of a split was seen; criteria that read define it."""
        return {}

    def update(self, read: Read, seen: Observation) -> None:
        """Takes in one observation of a pass; criteria that read define it."""
        raise TypeError(f"{self.name} reads no activations")

    def merge(self, ffn: FFN, split: Split, other: State) -> None:
        """Takes in what another instance saw of a split; right for states that are sums."""
        state = self.state(ffn, split)
        for key, value in other.items():
            state[key] += value.to(state[key].device)

    def pieces(self, state: State) -> Iterator[State]:
        """A state in parts that `merge` takes one by one, of the same shapes in every process."""
        yield state

    @abstractmethod
    def finish(self, ffn: FFN) -> LayerScores:
        """The scores of one FFN, after everything was seen."""

    @classmethod
    def state_bytes(cls, ffn: FFN) -> int:
        """Memory that the state of one FFN takes, where it is more than a few vectors."""
        return 0

    def state(self, ffn: FFN, split: Split = "calibration", device: torch.device | None = None) -> State:
        """What was seen of one FFN in one split; a new state is put on ``device``."""
        key = ffn.site, split
        if key not in self._states:
            with torch.inference_mode(False):  # a state outlives the pass that asked for it first
                self._states[key] = self.start(ffn, split, device or torch.device("cpu"))
        return self._states[key]

    def replace(self, ffn: FFN, split: Split, state: State) -> None:
        """Puts another state in the place of what was seen of one FFN in one split."""
        self._states[ffn.site, split] = state

    def forget(self, ffn: FFN) -> None:
        """Drops what was seen of one FFN."""
        for key in [key for key in self._states if key[0] == ffn.site]:
            del self._states[key]


def zeros(device: torch.device, *shape: int) -> Tensor:
    """A float64 accumulator."""
    return torch.zeros(shape, dtype=torch.float64, device=device)


def vector(tensor: Tensor) -> NDArray[np.float64]:
    """A tensor as a float64 array."""
    return np.asarray(tensor.detach().double().cpu().numpy())

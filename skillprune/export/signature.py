"""What a graph takes and gives, read off one real run of the model: names, order, and which axes may change."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

Axes = Mapping[int, str]
Arrays = Mapping[str, NDArray[Any]]

_NO_RESULT = ("loss", "past_key_values", "hidden_states", "attentions", "encoder_hidden_states")
"""What a model gives back beside its results, when it is asked or in passing."""


@dataclass(frozen=True)
class Signature:
    """The interface of a graph.

    Attributes:
        inputs: names of the inputs, in order, with the axes that may change.
        outputs: names of the outputs, in order, with theirs.
        settings: further keyword arguments of the model's forward pass, so that it gives results only.
    """

    inputs: dict[str, Axes]
    outputs: dict[str, Axes]
    settings: dict[str, Any]

    @property
    def axes(self) -> dict[str, Axes]:
        """Of inputs and outputs."""
        return {**self.inputs, **self.outputs}


def signature_of(model: PreTrainedModel, inputs: Sequence[Arrays]) -> Signature:
    """Runs the model on the first and the last inputs; an axis of an output that differs between them may change.

    Text is ``(batch, sequence)``, of multiple choice ``(batch, choices, sequence)``; of images and features the batch
    alone may change. Outputs are all tensors that the model returns, but for loss, caches and what it hands out of its
    inside.

    Args:
        model: in evaluation mode.
        inputs: of different sizes.
    """
    taken = {name: _input_axes(array) for name, array in inputs[0].items()}
    first, second = (results(model, each) for each in (inputs[0], inputs[-1]))
    lengths = _sizes(inputs[0], taken), _sizes(inputs[-1], taken)
    given = {name: _output_axes(name, tensor, second[name], lengths) for name, tensor in first.items()}
    return Signature(taken, given, _settings_of(model))


def as_tensors(model: PreTrainedModel, inputs: Arrays) -> dict[str, Tensor]:
    """Inputs where the model is."""
    return {name: torch.from_numpy(array).to(model.device) for name, array in inputs.items()}


def results(model: PreTrainedModel, inputs: Arrays) -> dict[str, Tensor]:
    """The tensors that are a model's results, by name, in the order of its output."""
    with torch.inference_mode():
        found = model(**as_tensors(model, inputs), **_settings_of(model))
    return {name: value for name, value in found.items() if isinstance(value, Tensor) and name not in _NO_RESULT}


class Results(nn.Module):
    """The model with inputs in order and its results as a tuple, as exporters want it."""

    def __init__(self, model: PreTrainedModel, signature: Signature) -> None:
        super().__init__()
        self.model = model
        self.signature = signature

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs the model."""
        given = dict(zip(self.signature.inputs, inputs, strict=True))
        found = self.model(**given, **self.signature.settings)
        return tuple(found[name] for name in self.signature.outputs)


def _settings_of(model: PreTrainedModel) -> dict[str, Any]:
    takes_cache = "use_cache" in inspect.signature(model.forward).parameters
    return {"return_dict": True, **({"use_cache": False} if takes_cache else {})}


def _input_axes(array: NDArray[Any]) -> Axes:
    if array.ndim == 2:
        return {0: "batch", 1: "sequence"}
    if array.ndim == 3 and array.dtype.kind in "iu":
        return {0: "batch", 1: "choices", 2: "sequence"}
    return {0: "batch"}


def _sizes(inputs: Arrays, axes: Mapping[str, Axes]) -> dict[str, int]:
    """The size that goes by each name; where several inputs use a name, the first one's."""
    found: dict[str, int] = {}
    for name, array in inputs.items():
        for axis, label in axes[name].items():
            found.setdefault(label, array.shape[axis])
    return found


def _output_axes(name: str, first: Tensor, second: Tensor, sizes: tuple[dict[str, int], dict[str, int]]) -> Axes:
    axes = {0: "batch"}
    for axis in range(1, first.ndim):
        pair = first.shape[axis], second.shape[axis]
        if pair[0] != pair[1]:
            known = (label for label in sizes[0] if (sizes[0][label], sizes[1][label]) == pair)
            axes[axis] = next(known, f"{name}_axis_{axis}")
    return axes

"""Which parameters a recovery trains; how is left to training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from skillprune.activations.hooks import frozen
from skillprune.families import find_ffns


@contextmanager
def trained(model: PreTrainedModel, which: Literal["all", "neurons"]) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters to train, by name; for the time of the context no other one asks for a gradient.

    Raises:
        ValueError: there is none, or one of them is not in float32, where small steps would be rounded away.
    """
    chosen = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if which == "neurons":
        neurons = _of_neurons(model)
        chosen = {name: parameter for name, parameter in chosen.items() if id(parameter) in neurons}
    if not chosen:
        raise ValueError("no parameter of the model asks for a gradient, so there is nothing to train")
    for name, parameter in chosen.items():
        if parameter.dtype != torch.float32 or parameter.device.type == "meta":
            raise ValueError(f"{name} is {parameter.dtype} on {parameter.device}; training needs float32, in memory")
    with frozen(model):
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        yield chosen


def _of_neurons(model: PreTrainedModel) -> set[int]:
    """Identities of the parameters that belong to single neurons; the bias of down belongs to none."""
    found: set[int] = set()
    for ffn in find_ffns(model):
        found |= {id(parameter) for matrix in ffn.into for parameter in matrix.parameters}
        found |= {id(weight) for weight in ffn.down.weights}
    return found

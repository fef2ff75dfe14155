"""Forward passes that end where nothing more is wanted: scores of a large vocabulary need more room than all else.

What is looked at on the way is left to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.data import Batch


class Reached(Exception):
    """Ends a forward pass where nothing more is wanted of it."""


def run_until_reached(model: PreTrainedModel, batch: Batch) -> None:
    """Runs a model on a batch on its device, to where somebody raises `Reached`; the model is as it was afterwards."""
    forwards = [(module, vars(module).get("forward")) for module in model.modules()]
    try:
        with suppress(Reached), torch.inference_mode():
            model(**batch.inputs)
    finally:
        # Where its config wants all hidden states, transformers 4.57 replaces forwards, and leaves them so on an error.
        for module, before in forwards:
            put_forward_(module, before)


def put_forward_(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Gives one module another forward than its class has; with none, that of its class."""
    vars(module).pop("forward", None)
    if forward is not None:
        vars(module)["forward"] = forward


@contextmanager
def stopping_before(*modules: nn.Module) -> Iterator[list[Tensor]]:
    """Gives what the first of the modules to run would have read; what runs in the context ends there."""
    read: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
        read.append(args[0])
        raise Reached

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(stop).remove)
        with suppress(Reached):
            yield read


@contextmanager
def stopping_after(module: nn.Module, calls: int) -> Iterator[None]:
    """Ends a forward pass when a module has run so many times in the context."""
    turns = count(1)

    def stop(*_: object) -> None:
        if next(turns) == calls:
            raise Reached

    handle = module.register_forward_hook(stop)
    try:
        yield
    finally:
        handle.remove()

"""Hooks that catch what flows through an FFN and always come off; what is done with it is left to others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of the context; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient for the time of the context, so that only activations are differentiated."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in wanted:
            parameter.requires_grad = requires_grad


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the first input of every call of ``module``; a chunked feed-forward makes several calls per batch."""
    calls: list[Tensor] = []

    def remember(_: nn.Module, args: tuple[Any, ...]) -> None:
        calls.append(args[0].detach())

    handle = module.register_forward_pre_hook(remember)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def differentiable(module: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Collects the first input and the output of every call of ``module`` as nodes that gradients can be taken of.

    An input that nothing differentiable leads to becomes the start of the graph.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        entering = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        inputs.append(entering)
        return (entering, *args[1:])

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = (module.register_forward_pre_hook(before), module.register_forward_hook(after))
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()


def joined(calls: list[Tensor]) -> Tensor:
    """Puts the chunks of one forward pass back together along the sequence and forgets them."""
    whole = calls[0] if len(calls) == 1 else torch.cat(calls, dim=1)
    calls.clear()
    return whole

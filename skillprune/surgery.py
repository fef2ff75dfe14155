"""Carries out a plan: removes neurons for good (`prune_`) or for a while (`masked`); it never looks at scores.

What the kept columns and biases should become instead of their old values is left to `repair`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.errors import PlanMismatch
from skillprune.families import FFN, Mixture, by_stack, config_widths, find_ffns, set_config_value_
from skillprune.planning import PruningPlan


def prune_(model: PreTrainedModel, plan: PruningPlan) -> PreTrainedModel:
    """Removes the neurons that ``plan`` does not keep, in place, by slicing rows of up and gate and columns of down.

    Keeping every neuron changes nothing. Returns the same model.

    Raises:
        PlanMismatch: the plan's stacks, layers or widths are not the model's.
    """
    ffns = find_ffns(model)
    check_plan(ffns, plan)
    for ffn in ffns:
        with ffn.at_hand():
            ffn.keep_(plan.keep[ffn.stack.name][ffn.layer])
    record_widths_(model)
    return model


@contextmanager
def masked(model: PreTrainedModel, plan: PruningPlan) -> Iterator[PreTrainedModel]:
    """The reversible twin of `prune_`: inside the context the pruned neurons' activations are zero, shapes stay.

    Raises:
        PlanMismatch: the plan's stacks, layers or widths are not the model's.
    """
    ffns = find_ffns(model)
    check_plan(ffns, plan)
    with ExitStack() as silent:
        for ffn in ffns:
            kept = set(plan.keep[ffn.stack.name][ffn.layer])
            silent.enter_context(silenced(ffn, [neuron for neuron in range(ffn.width) if neuron not in kept]))
        yield model


@contextmanager
def silenced(ffn: FFN, neurons: Sequence[int]) -> Iterator[None]:
    """Inside the context some neurons of one FFN give zero."""
    with _without_columns(ffn, neurons) if isinstance(ffn, Mixture) else _without_activations(ffn, neurons):
        yield


def check_plan(ffns: Sequence[FFN], plan: PruningPlan) -> None:
    """Compares a plan with the FFNs it is meant for.

    Raises:
        PlanMismatch: stacks, layers or widths differ; the message lists both.
    """
    found = {name: tuple(ffn.width for ffn in stack) for name, stack in by_stack(ffns).items()}
    if found != plan.width_before:
        raise PlanMismatch(f"the plan was made for widths {plan.width_before}, the model has {found}")


def record_widths_(model: PreTrainedModel) -> None:
    """Writes the widths that the config has attributes for into it; uneven ones are the checkpoint's to name."""
    for attribute, widths in config_widths(find_ffns(model)).items():
        if len(widths) == 1:
            set_config_value_(model.config, attribute, max(widths))


@contextmanager
def _without_activations(ffn: FFN, neurons: Sequence[int]) -> Iterator[None]:
    """Neither reads nor writes weights, wherever they are kept."""
    mask = torch.ones(ffn.width, dtype=ffn.dtype)
    mask[list(neurons)] = 0
    handle = ffn.down.module.register_forward_pre_hook(_multiply(mask))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _without_columns(ffn: Mixture, neurons: Sequence[int]) -> Iterator[None]:
    """Where no module reads the activations alone, nothing is made of them instead."""
    silent = torch.tensor(list(neurons), dtype=torch.long, device=ffn.device)
    with ffn.down.restored():
        with ffn.at_hand():
            for down in ffn.downs:
                down.write_(down.weight.detach().index_fill(1, silent, 0), None)
        yield


def _multiply(mask: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * mask.to(args[0].device), *args[1:])

    return hook

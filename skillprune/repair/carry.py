"""Carries hidden states from block to block, so that no layer is ever computed from the embeddings again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from skillprune.activations import inputs_of, joined
from skillprune.data import Batch
from skillprune.families import FFN
from skillprune.progress import Progress, track


@dataclass
class Call:
    """How the model called one block on one batch, without the hidden states, which come from the block before.

    Caches of keys and values are left out too: a block that runs again would read what its first run wrote there.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """One run of a model over the batches: what entered the first block of a stack, and how every block was called.

    Attributes:
        hidden: per batch, the hidden states ``(batch, sequence, hidden)`` that enter the stack.
        calls: per layer and batch, the remaining arguments (masks, positions, what an encoder gives its decoder).
    """

    hidden: list[Tensor]
    calls: list[list[Call]]


@dataclass(frozen=True)
class Step:
    """What one block did with one batch.

    Attributes:
        hidden: the block's output.
        activations: input of the down projection, ``(batch, sequence, neurons)``.
        written: output of the down projection, ``(batch, sequence, hidden)``.
        residual: the stream that output is added to, ``(batch, sequence, hidden)``.
    """

    hidden: Tensor
    activations: Tensor
    written: Tensor
    residual: Tensor


def trace(model: PreTrainedModel, ffns: Sequence[FFN], batches: Sequence[Batch], progress: Progress) -> Trace:
    """Runs the whole model once per batch and remembers how the blocks of one stack were called."""
    hidden: list[Tensor] = []
    calls: list[list[Call]] = [[] for _ in ffns]

    def remember(layer: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if layer == 0:
                hidden.append(_hidden_of(args, kwargs))
            others = {name: _uncached(value) for name, value in kwargs.items() if name != "hidden_states"}
            calls[layer].append(Call(tuple(map(_uncached, args[1:])), others))

        return hook

    with ExitStack() as hooks, torch.inference_mode():
        for ffn in ffns:
            handle = ffn.block.register_forward_pre_hook(remember(ffn.layer), with_kwargs=True)
            hooks.callback(handle.remove)
        for batch in track(batches, "repair (embeddings)", progress):
            model(**batch.to(model.device).inputs)
    return Trace(hidden, calls)


def step(ffn: FFN, hidden: Tensor, call: Call) -> Step:
    """Runs one block on carried hidden states, watching its FFN."""
    written: list[Tensor] = []

    def remember(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        written.append(output)

    with ExitStack() as hooks, torch.inference_mode():
        activations = hooks.enter_context(inputs_of(ffn.down))
        residual = hooks.enter_context(inputs_of(ffn.residual))
        hooks.callback(ffn.down.register_forward_hook(remember).remove)
        after = _output_of(ffn.block(hidden, *call.args, **call.kwargs))
        return Step(after, joined(activations), joined(written), joined(residual))


def advance(ffn: FFN, hidden: Tensor, call: Call) -> Tensor:
    """Runs one block on carried hidden states and returns what the next block gets."""
    with torch.inference_mode():
        return _output_of(ffn.block(hidden, *call.args, **call.kwargs))


def _uncached(argument: Any) -> Any:
    return None if isinstance(argument, Cache) else argument


def _hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found = args[0] if args else kwargs["hidden_states"]
    assert isinstance(found, Tensor)  # every block of transformers takes its hidden states first
    return found


def _output_of(output: Any) -> Tensor:
    first = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, Tensor)
    return first

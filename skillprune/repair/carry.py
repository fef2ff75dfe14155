"""Carries hidden states from block to block, so that no layer is ever computed from the embeddings again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from skillprune.activations import inputs_of, joined
from skillprune.data import Batch
from skillprune.families import FFN
from skillprune.progress import Progress, track
from skillprune.repair.passes import Reached, put_forward_, run_until_reached, stopping_before
from skillprune.repair.states import States, room_for


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

    hidden: States
    calls: list[list[Call]]


@dataclass(frozen=True)
class Step:
    """What one block did with one batch.

    Attributes:
        hidden: the block's output.
        read: what the FFN reads, ``(batch, sequence, hidden)``.
        activations: input of the down projection, ``(batch, sequence, neurons)``.
        written: output of the down projection, ``(batch, sequence, hidden)``.
        residual: the stream that output is added to, ``(batch, sequence, hidden)``.
    """

    hidden: Tensor
    read: Tensor
    activations: Tensor
    written: Tensor
    residual: Tensor


def trace(model: PreTrainedModel, ffns: Sequence[FFN], batches: Sequence[Batch], progress: Progress) -> Trace:
    """Remembers what enters one stack and how its blocks are called; only for the first batch do they really run.

    Nothing runs that comes after them.
    """
    stores: list[States] = []
    calls: list[list[Call]] = [[] for _ in ffns]

    def remember(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        hidden = _hidden_of(args, kwargs)
        if layer == 0:
            if not stores:
                stores.append(room_for(hidden, batches, ffns[0].stack.side))
            stores[0].append(hidden)
        others = {name: _uncached(value) for name, value in kwargs.items() if name != "hidden_states"}
        calls[layer].append(Call(tuple(map(_uncached, args[1:])), others))
        if layer == len(ffns) - 1:
            raise Reached
        return hidden

    with ExitStack() as replaced:
        for ffn in ffns:
            replaced.enter_context(_watched(ffn, remember))
        for batch in track(batches, "repair (embeddings)", progress):
            run_until_reached(model, batch.to(model.device))
    return Trace(stores[0], calls)


@contextmanager
def _watched(ffn: FFN, remember: Callable[[int, tuple[Any, ...], dict[str, Any]], Tensor]) -> Iterator[None]:
    """Tells of every call of a block; from the second on the block hands its hidden states through untouched.

    A block that gives tensors beside them runs every time: T5's hand the bias of positions on to the next ones.
    """
    real, before = ffn.block.forward, vars(ffn.block).get("forward")
    beside: list[tuple[Any, ...] | None] = []  # what the block gives beside hidden states, None if it gives no tuple

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = remember(ffn.layer, args, kwargs)
        if not beside or any(isinstance(given, Tensor) for given in beside[0] or ()):
            output = real(*args, **kwargs)
            beside[:] = [output[1:] if isinstance(output, tuple) else None]
            return output
        return hidden if beside[0] is None else (hidden, *beside[0])

    put_forward_(ffn.block, forward)
    try:
        yield
    finally:
        put_forward_(ffn.block, before)


def enter(ffn: FFN, hidden: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Runs one block up to its FFN: what that reads, and the stream that its output will be added to."""
    with ExitStack() as hooks, torch.inference_mode():
        hooks.enter_context(_unchunked(ffn.block))
        residual = hooks.enter_context(_residual_of(ffn))
        read = hooks.enter_context(stopping_before(*(matrix.module for matrix in ffn.into)))
        ffn.block(hidden, *call.args, **call.kwargs)
    return _as(hidden, read[0]), residual(hidden)


def step(ffn: FFN, hidden: Tensor, call: Call) -> Step:
    """Runs one block on carried hidden states, watching its FFN."""
    with ExitStack() as hooks, torch.inference_mode():
        read = hooks.enter_context(inputs_of(ffn.up.module))
        activations = hooks.enter_context(inputs_of(ffn.down.module))
        written = hooks.enter_context(outputs_of(ffn.down.module))
        residual = hooks.enter_context(_residual_of(ffn))
        after = _output_of(ffn.block(hidden, *call.args, **call.kwargs))
        states = [_as(hidden, joined(calls)) for calls in (read, activations, written)]
        return Step(after, states[0], states[1], states[2], residual(hidden))


def finish(ffn: FFN, residual: Tensor, activations: Tensor) -> Tensor:
    """What the next block gets, from where `step` looked on: nothing of the block before that runs again."""
    with torch.inference_mode():
        written = ffn.down(activations)
        return ffn.handed_on(residual.to(written.device), written)


def read_by(module: nn.Module, ffn: FFN, hidden: Tensor, call: Call) -> Tensor:
    """Runs one block up to a module in it and returns that module's input."""
    with torch.inference_mode(), stopping_before(module) as read:
        ffn.block(hidden, *call.args, **call.kwargs)
    return read[0]


def advance(ffn: FFN, hidden: Tensor, call: Call) -> Tensor:
    """Runs one block on carried hidden states and returns what the next block gets."""
    with torch.inference_mode():
        return _output_of(ffn.block(hidden, *call.args, **call.kwargs))


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module gives while the context is open."""
    found: list[Tensor] = []

    def remember(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        found.append(output.clone())  # some blocks add to it in place

    handle = module.register_forward_hook(remember)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def _residual_of(ffn: FFN) -> Iterator[Callable[[Tensor], Tensor]]:
    """Gives the stream that the FFN's output is added to, after a run of its block on some hidden states."""
    with inputs_of(ffn.residual) as before, outputs_of(ffn.block.get_submodule(ffn.stack.attention)) as attention:

        def found(hidden: Tensor) -> Tensor:
            stream = _as(hidden, joined(before))
            return ffn.attention_addition.sum(stream, joined(attention)) if ffn.stack.parallel else stream

        yield found


def _as(hidden: Tensor, tokens: Tensor) -> Tensor:
    """Features of the same tokens, ``(batch, sequence, features)``, also where a block lays its tokens in a row."""
    return tokens.view(*hidden.shape[:-1], tokens.shape[-1])


@contextmanager
def _unchunked(block: nn.Module) -> Iterator[None]:
    """The block calls its FFN once for all tokens, also where its config asks for several calls."""
    chunked = [vars(module) for module in block.modules() if "chunk_size_feed_forward" in vars(module)]
    sizes = [told["chunk_size_feed_forward"] for told in chunked]
    for told in chunked:
        told["chunk_size_feed_forward"] = 0
    try:
        yield
    finally:
        for told, size in zip(chunked, sizes, strict=True):
            told["chunk_size_feed_forward"] = size


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

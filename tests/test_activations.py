"""Streaming and pooling of activations: right values, one layer at a time, nothing left behind in the model."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY, tiny_batches, tiny_bert
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import PreTrainedModel

from skillprune.activations import Position, pool, stream_activations
from skillprune.data import Batch
from skillprune.families import FFN, find_ffns

families = pytest.mark.parametrize("family", sorted(TINY))
Seen = list[tuple[int, Tensor, Batch]]


def collect(model: PreTrainedModel, batches: tuple[Batch, ...], layers: tuple[int, ...] = (0, 1, 2)) -> Seen:
    seen: Seen = []
    ffns = [ffn for ffn in find_ffns(model) if ffn.layer in layers]
    stream_activations(model, ffns, batches, lambda ffn, values, batch: seen.append((ffn.layer, values.clone(), batch)))
    return seen


def activations_alone(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """Activation of every layer for a batch, from the outputs of the up projections."""
    found: list[Tensor] = []
    hooks = [
        ffn.up.register_forward_hook(lambda _module, _args, output: found.append(gelu(output)))
        for ffn in find_ffns(model)
    ]
    with torch.no_grad():
        model(**batch.inputs)
    for hook in hooks:
        hook.remove()
    return found


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@families
def test_visits_give_what_down_reads_batch_by_batch_and_bottom_up(family: str) -> None:
    model = TINY[family]().double()
    batches = tiny_batches(batch_size=4)
    seen = collect(model, batches)
    assert [layer for layer, _, _ in seen] == [0, 1, 2] * len(batches)
    for number, (layer, values, batch) in enumerate(seen):
        assert torch.equal(batch.indices, batches[number // 3].indices)
        assert values.shape == (*batch.mask.shape, 32)
        torch.testing.assert_close(values, activations_alone(model, batch)[layer], rtol=1e-10, atol=1e-12)


@families
@pytest.mark.parametrize("chunk", [1, 3, 12])
def test_a_chunked_feed_forward_gives_the_same_activations(family: str, chunk: int) -> None:
    batches = tiny_batches(pad_to=12)
    calls: list[int] = []
    chunked = TINY[family](chunk=chunk).double()
    find_ffns(chunked)[0].down.register_forward_hook(lambda *_: calls.append(1))
    whole, parts = collect(TINY[family]().double(), batches), collect(chunked, batches)
    assert len(calls) == len(batches) * 12 // chunk
    assert len(parts) == len(whole) == 3 * len(batches)
    for (_, expected, _), (_, values, _) in zip(whole, parts, strict=True):
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


def test_only_the_layers_asked_for_are_visited() -> None:
    assert [layer for layer, _, _ in collect(tiny_bert(), tiny_batches(batch_size=10), layers=(2,))] == [2]


def test_activations_carry_no_gradient_and_a_batch_at_a_time_is_reported() -> None:
    model, batches = tiny_bert(), tiny_batches(batch_size=4)
    told: list[tuple[str, int, int]] = []
    flags: list[bool] = []
    stream_activations(
        model,
        find_ffns(model),
        batches,
        lambda ffn, values, batch: flags.append(values.requires_grad or torch.is_grad_enabled()),
        what="reading",
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert told == [("reading", done, 3) for done in range(4)]
    assert flags == [False] * 9


@pytest.mark.parametrize("chunk", [0, 4])
def test_one_layer_is_alive_at_a_time(chunk: int) -> None:
    model = tiny_bert(chunk=chunk)
    earlier: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def visit(ffn: FFN, values: Tensor, batch: Batch) -> None:
        alive.append(sum(reference() is not None for reference in earlier))
        earlier.append(weakref.ref(values))

    stream_activations(model, find_ffns(model), tiny_batches(pad_to=12), visit)
    assert alive == [0] * 9


class Stop(Exception):
    pass


def stop(*_: object) -> None:
    raise Stop


def ignore(*_: object) -> None:
    return None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("failing", ["nothing", "visit", "progress", "model"])
def test_hooks_are_gone_and_the_mode_is_back_whatever_happens(training: bool, failing: str) -> None:
    model = tiny_bert().train(training)
    modes: list[bool] = []
    ours = model.bert.encoder.layer[1].register_forward_hook(
        lambda module, _args, _output: modes.append(module.training)
    )
    visit: Callable[..., None] = stop if failing == "visit" else ignore
    progress: Callable[..., None] = stop if failing == "progress" else ignore
    batches = tiny_batches()
    if failing == "model":
        batches[1].inputs["input_ids"][0, 0] = 10_000
    before = hooks_of(model)
    try:
        stream_activations(model, find_ffns(model), batches, visit, progress=progress)
    except (Stop, IndexError):
        assert failing != "nothing"
    else:
        assert failing == "nothing"
    assert hooks_of(model) == before == 1
    ours.remove()
    assert not any(modes)
    assert all(module.training is training for module in model.modules())


def naive_pool(activations: Tensor, mask: Tensor, position: str) -> list[list[float]]:
    pooled: list[list[float]] = []
    for example, reals in zip(activations.tolist(), mask.tolist(), strict=True):
        tokens = [token for token, real in zip(example, reals, strict=True) if real]
        columns = list(zip(*tokens, strict=True))
        if position == "cls":
            pooled.append([column[0] for column in columns])
        elif position == "mean":
            pooled.append([math.fsum(column) / len(column) for column in columns])
        else:
            pooled.append([max(column) for column in columns])
    return pooled


def batch_of(mask: Tensor) -> Batch:
    inputs = {"input_ids": torch.zeros_like(mask, dtype=torch.long), "attention_mask": mask.long()}
    return Batch(inputs, torch.zeros(len(mask), dtype=torch.long), mask & False, torch.arange(len(mask)))


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """Right padding, left padding and both, at least one real token per row."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        start = draw(st.integers(0, columns - 1))
        mask[row, start : draw(st.integers(start + 1, columns))] = True
    return mask


@pytest.mark.parametrize("position", get_args(Position))
@settings(deadline=None, max_examples=60)
@given(mask=masks(), seed=st.integers(0, 1000), shift=st.sampled_from([0.0, -5.0]))
def test_pooling_equals_a_loop_and_padding_never_counts(
    position: Position, mask: Tensor, seed: int, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(*mask.shape, 3, generator=generator, dtype=torch.float64) + shift
    poisoned = activations.masked_fill(~mask.unsqueeze(-1), 1e6)
    expected = torch.tensor(naive_pool(activations, mask, position), dtype=torch.float64)
    torch.testing.assert_close(pool(poisoned, batch_of(mask), position), expected, rtol=1e-6, atol=1e-6)


def test_special_tokens_count() -> None:
    batch = tiny_batches(lengths=(2,), labels=(0,))[0]
    assert bool(batch.special.all())
    assert pool(torch.tensor([[[1.0], [3.0]]]), batch, "mean").tolist() == [[2.0]]

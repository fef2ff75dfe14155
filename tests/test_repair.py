"""Repair against a slow reference: two whole models run from the embeddings again for every layer, and dense lstsq."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import PAD, TINY, TINY_ALL, TINY_WIDTHS, VOCABULARY, batches_for, tiny_batches, tiny_keep
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.activations import DiskArrays
from skillprune.data import Batch
from skillprune.errors import DataError, PlanMismatch, UnsupportedArchitecture
from skillprune.families import FFN, find_ffns
from skillprune.planning import Costs, PruningPlan
from skillprune.repair import (
    METHODS,
    LayerError,
    Lessons,
    Statistics,
    choose_and_repair_,
    lessons,
    lessons_if_room,
    prune_and_repair_,
    states,
)
from skillprune.repair.methods import RIDGES
from skillprune.surgery import prune_

LAYERS, WIDTH = 3, 32
LENGTHS = (3, 9, 5, 12, 7, 4, 10, 6, 8, 11, 9, 5, 12, 4, 7, 10, 3, 8, 6, 12)  # examples 9 and 19 are held out
KEEP = (range(0, 32, 2), range(5, 20), (0, 1, 2, 7, 31))
UNCOUNTED = Costs(0, 0, 0, 0, 0)
EVERYTHING = (range(WIDTH),) * LAYERS


class Paths(NamedTuple):
    """Where a stack's blocks are and, in a block: what reads the stream before the FFN, down, and what reads it after.

    In a pre-norm block nothing reads it after: it is what the block gives. Then attention's output projection, what
    reads the stream it is added to, what attention reads through, and what the FFN does.
    """

    blocks: str
    before: str
    down: str
    after: str | None
    attention: str
    attended: str
    attending: tuple[str, ...]
    into: tuple[str, ...]


_BERT = (
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
    "attention.output.dense",
    "attention.output.LayerNorm",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    ("intermediate.dense",),
)
_PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_BART = (
    *("fc1", "fc2", "final_layer_norm", "self_attn.out_proj", "self_attn_layer_norm"),
    *(_PROJECTIONS, ("fc1",)),
)
FFN_PATHS = {
    "bert": {"encoder": Paths("bert.encoder.layer", *_BERT)},
    "roberta": {"encoder": Paths("roberta.encoder.layer", *_BERT)},
    "distilbert": {
        "encoder": Paths(
            "distilbert.transformer.layer",
            *("ffn.lin1", "ffn.lin2", "output_layer_norm", "attention.out_lin", "sa_layer_norm"),
            *(("attention.q_lin", "attention.k_lin", "attention.v_lin"), ("ffn.lin1",)),
        )
    },
    "llama": {
        "decoder": Paths(
            "model.layers",
            *("post_attention_layernorm", "mlp.down_proj", None, "self_attn.o_proj", "post_attention_layernorm"),
            *(_PROJECTIONS, ("mlp.up_proj", "mlp.gate_proj")),
        )
    },
    "bart": {
        "encoder": Paths("model.encoder.layers", *_BART),
        "decoder": Paths("model.decoder.layers", *_BART),
    },
}
Array = NDArray[np.float64]
Solution = tuple[Array, "Array | None"]
Solve = Callable[[Array, Array, Array, Array, "Array | None", Sequence[int]], Solution]
families = pytest.mark.parametrize("family", sorted(TINY_ALL))


def plan_of(*keep: Sequence[int], stack: str = "encoder") -> PruningPlan:
    widths = (WIDTH,) * len(keep)
    return PruningPlan({stack: tuple(map(tuple, keep))}, {stack: widths}, "test", {}, 1, UNCOUNTED, UNCOUNTED)


def plan_for(family: str, *keep: Sequence[int]) -> PruningPlan:
    """A plan for every stack of the family's tiny model."""
    return PruningPlan(tiny_keep(family, *keep), TINY_WIDTHS[family], "test", {}, 1, UNCOUNTED, UNCOUNTED)


def model_of(family: str, *, bias: bool | None = None, **sizes: int) -> PreTrainedModel:
    """A tiny model in float64, its down projections with or without bias if asked."""
    model = TINY_ALL[family](**sizes).double()
    generator = torch.Generator().manual_seed(0)
    for _, _, down in downs(model):
        if bias is False:
            down.bias = None
        elif bias and down.bias is None:
            down.bias = nn.Parameter(torch.randn(down.out_features, dtype=torch.float64, generator=generator))
    return model


def downs(model: PreTrainedModel) -> list[tuple[str, int, nn.Linear]]:
    """The down projections with stack and layer, in the order they run."""
    return [
        (stack, layer, block.get_submodule(paths.down))
        for stack, paths in FFN_PATHS[model.config.model_type].items()
        for layer, block in enumerate(model.get_submodule(paths.blocks))
    ]


def real(batch: Batch, stack: str) -> Tensor:
    """Where a stack sees no padding; BART's decoder is padded in what it is given to write."""
    written = batch.inputs.get("decoder_input_ids")
    return batch.inputs["attention_mask"].bool() if written is None or stack == "encoder" else written != PAD


def observe(model: PreTrainedModel, stack: str, layer: int, batches: Sequence[Batch]) -> tuple[Array, Array, Array]:
    """Stacked over real tokens: activations, the stream before the FFN adds to it, and the stream after."""
    paths = FFN_PATHS[model.config.model_type][stack]
    return _read(model, stack, layer, batches, paths.down, paths.before, paths.after or "<output>")


def observe_attention(
    model: PreTrainedModel, stack: str, layer: int, batches: Sequence[Batch]
) -> tuple[Array, Array, Array]:
    """The same for attention: what its output projection reads, the block's input, and the stream after."""
    paths = FFN_PATHS[model.config.model_type][stack]
    return _read(model, stack, layer, batches, paths.attention, "", paths.attended)


def _read(model: PreTrainedModel, stack: str, layer: int, batches: Sequence[Batch], *names: str) -> Any:
    """What modules of a block read, and with ``<output>`` what the block gives, over real tokens."""
    block = model.get_submodule(FFN_PATHS[model.config.model_type][stack].blocks)[layer]
    stacked: dict[str, list[Tensor]] = {name: [] for name in names}
    for batch in batches:
        calls: dict[str, list[Tensor]] = {name: [] for name in names}
        handles = []
        for name in names:

            def read(_: nn.Module, args: Any, kwargs: Any, into: list[Tensor] = calls[name]) -> None:
                into.append(args[0] if args else kwargs["hidden_states"])

            def give(_: nn.Module, __: Any, output: Any, into: list[Tensor] = calls[name]) -> None:
                into.append(output if isinstance(output, Tensor) else output[0])

            handles.append(
                block.register_forward_hook(give)
                if name == "<output>"
                else block.get_submodule(name).register_forward_pre_hook(read, with_kwargs=True)
            )
        with torch.no_grad():
            model(**batch.inputs)
        for handle in handles:
            handle.remove()
        for name, rows in stacked.items():
            rows.append(torch.cat(calls[name], dim=1)[real(batch, stack)])
    return tuple(torch.cat(rows).numpy() for rows in stacked.values())


def ridge_rows(ridge: float) -> Solve:
    """Least squares as one dense system: the ridge is extra rows, the intercept an extra column they do not touch.

    Every token is a row, divided by the standard deviation of its stream.
    """

    def solve(
        a: Array, y: Array, s: Array, w: Array, b: Array | None, kept: Sequence[int]
    ) -> tuple[Array, Array | None]:
        a, w, scale = a[:, kept], w[:, kept], 1 / s.std(axis=1, ddof=1, keepdims=True)
        spread = (a - np.average(a, axis=0, weights=scale[:, 0] ** 2) if b is not None else a) * scale
        a, y = a * scale, y * scale
        root = np.sqrt(ridge * np.mean(np.sum(spread**2, axis=0)))
        left, right = np.vstack([a, root * np.eye(len(kept))]), np.vstack([y, root * w.T])
        if b is not None:
            left = np.hstack([left, np.r_[scale[:, 0], np.zeros(len(kept))][:, None]])
        found = np.linalg.lstsq(left, right, rcond=None)[0]
        return (found.T, None) if b is None else (found[:-1].T, found[-1])

    return solve


def fold_means(
    a: Array, y: Array, s: Array, w: Array, b: Array | None, kept: Sequence[int]
) -> tuple[Array, Array | None]:
    gone = [neuron for neuron in range(w.shape[1]) if neuron not in kept]
    return w[:, kept], None if b is None else b + sum(w[:, neuron] * a[:, neuron].mean() for neuron in gone)


def held_out(batches: Sequence[Batch], stack: str) -> NDArray[np.bool_]:
    """Real tokens of every tenth example."""
    masks = [(real(batch, stack), batch.indices % 10 == 9) for batch in batches]
    return np.concatenate([nine[:, None].expand_as(mask)[mask] for mask, nine in masks])


def missed(a: Array, y: Array, s: Array, w: Array, b: Array | None, method: str) -> float:
    weights = 1 / s.var(axis=1) if method == "least_squares" else np.ones(len(s))
    found = a @ w.T + (0 if b is None else b)
    spread = y - np.average(y, axis=0, weights=weights)
    return float(weights @ np.sum((found - y) ** 2, axis=1) / (weights @ np.sum(spread**2, axis=1)))


def slow_repair(
    dense: PreTrainedModel,
    plan: PruningPlan,
    batches: Sequence[Batch],
    solve: Solve,
    *,
    method: str = "least_squares",
    sequential: bool = True,
    attention: bool = True,
) -> tuple[PreTrainedModel, list[LayerError]]:
    """Never slices: the pruned neurons' columns become zero in a copy of full width."""
    student, errors, cut = deepcopy(dense), [], False
    watched = student if sequential else dense
    for stack, layer, down in downs(student):
        kept = list(plan.keep[stack][layer])
        if len(kept) == down.in_features:
            continue
        held = held_out(batches, stack)
        paths = FFN_PATHS[dense.config.model_type][stack]
        mends = method == "least_squares" and sequential and cut
        if mends and attention:
            lead_back(student, dense, stack, layer, batches, paths.attending, solve)
            out = student.get_submodule(paths.blocks)[layer].get_submodule(paths.attention)
            _, _, wanted = observe_attention(dense, stack, layer, batches)
            a, before, _ = observe_attention(student, stack, layer, batches)
            everything = list(range(out.in_features))
            fitted = solve(a[~held], (wanted - before)[~held], wanted[~held], *parameters(out), everything)
            write(out, everything, *fitted)
        if mends:
            lead_back(student, dense, stack, layer, batches, paths.into, solve)
        cut = True
        _, _, wanted = observe(dense, stack, layer, batches)
        a, before, _ = observe(watched, stack, layer, batches)
        y = wanted - before
        w, b = parameters(down)
        new_w, new_b = solve(a[~held], y[~held], wanted[~held], w, b, kept)
        unseen = (a[held][:, kept], y[held], wanted[held])
        before_and_after = (missed(*unseen, *given, method) for given in ((w[:, kept], b), (new_w, new_b)))
        errors.append(LayerError(stack, layer, *before_and_after))
        write(down, kept, new_w, new_b)
    return student, errors


def lead_back(
    student: PreTrainedModel,
    dense: PreTrainedModel,
    stack: str,
    layer: int,
    batches: Sequence[Batch],
    names: Sequence[str],
    solve: Solve,
) -> None:
    """Folds into projections the map from what they read to what the dense network reads there."""
    (found,), (wanted,) = (_read(model, stack, layer, batches, names[0]) for model in (student, dense))
    block = student.get_submodule(FFN_PATHS[dense.config.model_type][stack].blocks)[layer]
    linears, size = [block.get_submodule(name) for name in names], found.shape[1]
    fit = ~held_out(batches, stack)
    alike = np.tile([-np.sqrt(0.5), np.sqrt(0.5)], (int(fit.sum()), 1))  # of standard deviation 1
    offset = None if any(linear.bias is None for linear in linears) else np.zeros(size)
    turned, shift = solve(found[fit], wanted[fit], alike, np.eye(size), offset, range(size))
    for linear in linears:
        weight, bias = parameters(linear)
        moved = None if bias is None or shift is None else bias + weight @ shift
        write(linear, range(size), weight @ turned, moved)


def parameters(linear: nn.Linear) -> tuple[Array, Array | None]:
    return linear.weight.detach().numpy().copy(), None if linear.bias is None else linear.bias.detach().numpy().copy()


def write(linear: nn.Linear, columns: Sequence[int], weight: Array, bias: Array | None) -> None:
    with torch.no_grad():
        linear.weight.zero_()[:, columns] = torch.from_numpy(weight)
        if bias is not None:
            linear.bias.copy_(torch.from_numpy(bias))


def logits(model: PreTrainedModel, batches: Sequence[Batch]) -> Tensor:
    """One row per example, or per real token of a model that writes."""
    found: list[Tensor] = []
    for batch in batches:
        with torch.no_grad():
            rows = model(**batch.inputs).logits
        found.append(rows if rows.dim() == 2 else rows[real(batch, "decoder")])
    return torch.cat(found)


def assert_close(model: PreTrainedModel, other: PreTrainedModel, rtol: float = 1e-6) -> None:
    for (name, found), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol, msg=lambda text, name=name: f"{name}: {text}")


REFERENCES: dict[str, Solve] = {"least_squares": ridge_rows(0.03), "mean": fold_means}


@families
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("method", REFERENCES)
def test_every_layer_is_what_the_slow_reference_finds(family: str, bias: bool, method: str) -> None:
    dense, batches, plan = model_of(family, bias=bias), batches_for(family, lengths=LENGTHS), plan_for(family, *KEEP)
    attention = method == "least_squares"
    expected, expected_errors = slow_repair(dense, plan, batches, REFERENCES[method], method=method)
    repaired = deepcopy(dense)
    errors = prune_and_repair_(repaired, plan, batches, method=method, ridge=0.03)
    assert len(errors) == sum(map(len, TINY_WIDTHS[family].values()))
    for (stack, layer, found), (_, _, wanted) in zip(downs(repaired), downs(expected), strict=True):
        kept = list(plan.keep[stack][layer])
        torch.testing.assert_close(found.weight, wanted.weight[:, kept], rtol=1e-7, atol=1e-9)
        if bias:
            torch.testing.assert_close(found.bias, wanted.bias, rtol=1e-7, atol=1e-9)
        else:
            assert found.bias is None
        paths = FFN_PATHS[family][stack]
        name = f"{paths.blocks}.{layer}.{paths.attention}.weight"
        torch.testing.assert_close(
            repaired.get_parameter(name), expected.get_parameter(name), rtol=1e-7, atol=1e-9, msg=name
        )
        for path in paths.attending:
            name = f"{paths.blocks}.{layer}.{path}"
            assert_close(repaired.get_submodule(name), expected.get_submodule(name), rtol=1e-7)
        for path in paths.into:
            name = f"{paths.blocks}.{layer}.{path}"
            torch.testing.assert_close(
                repaired.get_submodule(name).weight, expected.get_submodule(name).weight[kept], rtol=1e-7, atol=1e-9
            )
        lowest = layer == 0 and stack == next(iter(FFN_PATHS[family]))
        for path in (paths.attention, *paths.attending):
            name = f"{paths.blocks}.{layer}.{path}.weight"
            unchanged = torch.equal(repaired.get_parameter(name), dense.get_parameter(name))
            assert unchanged == (not attention or lowest)
    assert [(e.stack, e.layer) for e in errors] == [(e.stack, e.layer) for e in expected_errors]
    np.testing.assert_allclose(
        [(e.before, e.after) for e in errors], [(e.before, e.after) for e in expected_errors], rtol=1e-7
    )
    torch.testing.assert_close(logits(repaired, batches), logits(expected, batches), rtol=1e-7, atol=1e-9)


@families
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_one_shot_fits_every_layer_to_the_dense_network(family: str, bias: bool) -> None:
    dense, batches, plan = model_of(family, bias=bias), batches_for(family, lengths=LENGTHS), plan_for(family, *KEEP)
    expected, expected_errors = slow_repair(dense, plan, batches, ridge_rows(0.03), sequential=False)
    repaired = deepcopy(dense)
    errors = prune_and_repair_(repaired, plan, batches, ridge=0.03, sequential=False)
    torch.testing.assert_close(logits(repaired, batches), logits(expected, batches), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose([e.after for e in errors], [e.after for e in expected_errors], rtol=1e-7)


def test_an_outlier_on_special_tokens_does_not_cost_the_others() -> None:
    """One neuron writes a lot, on the first token only, and goes: repair must not bend everything towards that."""
    dense = model_of("bert")
    embedding, block = dense.bert.embeddings.word_embeddings.weight, dense.bert.encoder.layer[0]
    special, outlier = 2, WIDTH - 1
    with torch.no_grad():
        embedding[:, 0] = -0.5
        embedding[special] = 50 * torch.eye(embedding.shape[1], dtype=torch.float64)[0]
        block.intermediate.dense.weight[outlier] = 30 * torch.eye(embedding.shape[1], dtype=torch.float64)[0]
        block.intermediate.dense.bias[outlier] = -45
    batches = batches_for("bert", lengths=LENGTHS * 10)
    for batch in batches:
        batch.inputs["input_ids"][:, 0] = special
    first = np.concatenate(
        [(torch.arange(mask.shape[1]) == 0).expand_as(mask)[mask] for mask in (real(b, "encoder") for b in batches)]
    )
    a, _, wanted = observe(dense, "encoder", 0, batches)
    assert a[first, outlier].mean() > 10 and np.abs(a[~first, outlier]).mean() < 0.01
    missed_by = {}
    for method in ("zero", "least_squares"):
        model = deepcopy(dense)
        prune_and_repair_(model, plan_of(range(8), *EVERYTHING[1:]), batches, method=method)
        _, _, found = observe(model, "encoder", 0, batches)
        missed_by[method] = [float(((found - wanted)[rows] ** 2).sum(axis=1).mean()) for rows in (first, ~first)]
    assert missed_by["least_squares"][1] < missed_by["zero"][1]


@families
@pytest.mark.parametrize("noise", [0.0, 3.0], ids=["as it is", "noisy targets"])
def test_without_a_ridge_the_one_that_misses_least_on_held_out_examples_is_taken(family: str, noise: float) -> None:
    batches = batches_for(family, lengths=LENGTHS)
    stack = next(iter(TINY_WIDTHS[family]))
    everything = {name: tuple(tuple(range(w)) for w in widths) for name, widths in TINY_WIDTHS[family].items()}
    keep = {**everything, stack: (tuple(range(0, TINY_WIDTHS[family][stack][0], 2)), *everything[stack][1:])}
    plan = replace(plan_for(family, *KEEP), keep=keep)

    def missed_with(ridge: float | None) -> float:
        model = model_of(family)
        with torch.no_grad():  # neurons that hardly vary tempt a weak ridge into fitting noise
            downs(model)[0][2].weight.mul_(1 + noise)
        (error,) = prune_and_repair_(model, plan, batches, ridge=ridge)
        return error.after

    assert missed_with(None) == pytest.approx(min(map(missed_with, RIDGES)), rel=1e-9)


@families
def test_hidden_states_that_go_to_disk_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, plan = batches_for(family, lengths=LENGTHS), plan_for(family, *KEEP)
    in_memory, on_disk = model_of(family), model_of(family)
    expected = prune_and_repair_(in_memory, plan, batches)
    made = []
    real_zeros = DiskArrays.zeros
    monkeypatch.setattr(DiskArrays, "zeros", lambda *args: made.append(args) or real_zeros(*args))
    monkeypatch.setattr(states, "MEMORY_SHARE", 0.0)
    assert prune_and_repair_(on_disk, plan, batches) == expected
    assert_close(on_disk, in_memory, rtol=0)
    assert len(made) >= 2 * len(batches)


@families
def test_half_precision_loses_no_more_on_disk_than_in_memory(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, plan = batches_for(family, lengths=LENGTHS), plan_for(family, *KEEP)
    in_memory, on_disk = (model_of(family).to(torch.bfloat16) for _ in range(2))
    expected = prune_and_repair_(in_memory, plan, batches)
    monkeypatch.setattr(states, "MEMORY_SHARE", 0.0)
    assert prune_and_repair_(on_disk, plan, batches) == expected
    assert_close(on_disk, in_memory, rtol=0)


@families
def test_choosing_in_every_block_sees_the_network_pruned_so_far(family: str) -> None:
    batches, plan = batches_for(family, lengths=LENGTHS), plan_for(family, *KEEP)
    expected, model = model_of(family), model_of(family)
    prune_and_repair_(expected, plan, batches, ridge=0.03)
    grams = {}

    def choose(ffn: FFN, statistics: Statistics) -> Sequence[int]:
        grams[ffn.site] = statistics.fit.gram
        return plan.keep[ffn.stack.name][ffn.layer]

    assert choose_and_repair_(model, plan.width_after, choose, batches, ridge=0.03) == plan.keep
    assert_close(model, expected, rtol=1e-9)
    slow, _ = slow_repair(model_of(family), plan, batches, ridge_rows(0.03))
    stack, layer, _ = downs(slow)[-1]
    a, _, _ = observe(slow, stack, layer, batches)  # what the last layer reads depends on no repair of its own
    _, _, after = observe(model_of(family), stack, layer, batches)
    fit = ~held_out(batches, stack)
    weighted = a[fit] / after[fit].var(axis=1)[:, None]
    np.testing.assert_allclose(grams[stack, layer], weighted.T @ a[fit], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "stack", "layer"),
    [(f, s, layer) for f in FFN_PATHS if f != "llama" for s, w in TINY_WIDTHS[f].items() for layer in range(len(w))],
)
def test_an_endless_ridge_only_folds_a_weighted_mean_where_nothing_below_was_cut(
    family: str, stack: str, layer: int
) -> None:
    # Further up the intercept also carries the mean error of the layers below.
    keep = {name: [tuple(range(width)) for width in widths] for name, widths in TINY_WIDTHS[family].items()}
    keep[stack][layer] = kept = tuple(neuron for neuron in KEEP[layer] if neuron in keep[stack][layer])
    plan = replace(plan_for(family, *KEEP), keep={name: tuple(layers) for name, layers in keep.items()})
    dense, fitted, batches = model_of(family), model_of(family), batches_for(family, lengths=LENGTHS)
    prune_and_repair_(fitted, plan, batches, ridge=1e12)
    old, new = ({(s, n): down for s, n, down in downs(model)}[stack, layer] for model in (dense, fitted))
    a, _, after = observe(dense, stack, layer, batches)
    fit, gone = ~held_out(batches, stack), [n for n in range(old.in_features) if n not in kept]
    mean = np.average(a[fit][:, gone], axis=0, weights=1 / after[fit].var(axis=1))
    folded = old.bias.detach().numpy() + old.weight.detach().numpy()[:, gone] @ mean
    np.testing.assert_allclose(new.bias.detach().numpy(), folded, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(new.weight, old.weight[:, list(kept)], rtol=1e-7, atol=1e-9)
    assert not np.allclose(folded, old.bias.detach().numpy(), atol=1e-3)


@families
def test_zero_is_prune(family: str) -> None:
    sliced, repaired = TINY_ALL[family](), TINY_ALL[family]()
    prune_(sliced, plan_for(family, *KEEP))
    errors = prune_and_repair_(repaired, plan_for(family, *KEEP), batches_for(family, lengths=LENGTHS), method="zero")
    assert_close(repaired, sliced, rtol=0)
    assert repaired.config.to_dict() == sliced.config.to_dict()
    assert all(error.before == error.after > 0 for error in errors)


@families
@pytest.mark.parametrize("method", METHODS)
def test_keeping_everything_changes_nothing(family: str, method: str) -> None:
    model, batches = TINY_ALL[family](), batches_for(family)
    expected = logits(model, batches)
    assert prune_and_repair_(model, plan_for(family, *EVERYTHING), batches, method=method) == ()
    assert_close(model, TINY_ALL[family](), rtol=0)
    torch.testing.assert_close(logits(model, batches), expected, rtol=0, atol=1e-5)


@families
def test_a_layer_that_keeps_everything_is_untouched(family: str) -> None:
    model, dense = TINY_ALL[family](), TINY_ALL[family]()
    plan = plan_for(family, KEEP[0], range(WIDTH), KEEP[2])
    errors = prune_and_repair_(model, plan, batches_for(family, lengths=LENGTHS))
    for stack, paths in FFN_PATHS[family].items():
        assert_close(model.get_submodule(paths.blocks)[1], dense.get_submodule(paths.blocks)[1], rtol=0)
        assert [error.layer for error in errors if error.stack == stack] == [0, 2][
            : len(TINY_WIDTHS[family][stack]) - 1
        ]


@families
def test_the_width_is_recorded_where_layers_agree(family: str) -> None:
    model = TINY_ALL[family]()
    prune_and_repair_(model, plan_for(family, *[range(8)] * LAYERS), batches_for(family))
    assert [getattr(model.config, ffn.stack.width_attribute) for ffn in find_ffns(model)] == [8] * len(downs(model))


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(sorted(TINY_ALL)),
    st.lists(st.sets(st.integers(0, WIDTH - 1), min_size=1), min_size=LAYERS, max_size=LAYERS),
    st.sampled_from([1e-6, 0.01, 1.0, 100.0]),
    st.booleans(),
)
def test_least_squares_never_misses_more_than_slicing_does(
    family: str, keep: list[set[int]], ridge: float, bias: bool
) -> None:
    batches = batches_for(family, lengths=LENGTHS[:9])  # none is held out, so the error is that of the fit itself
    plan = plan_for(family, *map(sorted, keep))
    errors = prune_and_repair_(model_of(family, bias=bias), plan, batches, ridge=ridge)
    assert all(error.after <= error.before * (1 + 1e-9) for error in errors)


@families
@pytest.mark.parametrize("method", ["mean", "least_squares"])
def test_padding_never_counts(family: str, method: str) -> None:
    plain, padded = model_of(family), model_of(family)
    batches, plan = batches_for(family, lengths=LENGTHS), plan_for(family, *KEEP)
    junk = []
    for batch in batches_for(family, lengths=LENGTHS, pad_to=30):
        noise = torch.randint(3, VOCABULARY, batch.mask.shape, generator=torch.Generator().manual_seed(1))
        sides = [name for name in ("input_ids", "decoder_input_ids") if name in batch.inputs]
        ids = {name: torch.where(batch.inputs[name] != PAD, batch.inputs[name], noise) for name in sides}
        junk.append(replace(batch, inputs={**batch.inputs, **ids}))
    expected = prune_and_repair_(plain, plan, batches, method=method)
    found = prune_and_repair_(padded, plan, junk, method=method)
    assert_close(padded, plain, rtol=1e-9)
    np.testing.assert_allclose([e.after for e in found], [e.after for e in expected], rtol=1e-9)


@families
@pytest.mark.parametrize(
    "batching",
    [{"batch_size": 1}, {"batch_size": 20}, {"batch_size": 7, "order": (*range(1, 20, 2), *range(0, 20, 2))}],
)
def test_batch_size_and_order_do_not_matter(family: str, batching: dict[str, Any]) -> None:
    first, second, plan = model_of(family), model_of(family), plan_for(family, *KEEP)
    expected = prune_and_repair_(first, plan, batches_for(family, lengths=LENGTHS))
    found = prune_and_repair_(second, plan, batches_for(family, lengths=LENGTHS, **batching))
    assert_close(second, first, rtol=1e-6)
    np.testing.assert_allclose([e.after for e in found], [e.after for e in expected], rtol=1e-6)


def test_held_out_examples_shape_nothing() -> None:
    some, all_of_them = model_of("bert"), model_of("bert")
    batches = tiny_batches(lengths=LENGTHS, order=[number for number in range(20) if number % 10 != 9])
    without = prune_and_repair_(some, plan_of(*KEEP), batches, ridge=0.01)
    measured = prune_and_repair_(all_of_them, plan_of(*KEEP), tiny_batches(lengths=LENGTHS), ridge=0.01)
    assert_close(some, all_of_them, rtol=1e-9)
    assert [e.after for e in without] != pytest.approx([e.after for e in measured], rel=1e-3)


@families
def test_repaired_is_nearer_to_dense_than_sliced(family: str) -> None:
    dense, sliced, repaired = (TINY_ALL[family]() for _ in range(3))
    prune_(sliced, plan_for(family, *KEEP))
    prune_and_repair_(repaired, plan_for(family, *KEEP), batches_for(family, lengths=LENGTHS * 5))
    unseen = batches_for(family, lengths=LENGTHS * 3, seed=1)
    expected = logits(dense, unseen)
    far, near = (float((logits(model, unseen) - expected).square().mean()) for model in (sliced, repaired))
    assert near < (far if family == "llama" else far / 2)  # no intercept there to carry the mean


@families
def test_the_cost_is_linear_in_depth(family: str) -> None:
    batches, per_layer = batches_for(family), set()
    for layers in (2, 4, 8):
        model = TINY_ALL[family](layers=layers)
        stack, paths = next(iter(FFN_PATHS[family].items()))
        plan = plan_of(*[range(8)] * layers, stack=stack)
        if family == "bart":  # the encoder grows, the decoder stays as it is
            whole = plan_for(family, *[range(8)] * LAYERS)
            widths = {**plan.width_before, "decoder": whole.width_before["decoder"]}
            plan = replace(plan, keep={**plan.keep, "decoder": whole.keep["decoder"]}, width_before=widths)
        calls = [0] * layers
        for layer, block in enumerate(model.get_submodule(paths.blocks)):

            def count(*_: Any, layer: int = layer, calls: list[int] = calls) -> None:
                calls[layer] += 1

            block.register_forward_pre_hook(count)  # also of runs that end within the block
        prune_and_repair_(model, plan, batches)
        assert calls[0] <= calls[1]  # below the first cut both networks are one
        per_layer |= set(calls[1:])
    # To see what enters the stack; the dense network; and the pruned one up to attention's inputs, to its output and to
    # the FFN. The decoder is looked at twice, before and after its encoder was cut, and that runs the encoder.
    assert per_layer == {(7 if family == "bart" else 5) * len(batches)}


@families
@pytest.mark.parametrize("method", ["mean", "least_squares"])
def test_repairs_that_share_lessons_come_to_the_same_and_run_the_dense_network_once(family: str, method: str) -> None:
    batches, shared, runs = batches_for(family, lengths=LENGTHS), Lessons(), []
    whole = range(WIDTH)
    for keep in ((whole, KEEP[1], whole), KEEP, (whole, range(3), KEEP[0])):
        alone, sharing, plan = model_of(family), model_of(family), plan_for(family, *keep)
        expected = prune_and_repair_(alone, plan, batches, method=method)
        with counted(sharing) as calls:
            assert prune_and_repair_(sharing, plan, batches, method=method, lessons=shared) == expected
        assert_close(sharing, alone, rtol=0)
        runs.append(sum(calls.values()))
    assert runs[2] < runs[0]  # the second plan cuts more


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[Counter[str]]:
    """How often every block of the model itself runs."""
    calls: Counter[str] = Counter()
    hooks = [
        ffn.block.register_forward_hook(lambda *_, name=f"{ffn.stack.name} {ffn.layer}": calls.update([name]))
        for ffn in find_ffns(model)
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def test_lessons_are_kept_only_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = model_of("bart"), batches_for("bart", lengths=LENGTHS)
    positions = {name: sum(batch.mask_of(name).numel() for batch in batches) for name in ("input", "output")}
    wanted = (LAYERS * positions["input"] + 2 * positions["output"]) * 16 * 16 / lessons._MEMORY_SHARE
    for free, kept in ((wanted + 1, True), (wanted - 1, False)):
        monkeypatch.setattr(lessons, "free_bytes", lambda device, free=free: free)
        assert (lessons_if_room(model, batches) is not None) == kept


@pytest.mark.parametrize("ridge", [0.01, 1e-4])
def test_nearly_collinear_neurons_do_not_blow_up(ridge: float) -> None:
    # What data cannot tell apart the ridge leaves apart as it was: the difference of twins' columns.
    model = model_of("bert")
    with torch.no_grad():
        for ffn in find_ffns(model):
            ffn.up.weight[1::2] = ffn.up.weight[::2] * (1 + 1e-9)
            ffn.up.bias[1::2] = ffn.up.bias[::2]
    apart = [down.weight[:, :12:2] - down.weight[:, 1:12:2] for _, _, down in downs(model)]
    errors = prune_and_repair_(model, plan_of(*[range(12)] * LAYERS), tiny_batches(lengths=LENGTHS[:9]), ridge=ridge)
    assert all(error.after < error.before for error in errors)
    for before, (_, _, down) in zip(apart, downs(model), strict=True):
        torch.testing.assert_close(down.weight[:, ::2] - down.weight[:, 1::2], before, rtol=0, atol=1e-4)


def test_dead_neurons_keep_their_weights() -> None:
    model, dead = model_of("bert"), [0, 2, 3]
    with torch.no_grad():
        for ffn in find_ffns(model):
            ffn.up.weight[dead], ffn.up.bias[dead] = 0, -100.0
    old = [down.weight.clone() for _, _, down in downs(model)]
    errors = prune_and_repair_(model, plan_of(*[(0, 1, 2, 9, 20)] * LAYERS), tiny_batches(lengths=LENGTHS))
    assert all(error.after < error.before for error in errors)
    for before, (_, _, down) in zip(old, downs(model), strict=True):
        torch.testing.assert_close(down.weight[:, [0, 2]], before[:, [0, 2]], rtol=1e-9, atol=0)


def test_fewer_tokens_than_neurons_and_no_ridge_to_speak_of(caplog: pytest.LogCaptureFixture) -> None:
    model, batches = model_of("bert"), tiny_batches(lengths=(5, 4))
    with caplog.at_level(logging.WARNING, logger="skillprune"):
        errors = prune_and_repair_(model, plan_of(*[range(30)] * LAYERS), batches, ridge=1e-30)
    assert "nearly collinear" in caplog.text
    assert all(error.after < 1e-6 < error.before for error in errors)  # more unknowns than equations: the fit is exact
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_with_few_tokens_the_strongest_ridge_is_taken_and_told(caplog: pytest.LogCaptureFixture) -> None:
    few, told = model_of("bert"), model_of("bert")
    batches = tiny_batches(lengths=LENGTHS[:10])
    with caplog.at_level(logging.WARNING, logger="skillprune"):
        prune_and_repair_(few, plan_of(*[range(30)] * LAYERS), batches)
    assert caplog.text.count(f"{sum(LENGTHS[:9])} calibration tokens are few to fit 30 columns: a strong ridge") == 1
    prune_and_repair_(told, plan_of(*[range(30)] * LAYERS), batches, ridge=1.0)
    torch.testing.assert_close(few.state_dict(), told.state_dict(), rtol=1e-9, atol=1e-12)


def test_few_tokens_for_what_is_mended_above_the_first_cut_are_told_too(caplog: pytest.LogCaptureFixture) -> None:
    batches = tiny_batches(lengths=LENGTHS[:5])
    with caplog.at_level(logging.WARNING, logger="skillprune"):
        prune_and_repair_(model_of("bert"), plan_of(range(2), *EVERYTHING[1:]), batches)
        prune_and_repair_(model_of("bert"), plan_of(*[range(2)] * LAYERS), batches, sequential=False)
        assert caplog.text == ""
        prune_and_repair_(model_of("bert"), plan_of(*[range(2)] * LAYERS), batches)
    assert caplog.text.count("calibration tokens are few to fit 16 columns") == 1


def test_a_layer_without_neurons_becomes_the_mean_of_what_it_should_write() -> None:
    model, batches = model_of("bert"), tiny_batches(lengths=LENGTHS[:9])
    _, before, after = observe(model, "encoder", 0, batches)
    prune_and_repair_(model, plan_of((), *[range(WIDTH)] * (LAYERS - 1)), batches)
    mean = np.average(after - before, axis=0, weights=1 / after.var(axis=1))
    np.testing.assert_allclose(downs(model)[0][2].bias.detach().numpy(), mean, rtol=1e-6)


def test_a_plan_for_another_model_is_refused_and_nothing_changes() -> None:
    model = TINY["bert"](width=24)
    with pytest.raises(PlanMismatch, match=r"32, 32, 32.*24, 24, 24"):
        prune_and_repair_(model, plan_of(*KEEP), tiny_batches())
    assert_close(model, TINY["bert"](width=24), rtol=0)


@pytest.mark.timeout(20)
def test_what_cannot_be_fitted_is_refused() -> None:
    broken, plan = TINY["bert"](), plan_of(*KEEP)
    with torch.no_grad():
        find_ffns(broken)[0].up.bias[0] = float("nan")
    for model, batches in ((TINY["bert"](), ()), (broken, tiny_batches())):
        with pytest.raises(DataError):
            prune_and_repair_(model, plan, batches)
    with pytest.raises(DataError):
        choose_and_repair_(broken, plan.width_after, lambda *_: pytest.fail("chosen from NaN"), tiny_batches())


@pytest.mark.parametrize("attention", [True, False])
def test_attention_that_is_not_linear_is_refused_before_anything_is_cut_unless_it_is_left_alone(
    attention: bool,
) -> None:
    class Wrapped(nn.Linear):
        pass

    model = TINY["bert"]()
    model.bert.encoder.layer[2].attention.self.query = Wrapped(16, 16)
    if not attention:
        assert len(prune_and_repair_(model, plan_of(*KEEP), tiny_batches(), attention=False)) == LAYERS
        return
    for cut in (
        lambda: prune_and_repair_(model, plan_of(*KEEP), tiny_batches()),
        lambda: choose_and_repair_(model, plan_of(*KEEP).width_after, lambda *_: KEEP[0], tiny_batches()),
    ):
        with pytest.raises(UnsupportedArchitecture, match=r"attention\.self\.query.*Wrapped"):
            cut()
        assert [ffn.width for ffn in find_ffns(model)] == [WIDTH] * LAYERS


@families
def test_attention_is_left_alone_if_asked_and_the_ffn_still_reads_what_it_should(family: str) -> None:
    dense, model, batches, plan = model_of(family), model_of(family), batches_for(family), plan_for(family, *KEEP)
    expected, _ = slow_repair(dense, plan, batches, ridge_rows(0.03), attention=False)
    prune_and_repair_(model, plan, batches, ridge=0.03, attention=False)
    torch.testing.assert_close(logits(model, batches), logits(expected, batches), rtol=1e-7, atol=1e-9)
    for stack, paths in FFN_PATHS[family].items():
        blocks, before = model.get_submodule(paths.blocks), dense.get_submodule(paths.blocks)
        for layer, (block, old) in enumerate(zip(blocks, before, strict=True)):
            for path in (paths.attention, *paths.attending):
                assert_close(block.get_submodule(path), old.get_submodule(path), rtol=0)
            moved = not torch.equal(
                block.get_submodule(paths.into[0]).weight,
                old.get_submodule(paths.into[0]).weight[list(plan.keep[stack][layer])],
            )
            assert moved == (layer > 0 or stack != next(iter(FFN_PATHS[family])))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_chunked_feed_forward_is_repaired_alike(family: str) -> None:
    batches, plan = tiny_batches(lengths=LENGTHS, pad_to=12), plan_of(*KEEP)
    whole, chunked = TINY[family]().double(), TINY[family](chunk=4).double()
    expected = prune_and_repair_(whole, plan, batches)
    found = prune_and_repair_(chunked, plan, batches)
    np.testing.assert_allclose([e.after for e in found], [e.after for e in expected], rtol=1e-7)
    assert_close(chunked, whole, rtol=1e-7)


def test_a_decoder_behind_a_whole_encoder_is_a_first_stack() -> None:
    model, dense, keep = model_of("bart"), model_of("bart"), tiny_keep("bart", *KEEP)
    whole = tuple(tuple(range(width)) for width in TINY_WIDTHS["bart"]["encoder"])
    plan = replace(plan_for("bart", *KEEP), keep={**keep, "encoder": whole})
    prune_and_repair_(model, plan, batches_for("bart", lengths=LENGTHS))
    first, before = (each.model.decoder.layers[0] for each in (model, dense))
    assert_close(first.self_attn, before.self_attn, rtol=0)
    torch.testing.assert_close(first.fc1.weight, before.fc1.weight[list(keep["decoder"][0])], rtol=0, atol=0)


def test_a_decoder_cannot_be_repaired_where_its_positions_are_not_told() -> None:
    model = TINY_ALL["bart"]()
    batches = [replace(batch, targets=None) for batch in batches_for("bart")]
    with pytest.raises(DataError, match="batches with targets"):
        prune_and_repair_(model, plan_for("bart", *KEEP), batches)
    assert_close(model, TINY_ALL["bart"](), rtol=0)


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_what_a_model_caches_changes_no_repair(family: str) -> None:
    plain, caching, plan = model_of(family), model_of(family), plan_for(family, *KEEP)
    plain.config.use_cache, caching.config.use_cache = False, True
    batches = batches_for(family, lengths=LENGTHS)
    assert caching(**batches[0].inputs).past_key_values is not None
    assert plain(**batches[0].inputs).past_key_values is None
    expected = prune_and_repair_(plain, plan, batches)
    assert prune_and_repair_(caching, plan, batches) == expected
    assert_close(caching, plain, rtol=0)

"""Cutting neurons out: what `prune_` leaves is what `masked` and a naive zeroing of columns compute."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import TINY, TINY_ALL, TINY_WIDTHS, batches_for, tiny_keep
from torch import Tensor
from transformers import PreTrainedModel

from skillprune.errors import PlanMismatch
from skillprune.families import find_ffns
from skillprune.planning import Costs, PruningPlan
from skillprune.surgery import masked, prune_

LAYERS, HIDDEN, WIDTH = 3, 16, 32
WIDTH_ATTRIBUTES = {
    "bert": {"encoder": "intermediate_size"},
    "roberta": {"encoder": "intermediate_size"},
    "distilbert": {"encoder": "hidden_dim"},
    "llama": {"decoder": "intermediate_size"},
    "bart": {"encoder": "encoder_ffn_dim", "decoder": "decoder_ffn_dim"},
}
UNCOUNTED = Costs(0, 0, 0, 0, 0)
families = pytest.mark.parametrize("family", sorted(TINY_ALL))


def plan_of(*keep: Sequence[int], width: int = WIDTH, stack: str = "encoder") -> PruningPlan:
    kept, widths = tuple(tuple(sorted(layer)) for layer in keep), (width,) * len(keep)
    return PruningPlan({stack: kept}, {stack: widths}, "test", {}, 1, UNCOUNTED, UNCOUNTED)


def plan_for(family: str, *keep: Sequence[int] | set[int]) -> PruningPlan:
    """A plan for every stack of the family's tiny model."""
    return PruningPlan(tiny_keep(family, *keep), TINY_WIDTHS[family], "test", {}, 1, UNCOUNTED, UNCOUNTED)


def logits(model: PreTrainedModel) -> Tensor:
    (batch,) = batches_for(model.config.model_type, batch_size=10)
    with torch.no_grad():
        found: Tensor = model(**batch.inputs).logits
    return found


def silenced(model: PreTrainedModel, plan: PruningPlan) -> PreTrainedModel:
    """The naive reference: a copy in which the columns of pruned neurons are zero."""
    copy = deepcopy(model)
    with torch.no_grad():
        for ffn in find_ffns(copy):
            kept = plan.keep[ffn.stack.name][ffn.layer]
            ffn.down.weight[:, sorted(set(range(ffn.width)) - set(kept))] = 0
    return copy


def hooks(model: PreTrainedModel) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: PreTrainedModel, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


neurons = st.sets(st.integers(0, WIDTH - 1), max_size=WIDTH)


@families
def test_keeping_everything_changes_nothing(family: str) -> None:
    model = TINY_ALL[family]()
    before, expected, config = state(model), logits(model), model.config.to_dict()
    everything = plan_for(family, *[range(WIDTH)] * LAYERS)
    with masked(model, everything):
        assert torch.equal(logits(model), expected)
    assert prune_(model, everything) is model
    assert_same_state(model, before)
    assert torch.equal(logits(model), expected)
    assert model.config.to_dict() == config


@families
@settings(max_examples=15, deadline=None)
@given(st.lists(neurons, min_size=LAYERS, max_size=LAYERS))
@example([{0}, {WIDTH - 1}, {17}])
@example([set(), {3, 4}, set(range(WIDTH))])
def test_pruned_masked_and_silenced_compute_the_same(family: str, keep: list[set[int]]) -> None:
    model, plan = TINY_ALL[family]().double(), plan_for(family, *keep)
    expected = logits(silenced(model, plan))
    with masked(model, plan) as twin:
        assert twin is model
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits(prune_(model, plan)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", sorted(TINY))
def test_chunked_feed_forward_is_masked_and_pruned_alike(family: str) -> None:
    chunked, plan = TINY[family](chunk=4).double(), plan_of(range(5), range(3, 20), [7])
    expected = logits(silenced(TINY[family]().double(), plan))
    with masked(chunked, plan):
        torch.testing.assert_close(logits(chunked), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits(prune_(chunked, plan)), expected, rtol=0, atol=1e-12)


@families
def test_masking_is_undone_whatever_happens(family: str) -> None:
    model = TINY_ALL[family]()
    before, expected, plan = state(model), logits(model), plan_for(family, [0], [1], [2])
    with masked(model, plan):
        assert hooks(model) == len(find_ffns(model))
        assert_same_state(model, before)
        assert not torch.equal(logits(model), expected)
    with pytest.raises(KeyboardInterrupt), masked(model, plan):
        raise KeyboardInterrupt
    assert hooks(model) == 0
    assert_same_state(model, before)
    assert torch.equal(logits(model), expected)


@families
@pytest.mark.parametrize("widths", [(8, 8, 8), (8, 3, 32)])
def test_modules_and_config_tell_their_new_sizes(family: str, widths: Sequence[int]) -> None:
    model, plan, gated = TINY_ALL[family](), plan_for(family, *map(range, widths)), family == "llama"
    parameters = sum(p.numel() for p in model.parameters())
    prune_(model, plan)
    removed = 0
    for ffn in find_ffns(model):
        width = plan.width_after[ffn.stack.name][ffn.layer]
        for linear in (ffn.up, ffn.gate) if gated else (ffn.up,):
            assert linear.weight.shape == (linear.out_features, linear.in_features) == (width, HIDDEN)
        assert ffn.down.weight.shape == (ffn.down.out_features, ffn.down.in_features) == (HIDDEN, width)
        if not gated:
            assert (ffn.up.bias.shape, ffn.down.bias.shape) == ((width,), (HIDDEN,))
        per_neuron = 3 * HIDDEN if gated else 2 * HIDDEN + 1
        removed += per_neuron * (TINY_WIDTHS[family][ffn.stack.name][ffn.layer] - width)
    assert sum(p.numel() for p in model.parameters()) == parameters - removed
    for stack, attribute in WIDTH_ATTRIBUTES[family].items():
        after, before = plan.width_after[stack], TINY_WIDTHS[family][stack]
        assert getattr(model.config, attribute) == (after[0] if len(set(after)) == 1 else before[0])


@families
def test_kept_neurons_keep_their_numbers_and_order(family: str) -> None:
    model, plan = TINY_ALL[family](), plan_for(family, [1, 5, 30], [0, 9], [2, 31])
    dense = deepcopy(model)
    prune_(model, plan)
    for was, now in zip(find_ffns(dense), find_ffns(model), strict=True):
        for place, neuron in enumerate(plan.keep[was.stack.name][was.layer]):
            assert torch.equal(now.up.weight[place], was.up.weight[neuron])
            assert torch.equal(now.down.weight[:, place], was.down.weight[:, neuron])
            if family == "llama":
                assert torch.equal(now.gate.weight[place], was.gate.weight[neuron])
            else:
                assert torch.equal(now.up.bias[place], was.up.bias[neuron])
        if family != "llama":
            assert torch.equal(now.down.bias, was.down.bias)
    parts = ("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj") if family == "llama" else None
    cut = {f"{ffn.path}.{part}" for ffn in find_ffns(dense) for part in parts or (ffn.stack.up, ffn.stack.down)}
    for name, tensor in dense.state_dict().items():
        if not any(path in name for path in cut):
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_pruning_twice_is_pruning_once() -> None:
    once, twice = TINY["bert"](), TINY["bert"]()
    prune_(once, plan_of([4, 9], [8], [1, 2]))
    prune_(twice, plan_of([2, 4, 9, 11], [7, 8, 20, 21], [0, 1, 2, 3]))
    prune_(twice, plan_of([1, 2], [1], [1, 2], width=4))
    assert_same_state(twice, state(once))


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_frozen_weights_stay_as_they_were(family: str, dtype: torch.dtype) -> None:
    model = TINY_ALL[family]().to(dtype)
    frozen = find_ffns(model)[0]
    for parameter in (*frozen.up.parameters, *frozen.down.parameters):
        parameter.requires_grad_(False)
    expected = [(name, p.dtype, p.requires_grad) for name, p in model.named_parameters()]
    prune_(model, plan_for(family, [3], [4], [5]))
    assert [(name, p.dtype, p.requires_grad) for name, p in model.named_parameters()] == expected


@families
def test_pruned_weights_do_not_hold_on_to_the_dense_ones(family: str) -> None:
    model = prune_(TINY_ALL[family](), plan_for(family, [0], [1], [2]))
    for ffn in find_ffns(model):
        for parameter in ffn.parameters:
            assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


@families
@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (plan_of(*[range(8)] * LAYERS, width=64), "64, 64, 64"),
        (plan_of(*[range(8)] * (LAYERS + 1)), "32, 32, 32, 32"),
        (plan_of(*[range(8)] * LAYERS, stack="third"), "third"),
    ],
)
def test_a_plan_for_another_model_is_refused_and_nothing_changes(family: str, plan: PruningPlan, words: str) -> None:
    model = TINY_ALL[family]()
    before, config = state(model), model.config.to_dict()
    for use in (prune_, _enter):
        with pytest.raises(PlanMismatch) as caught:
            use(model, plan)
        assert words in str(caught.value)
        assert str(TINY_WIDTHS[family]) in str(caught.value)
    assert_same_state(model, before)
    assert (model.config.to_dict(), hooks(model)) == (config, 0)


def test_a_plan_does_not_fit_a_second_time() -> None:
    model, plan = TINY["bert"](), plan_of([0], [1], [2])
    prune_(model, plan)
    with pytest.raises(PlanMismatch, match=r"32, 32, 32.*1, 1, 1"):
        prune_(model, plan)


def _enter(model: PreTrainedModel, plan: PruningPlan) -> Any:
    with masked(model, plan):
        raise AssertionError("a plan for another model was accepted")

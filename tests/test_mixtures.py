"""Mixtures of experts, whichever way transformers keeps them: what they give, what is scored, what is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.utils import has_offloaded_params
from naive import score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, silu
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from zoo import ZOO

from skillprune.answers import Writer
from skillprune.data import NO_TARGET, Batch
from skillprune.errors import UnsupportedArchitecture
from skillprune.families import Mixture, find_ffns
from skillprune.planning import Costs, PruningPlan
from skillprune.scoring import ScoringData
from skillprune.surgery import masked, prune_

MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
TOP_K, EXPERTS, WIDTH = 2, 4, 32

mixtures = pytest.mark.parametrize("name", MIXTURES)


def model_of(name: str) -> PreTrainedModel:
    model = ZOO[name].model()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the default one wants widths in multiples of 4
    return model


def offload_(model: PreTrainedModel, where: str, folder: Path = Path()) -> None:
    """Has accelerate keep the weights in memory or on disk, and lend them to the modules that need them."""
    if where == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def mixtures_of(model: PreTrainedModel) -> list[Mixture]:
    return [ffn for ffn in find_ffns(model) if isinstance(ffn, Mixture)]


def batches_of(name: str) -> list[Batch]:
    found = []
    for seed in range(2):
        inputs = ZOO[name].inputs(seed)
        mask, indices = inputs["attention_mask"].bool(), torch.arange(3) + 3 * seed
        following = torch.where(mask.roll(-1, dims=1), inputs["input_ids"].roll(-1, dims=1), NO_TARGET)
        following[:, -1] = NO_TARGET
        found.append(Batch(inputs, torch.zeros(3, dtype=torch.long), mask & False, indices, targets=following))
    return found


def weights_of(mixture: Mixture, expert: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, up and down of one expert, however they are kept."""
    module = mixture.block.get_submodule(mixture.stack.routing.experts)
    if isinstance(module, nn.ModuleList):
        names = ("w1", "w3", "w2") if hasattr(module[expert], "w1") else ("gate_proj", "up_proj", "down_proj")
        return tuple(getattr(module[expert], name).weight.detach() for name in names)
    gate, up = module.gate_up_proj[expert].detach().chunk(2)
    return gate, up, module.down_proj[expert].detach()


def routed(mixture: Mixture, token: Tensor, normalised: bool) -> dict[int, float]:
    """Which experts one token goes to, and how much they count."""
    router = mixture.block.get_submodule(mixture.stack.routing.router).weight
    chances = torch.softmax(router.detach() @ token, dim=0)
    chosen = chances.argsort(descending=True)[:TOP_K].tolist()
    total = sum(float(chances[expert]) for expert in chosen) if normalised else 1.0
    return {expert: float(chances[expert]) / total for expert in chosen}


def what_mixtures_read(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    read: list[Tensor] = []
    handles = [
        mixture.watched.register_forward_pre_hook(lambda _, args: read.append(args[0].detach().clone()))
        for mixture in mixtures_of(model)
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return read


@mixtures
def test_activations_are_those_of_the_experts_that_were_asked_times_their_weight(name: str) -> None:
    model = model_of(name)
    normalised = name == "mixtral" or model.config.norm_topk_prob
    assert name != "qwen2_moe" or not normalised  # both kinds are looked at
    for mixture, read in zip(mixtures_of(model), what_mixtures_read(model, ZOO[name].inputs()), strict=True):
        fired = mixture.fire(read).view(-1, EXPERTS, WIDTH)
        for token, found in zip(read.flatten(0, 1), fired, strict=True):
            expected = torch.zeros(EXPERTS, WIDTH)
            for expert, weight in routed(mixture, token, normalised).items():
                gate, up, _ = weights_of(mixture, expert)
                expected[expert] = weight * silu(gate @ token) * (up @ token)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@mixtures
def test_a_mixture_gives_its_activations_times_its_columns(name: str) -> None:
    model = model_of(name)
    for mixture, read in zip(mixtures_of(model), what_mixtures_read(model, ZOO[name].inputs()), strict=True):
        with torch.no_grad():
            given: Any = mixture.watched(read)
            given = given[0] if isinstance(given, tuple) else given
            if name == "qwen2_moe":
                shared = mixture.watched.shared_expert(read)
                given = given - torch.sigmoid(mixture.watched.shared_expert_gate(read)) * shared
        torch.testing.assert_close(linear(mixture.fire(read), mixture.down_weight()), given, atol=1e-4, rtol=1e-4)


@mixtures
def test_a_neuron_goes_from_all_experts_and_nothing_else_moves(name: str) -> None:
    model = model_of(name)
    before = [[weights_of(mixture, expert) for expert in range(EXPERTS)] for mixture in mixtures_of(model)]
    count = model.num_parameters()
    kept = [0, 5, 7, 31]
    removed = 0
    for mixture in mixtures_of(model):
        removed += (WIDTH - len(kept)) * mixture.parameters_per_neuron
        mixture.keep_(kept)
        assert mixture.width == len(kept) and mixture.columns == EXPERTS * len(kept)
    assert model.num_parameters() == count - removed
    for mixture, experts in zip(mixtures_of(model), before, strict=True):
        for expert, (gate, up, down) in enumerate(experts):
            now = weights_of(mixture, expert)
            for found, expected in zip(now, (gate[kept], up[kept], down[:, kept]), strict=True):
                assert torch.equal(found, expected)


@mixtures
def test_padding_and_cutting_again_gives_the_same_answers(name: str) -> None:
    model, inputs = model_of(name), ZOO[name].inputs()
    for mixture in mixtures_of(model):
        mixture.keep_(range(10))
    with torch.no_grad():
        expected = model(**inputs).logits
        for mixture in mixtures_of(model):
            mixture.pad_(16)
            assert mixture.width == 16
        torch.testing.assert_close(model(**inputs).logits, expected)


def plan_of(name: str) -> PruningPlan:
    """Every other neuron, not the same ones in every layer."""
    keep = {
        stack: tuple(tuple(range(layer, width, 2)) for layer, width in enumerate(widths))
        for stack, widths in ZOO[name].widths.items()
    }
    return PruningPlan(keep, dict(ZOO[name].widths), "test", {}, 1, Costs(0, 0, 0, 0, 0), Costs(0, 0, 0, 0, 0))


@mixtures
def test_masks_leave_no_trace_and_do_what_pruning_does(name: str) -> None:
    model, inputs = model_of(name), ZOO[name].inputs()
    plan = plan_of(name)
    with torch.no_grad():
        whole = model(**inputs).logits
        with masked(model, plan):
            inside = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, whole)
        prune_(model, plan)
        torch.testing.assert_close(model(**inputs).logits, inside, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(inside, whole)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@mixtures
def test_masks_and_cuts_of_offloaded_models_are_those_of_models_in_memory(
    name: str, where: str, tmp_path: Path
) -> None:
    model, expected, inputs, plan = model_of(name), model_of(name), ZOO[name].inputs(), plan_of(name)
    offload_(model, where, tmp_path)
    hooks = [module._hf_hook for module in model.modules() if has_offloaded_params(module)]
    lent = [hook.weights_map for hook in hooks]
    with torch.no_grad():
        with masked(model, plan), masked(expected, plan):
            assert torch.equal(model(**inputs).logits, expected(**inputs).logits)
        assert all(hook.weights_map is own for hook, own in zip(hooks, lent, strict=True))
        assert torch.equal(model(**inputs).logits, expected(**inputs).logits)
        assert torch.equal(prune_(model, plan)(**inputs).logits, prune_(expected, plan)(**inputs).logits)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


@mixtures
def test_multiply_accumulates_are_those_that_run(name: str) -> None:
    model, inputs = model_of(name), ZOO[name].inputs()
    tokens = inputs["input_ids"].numel()

    def run() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs)
        return counter.get_total_flops() // 2

    before, mixture = run(), mixtures_of(model)[0]
    mixture.keep_(range(WIDTH - 3))
    assert before - run() == 3 * tokens * mixture.macs_per_neuron


@mixtures
def test_wanda_is_the_mean_over_experts_of_what_reaches_the_output(name: str) -> None:
    model, batches = model_of(name), batches_of(name)
    found = score(Writer(model), ScoringData(batches, batches), "wanda")[0].values["decoder"]
    squares = torch.zeros(len(found), EXPERTS, WIDTH, dtype=torch.float64)
    normalised = name == "mixtral" or model.config.norm_topk_prob
    for batch in batches:
        for layer, read in enumerate(what_mixtures_read(model, batch.inputs)):
            mixture = mixtures_of(model)[layer]
            for token in read[batch.mask]:
                for expert, weight in routed(mixture, token, normalised).items():
                    gate, up, _ = weights_of(mixture, expert)
                    squares[layer, expert] += (weight * silu(gate @ token) * (up @ token)).double().square()
    for layer, mixture in enumerate(mixtures_of(model)):
        reach = torch.stack([weights_of(mixture, expert)[2].double().abs().sum(dim=0) for expert in range(EXPERTS)])
        expected = (squares[layer].sqrt() * reach).mean(dim=0)
        np.testing.assert_allclose(found[layer], expected.numpy(), rtol=1e-4)


@mixtures
def test_effects_are_the_derivative_by_a_mask_over_columns_of_every_expert(name: str) -> None:
    """Which is ``sum_i W[i, j] dq/dW[i, j]``, here from the gradients of parameters, one example at a time."""
    model, batch = model_of(name), batches_of(name)[0]
    found = score(Writer(model), ScoringData([batch], [batch]), "taylor")[0].values["decoder"]
    downs = [[down.weight for down in mixture.downs] for mixture in mixtures_of(model)]
    expected = torch.zeros(len(downs), WIDTH)
    for example in range(len(batch)):
        logits = model(**{key: value[example : example + 1] for key, value in batch.inputs.items()}).logits[0]
        loss = cross_entropy(logits, batch.targets[example], reduction="sum", ignore_index=NO_TARGET)
        kept = [parameter for mixture in mixtures_of(model) for parameter in mixture.down.weights]
        gradients = dict(zip(map(id, kept), torch.autograd.grad(loss, kept, allow_unused=True), strict=True))
        for layer, mixture in enumerate(mixtures_of(model)):
            grads = [gradients[id(parameter)] for parameter in mixture.down.weights]
            per_expert = list(grads[0]) if len(grads) == 1 else grads
            for down, grad in zip(downs[layer], per_expert, strict=True):
                if grad is not None:  # an expert nobody asked
                    expected[layer] += (down.detach() * grad).sum(dim=0).abs() / EXPERTS / len(batch)
    for layer, values in enumerate(found):
        np.testing.assert_allclose(values, expected[layer].numpy(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("criterion", ["skill", "fluctuation", "gauss_newton", "magnitude", "random"])
def test_every_neuron_of_a_plan_has_one_score(criterion: str) -> None:
    model, batches = model_of("qwen2_moe"), batches_of("qwen2_moe")
    scores = score(Writer(model), ScoringData(batches, batches), criterion)[0]
    assert scores.widths == dict(ZOO["qwen2_moe"].widths)
    assert all(np.isfinite(layer).all() for layers in scores.values.values() for layer in layers)


def test_skill_puts_a_neuron_last_that_all_experts_need() -> None:
    model, batches = model_of("mixtral"), batches_of("mixtral")
    with torch.no_grad():
        for down in mixtures_of(model)[1].downs:
            down.weight[:, 11] *= 50
    assert int(score(Writer(model), ScoringData(batches, batches), "skill")[0].values["decoder"][1].argmax()) == 11


def test_layers_without_experts_beside_layers_with_them_are_refused() -> None:
    specimen = replace(ZOO["qwen3_moe"], sizes={**ZOO["qwen3_moe"].sizes, "mlp_only_layers": [1]})
    with pytest.raises(UnsupportedArchitecture, match=r"qwen3_moe.*no module 'mlp\.gate' below Qwen3MoeDecoderLayer"):
        find_ffns(specimen.model())

"""The repair of FFNs that layers share and of mixtures of experts, against weighted least squares solved anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_mixtures import EXPERTS, WIDTH, model_of, offload_, weights_of
from torch import Tensor
from torch.nn.functional import silu
from transformers import PreTrainedModel
from zoo import ZOO

from skillprune.data import NO_TARGET, Batch
from skillprune.errors import UnsupportedArchitecture
from skillprune.families import find_ffns
from skillprune.planning import Costs, PruningPlan
from skillprune.repair import METHODS, Statistics, choose_and_repair_, prune_and_repair_
from skillprune.repair.moments import Moments
from skillprune.repair.rewriting import repair_layer_
from skillprune.surgery import prune_

KEPT = tuple(range(0, WIDTH, 2))
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")


def batches_of(name: str, count: int = 24) -> list[Batch]:
    found = []
    for seed in range(count):
        inputs, indices = ZOO[name].inputs(seed), torch.arange(3) + 3 * seed
        mask = inputs["attention_mask"].bool()
        targets = torch.where(mask, inputs["input_ids"], NO_TARGET) if ZOO[name].writes else None
        found.append(Batch(inputs, indices % 2, mask & False, indices, targets=targets))
    return found


def plan_of(name: str, layers: tuple[int, ...] = (0, 1, 2)) -> PruningPlan:
    widths = {stack: widths[:1] if ZOO[name].shared else widths for stack, widths in ZOO[name].widths.items()}
    keep = {
        stack: tuple(tuple(range(0, width, 2) if layer in layers else range(width)) for layer, width in enumerate(each))
        for stack, each in widths.items()
    }
    return PruningPlan(keep, widths, "test", {}, 1, Costs(0, 0, 0, 0, 0), Costs(0, 0, 0, 0, 0))


def read_by(model: PreTrainedModel, path: str, batch: Batch) -> list[Tensor]:
    """What entered a module, call by call."""
    found: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: found.append(args[0].clone()))
    with torch.no_grad():
        model(**batch.inputs)
    handle.remove()
    return found


def fitting(batch: Batch) -> Tensor:
    """True at the tokens that shape the fit: real ones, of nine examples out of ten, ``(batch, sequence)``."""
    return batch.mask & (batch.indices % 10 != 9).unsqueeze(1)


def best_columns(activations: Tensor, target: Tensor, weights: Tensor, *, intercept: bool) -> np.ndarray:
    rows = torch.cat([activations, torch.ones(len(activations), 1)], dim=1) if intercept else activations
    scale = weights.sqrt().unsqueeze(1)
    return np.linalg.lstsq((rows * scale).double().numpy(), (target * scale).double().numpy(), rcond=None)[0].T


def test_a_shared_ffn_is_fitted_to_what_it_wrote_in_every_layer() -> None:
    dense, model = ZOO["albert"].model(), ZOO["albert"].model()
    path = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    down = dense.get_submodule(f"{path}.ffn_output")
    activations, targets, weights = [], [], []
    for batch in batches_of("albert"):
        read = read_by(dense, f"{path}.ffn", batch)
        fired = read_by(dense, f"{path}.ffn_output", batch)
        assert len(read) == len(fired) == 3
        for stream, fires in zip(read, fired, strict=True):
            with torch.no_grad():
                written = down(fires)[fitting(batch)]
            activations.append(fires[fitting(batch)][:, KEPT])
            targets.append(written)
            weights.append(1 / (stream[fitting(batch)] + written).var(dim=1, correction=0))
    expected = best_columns(*map(torch.cat, (activations, targets, weights)), intercept=True)
    (error,) = prune_and_repair_(model, plan_of("albert"), batches_of("albert"), ridge=1e-10)
    repaired = model.get_submodule(f"{path}.ffn_output")
    np.testing.assert_allclose(repaired.weight.detach().numpy(), expected[:, :-1], rtol=2e-2, atol=2e-3)
    np.testing.assert_allclose(repaired.bias.detach().numpy(), expected[:, -1], rtol=2e-2, atol=2e-3)
    assert error.after < error.before
    assert model.config.intermediate_size == len(KEPT)


@pytest.mark.parametrize("name", MIXTURES)
def test_every_expert_is_fitted_to_what_it_gave_to_the_tokens_that_came_to_it(name: str) -> None:
    """In the second layer, where the first was not cut."""
    dense, model, plan = model_of(name), model_of(name), plan_of(name, layers=(1,))
    errors = prune_and_repair_(model, plan, batches_of(name), ridge=1e-10)
    assert {(error.stack, error.layer) for error in errors} == {(stack, 1) for stack in plan.keep}
    assert all(error.after < error.before for error in errors)
    before, after = (next(ffn for ffn in find_ffns(each) if ffn.site == ("decoder", 1)) for each in (dense, model))
    block = "model.layers.1"
    rows: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(EXPERTS)]
    for batch in batches_of(name):
        (stream,), (read,) = (
            read_by(dense, f"{block}.{path}", batch)
            for path in ("post_attention_layernorm", before.stack.routing.module)
        )
        kept = fitting(batch)
        routing = before.routing(read[kept]).detach()
        given = torch.zeros_like(stream[kept])
        parts = []
        for expert in range(EXPERTS):
            gate, up, down = weights_of(before, expert)
            fired = routing[:, expert : expert + 1] * silu(read[kept] @ gate.T) * (read[kept] @ up.T)
            parts.append((fired, fired @ down.T, routing[:, expert] > 0))
            given = given + fired @ down.T
        weights = 1 / (stream[kept] + given).var(dim=1, correction=0)
        for expert, (fired, written, came) in enumerate(parts):
            rows[expert].append((fired[came][:, KEPT], written[came], weights[came]))
    for expert in range(EXPERTS):
        expected = best_columns(*map(torch.cat, zip(*rows[expert], strict=True)), intercept=False)
        found = weights_of(after, expert)[2].numpy()
        target, fired = torch.cat([row[1] for row in rows[expert]]), torch.cat([row[0] for row in rows[expert]])
        fired = fired.numpy()
        np.testing.assert_allclose(fired @ found.T, fired @ expected.T, atol=2e-2 * float(target.abs().max()))


@pytest.mark.parametrize("name", ["albert", *MIXTURES])
def test_without_a_fit_the_repair_is_the_cut_alone(name: str) -> None:
    repaired, cut, plan = model_of(name), model_of(name), plan_of(name)
    prune_and_repair_(repaired, plan, batches_of(name, 4), method="zero")
    prune_(cut, plan)
    for (key, value), (_, expected) in zip(repaired.named_parameters(), cut.named_parameters(), strict=True):
        assert torch.equal(value, expected), key
    assert repaired.config.to_dict() == cut.config.to_dict()


@pytest.mark.parametrize("name", ["albert", *MIXTURES])
def test_the_repaired_model_is_nearer_to_the_dense_one(name: str) -> None:
    dense, repaired, cut, plan = model_of(name), model_of(name), model_of(name), plan_of(name)
    prune_and_repair_(repaired, plan, batches_of(name))
    prune_(cut, plan)
    near = far = 0.0
    for seed in range(100, 130):
        inputs = ZOO[name].inputs(seed)
        mask = inputs["attention_mask"].bool() if ZOO[name].writes else slice(None)
        with torch.no_grad():
            missed = [(model(**inputs).logits - dense(**inputs).logits)[mask].norm() for model in (repaired, cut)]
        near, far = near + float(missed[0]), far + float(missed[1])
    assert near < 0.92 * far


def test_an_expert_that_no_token_came_to_is_only_cut() -> None:
    mixture = find_ffns(model_of("mixtral"))[0]
    expected = [weights_of(mixture, expert)[2][:, KEPT].clone() for expert in range(EXPERTS)]
    nothing = [
        Statistics(*(Moments.zeros(len(KEPT), mixture.hidden, torch.device("cpu")) for _ in range(2)))
        for _ in range(EXPERTS)
    ]
    tokens = torch.randn(200, len(KEPT)), torch.randn(200, mixture.hidden), torch.ones(200)
    nothing[1].fit.add(*tokens)
    error = repair_layer_(mixture, nothing, KEPT, KEPT, METHODS["least_squares"], None)
    unchanged = [torch.equal(weights_of(mixture, expert)[2], expected[expert]) for expert in range(EXPERTS)]
    assert unchanged == [True, False, True, True]
    assert 0 < error.after < error.before


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("name", ["albert", *MIXTURES])
def test_offloaded_models_are_repaired_as_models_in_memory_are(name: str, where: str, tmp_path: Path) -> None:
    model, expected, plan = model_of(name), model_of(name), plan_of(name)
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    given = model.state_dict()
    offload_(model, where, tmp_path)
    errors = prune_and_repair_(model, plan, batches_of(name))
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    assert [str(error) for error in errors] == list(map(str, prune_and_repair_(expected, plan, batches_of(name))))
    assert {key: value.shape for key, value in model.named_parameters()} == {
        key: value.shape for key, value in expected.named_parameters()
    }
    for ffn, wanted in zip(find_ffns(model), find_ffns(expected), strict=True):
        for found, own in zip((*ffn.into, ffn.down), (*wanted.into, wanted.down), strict=True):
            torch.testing.assert_close(found.lent_weight(), own.lent_weight())
    with torch.no_grad():
        inputs = ZOO[name].inputs(99)
        torch.testing.assert_close(model(**inputs).logits, expected(**inputs).logits, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, kept[key]) for key, value in given.items())  # what was lent is whole


def test_offloaded_models_are_not_repaired_block_by_block() -> None:
    model, plan = model_of("llama"), plan_of("llama")
    offload_(model, "cpu")
    with pytest.raises(UnsupportedArchitecture, match="outside the devices that compute"):
        prune_and_repair_(model, plan, batches_of("llama", 4))
    with pytest.raises(UnsupportedArchitecture, match="outside the devices that compute"):
        choose_and_repair_(model, plan.width_after, lambda ffn, _: range(4), batches_of("llama", 4))
    assert {ffn.width for ffn in find_ffns(model)} == {WIDTH}


@pytest.mark.parametrize("name", ["albert", "mixtral"])
def test_choosing_again_block_by_block_is_refused(name: str) -> None:
    model = model_of(name)
    widths = plan_of(name).width_after
    with pytest.raises(UnsupportedArchitecture, match="plan.selection"):
        choose_and_repair_(model, widths, lambda ffn, _: range(4), batches_of(name, 4))
    assert {ffn.width for ffn in find_ffns(model)} == {WIDTH}

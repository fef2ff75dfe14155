"""The family table: every row finds the right modules, counts what they hold, and refuses what it does not know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import TINY, tiny_batches, tiny_bert
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm
from transformers import BertForMaskedLM, ElectraConfig, ElectraForSequenceClassification, PreTrainedModel

from skillprune.errors import UnsupportedArchitecture
from skillprune.families import FAMILIES, base_model, by_stack, find_ffns

PATHS = {
    "bert": ("bert.encoder.layer", "intermediate.dense", "output.dense", "output.LayerNorm"),
    "roberta": ("roberta.encoder.layer", "intermediate.dense", "output.dense", "output.LayerNorm"),
    "distilbert": ("distilbert.transformer.layer", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
}
"""Where the blocks are in the classifier and, in a block: up, down, and the norm of the block's output."""

families = pytest.mark.parametrize("family", sorted(TINY))


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def inputs_and_outputs(model: PreTrainedModel, modules: list[nn.Module]) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """What went in and came out of each module when the model read a batch without padding."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        seen[module] = (args[0], output if isinstance(output, Tensor) else output[0])

    handles = [module.register_forward_hook(hook) for module in modules]
    with torch.no_grad():
        model(**tiny_batches(lengths=(5, 5))[0].inputs)
    for handle in handles:
        handle.remove()
    return seen


def test_every_row_has_a_tiny_model_and_every_tiny_model_a_row() -> None:
    assert set(FAMILIES) == set(TINY) == set(PATHS)


@families
def test_the_modules_found_are_the_ones_of_the_architecture(family: str) -> None:
    model = TINY[family](layers=4)
    blocks, up, down, _ = PATHS[family]
    modules = dict(model.named_modules())
    ffns = find_ffns(model)
    assert [ffn.site for ffn in ffns] == [("encoder", layer) for layer in range(4)]
    for ffn in ffns:
        assert ffn.block is modules[f"{blocks}.{ffn.layer}"]
        assert ffn.up is modules[f"{blocks}.{ffn.layer}.{up}"]
        assert ffn.down is modules[f"{blocks}.{ffn.layer}.{down}"]
        assert base_model(model).get_submodule(ffn.path) is ffn.block


@families
def test_a_base_model_and_another_head_hold_the_same_ffns(family: str) -> None:
    model = TINY[family]()
    ours = [(ffn.site, ffn.path, ffn.up, ffn.down) for ffn in find_ffns(model)]
    assert base_model(model) is model.base_model
    assert base_model(model.base_model) is model.base_model
    assert [(ffn.site, ffn.path, ffn.up, ffn.down) for ffn in find_ffns(model.base_model)] == ours


def test_a_head_of_another_kind_changes_nothing() -> None:
    config = tiny_bert().config
    found = [(ffn.site, ffn.path, ffn.width) for ffn in find_ffns(BertForMaskedLM(config))]
    assert found == [(ffn.site, ffn.path, ffn.width) for ffn in find_ffns(tiny_bert())]


@families
def test_row_j_of_up_and_the_input_j_of_down_are_one_neuron(family: str) -> None:
    """Silencing row 7 of up changes coordinate 7 of the input of down, to act(0) = 0, and no other."""
    model = TINY[family]()
    ffn = find_ffns(model)[0]
    whole = inputs_and_outputs(model, [ffn.down])[ffn.down][0]
    with torch.no_grad():
        ffn.up.weight[7] = 0
        ffn.up.bias[7] = 0
    silenced = inputs_and_outputs(model, [ffn.down])[ffn.down][0]
    assert bool((whole[..., 7] != 0).all())
    assert bool((silenced[..., 7] == 0).all())
    others = [neuron for neuron in range(ffn.width) if neuron != 7]
    assert torch.allclose(silenced[..., others], whole[..., others])


@families
def test_down_reads_the_activation_and_the_residual_row_names_what_its_output_is_added_to(family: str) -> None:
    model = TINY[family]()
    norm_path = PATHS[family][3]
    for ffn in find_ffns(model):
        seen = inputs_and_outputs(model, [ffn.up, ffn.down, ffn.residual, ffn.block])
        assert torch.allclose(seen[ffn.down][0], gelu(seen[ffn.up][1]), atol=1e-6)
        norm = ffn.block.get_submodule(norm_path)
        assert isinstance(norm, nn.LayerNorm)
        added = seen[ffn.down][1] + seen[ffn.residual][0]
        whole = layer_norm(added, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        assert torch.allclose(seen[ffn.block][1], whole, atol=1e-5)


@families
def test_width_is_read_from_the_weights_and_the_config_attribute_is_the_right_one(family: str) -> None:
    model = TINY[family](width=24)
    stack = find_ffns(model)[0].stack
    assert getattr(model.config, stack.width_attribute) == 24
    setattr(model.config, stack.width_attribute, 999)
    assert [ffn.width for ffn in find_ffns(model)] == [24, 24, 24]


def test_layers_of_one_model_may_differ_in_width() -> None:
    model = tiny_bert(width=24)
    narrow = model.bert.encoder.layer[1]
    narrow.intermediate.dense, narrow.output.dense = nn.Linear(16, 5), nn.Linear(5, 16)
    assert [ffn.width for ffn in find_ffns(model)] == [24, 5, 24]


@families
@pytest.mark.parametrize("hidden", [8, 16])
def test_parameters_per_neuron_are_what_one_more_neuron_adds(family: str, hidden: int) -> None:
    narrow, wide = (TINY[family](hidden=hidden, width=width) for width in (20, 21))
    added = parameters_of(wide) - parameters_of(narrow)
    assert sum(ffn.parameters_per_neuron for ffn in find_ffns(narrow)) == added
    for ffn in find_ffns(narrow):
        assert ffn.parameters == parameters_of(ffn.up) + parameters_of(ffn.down)


@pytest.mark.parametrize("up_bias", [True, False])
@pytest.mark.parametrize("down_bias", [True, False])
def test_a_missing_bias_is_not_counted(up_bias: bool, down_bias: bool) -> None:
    model = tiny_bert(layers=1, width=20)
    layer = model.bert.encoder.layer[0]
    layer.intermediate.dense, layer.output.dense = nn.Linear(16, 20, bias=up_bias), nn.Linear(20, 16, bias=down_bias)
    (ffn,) = find_ffns(model)
    assert ffn.parameters == parameters_of(ffn.up) + parameters_of(ffn.down)
    assert ffn.parameters_per_neuron == 16 + 16 + up_bias


@families
def test_macs_per_neuron_are_the_products_of_its_row_and_its_column(family: str) -> None:
    for ffn in find_ffns(TINY[family](hidden=8, width=20)):
        into = sum(1 for _ in ffn.up.weight[3])
        out = sum(1 for row in ffn.down.weight for column, _ in enumerate(row) if column == 3)
        assert ffn.macs_per_neuron == into + out == 16


def test_by_stack_groups_in_order_even_when_stacks_alternate() -> None:
    first, second, third = find_ffns(tiny_bert())
    decoder = replace(first.stack, name="decoder")
    mixed = [first, replace(first, stack=decoder), second, replace(second, stack=decoder), third]
    grouped = by_stack(mixed)
    assert list(grouped) == ["encoder", "decoder"]
    assert [ffn.layer for ffn in grouped["encoder"]] == [0, 1, 2]
    assert [ffn.layer for ffn in grouped["decoder"]] == [0, 1]
    assert by_stack([]) == {}


def test_an_unknown_type_is_told_the_file_and_the_known_rows() -> None:
    config = ElectraConfig(
        vocab_size=30,
        embedding_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    with pytest.raises(UnsupportedArchitecture) as refused:
        find_ffns(ElectraForSequenceClassification(config))
    message = str(refused.value)
    assert "'electra'" in message
    assert "skillprune/families.py" in message
    assert all(family in message for family in FAMILIES)


def test_a_missing_path_is_named_with_the_file_to_mend() -> None:
    model = tiny_bert()
    del model.bert.encoder.layer[2].intermediate.dense
    with pytest.raises(UnsupportedArchitecture, match=r"'intermediate\.dense'.*BertLayer.*skillprune/families\.py"):
        find_ffns(model)


def test_blocks_that_are_no_list_are_refused() -> None:
    model = tiny_bert()
    model.bert.encoder.layer = nn.Sequential(*model.bert.encoder.layer)
    with pytest.raises(UnsupportedArchitecture, match=r"bert.*'encoder\.layer' is not a list"):
        find_ffns(model)


class LowRankLinear(nn.Linear):
    """What adapters do: still a Linear by type, but its weight is not the whole story."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input.mean()


@pytest.mark.parametrize("replaced", ["up", "down"])
def test_a_layer_that_only_looks_linear_is_refused(replaced: str) -> None:
    model = tiny_bert()
    layer = model.bert.encoder.layer[1]
    if replaced == "up":
        layer.intermediate.dense = LowRankLinear(16, 32)
    else:
        layer.output.dense = LowRankLinear(32, 16)
    with pytest.raises(UnsupportedArchitecture, match="LowRankLinear, not a plain"):
        find_ffns(model)

"""The family table: every row finds the right modules, counts what they hold, and refuses what it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from tiny import TINY_ALL, TINY_MASKED_LM, TINY_WIDTHS, batches_for, tiny_bart, tiny_bert, tiny_llama
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, silu
from transformers import (
    BartForCausalLM,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BartModel,
    BertForTokenClassification,
    CTRLConfig,
    CTRLForSequenceClassification,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    PreTrainedModel,
)

from skillprune.errors import UnsupportedArchitecture
from skillprune.families import FAMILIES, FFN, base_model, by_stack, find_ffns


class Paths(NamedTuple):
    """Where the blocks of a stack are in the whole model and, in a block, its parts; post-norm blocks end in a norm."""

    blocks: str
    up: str
    down: str
    norm: str | None = None
    gate: str | None = None


PATHS = {
    "bert": {"encoder": Paths("bert.encoder.layer", "intermediate.dense", "output.dense", "output.LayerNorm")},
    "roberta": {"encoder": Paths("roberta.encoder.layer", "intermediate.dense", "output.dense", "output.LayerNorm")},
    "distilbert": {"encoder": Paths("distilbert.transformer.layer", "ffn.lin1", "ffn.lin2", "output_layer_norm")},
    "llama": {"decoder": Paths("model.layers", "mlp.up_proj", "mlp.down_proj", gate="mlp.gate_proj")},
    "bart": {
        "encoder": Paths("model.encoder.layers", "fc1", "fc2", "final_layer_norm"),
        "decoder": Paths("model.decoder.layers", "fc1", "fc2", "final_layer_norm"),
    },
}

families = pytest.mark.parametrize("family", sorted(TINY_ALL))


def places(ffns: Sequence[FFN]) -> list[tuple[object, ...]]:
    return [(ffn.site, ffn.path, *(matrix.module for matrix in (*ffn.into, ffn.down))) for ffn in ffns]


def of_width(family: str, width: int, **sizes: int) -> PreTrainedModel:
    """A tiny model whose layers all have this width."""
    return TINY_ALL[family](width=width, **sizes, **({"decoder_width": width} if family == "bart" else {}))


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def counted(ffn: FFN) -> int:
    return sum(parameter.numel() for parameter in ffn.parameters)


def inputs_and_outputs(model: PreTrainedModel, modules: list[nn.Module]) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """What went in and came out of each module when the model read a batch without padding."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        seen[module] = (args[0], output if isinstance(output, Tensor) else output[0])

    handles = [module.register_forward_hook(hook) for module in modules]
    with torch.no_grad():
        model(**batches_for(model.config.model_type, lengths=(5, 5))[0].inputs)
    for handle in handles:
        handle.remove()
    return seen


def test_every_row_has_a_tiny_model_and_every_tiny_model_a_row() -> None:
    assert set(FAMILIES) >= set(TINY_ALL) == set(PATHS)


@families
def test_the_modules_found_are_the_ones_of_the_architecture(family: str) -> None:
    model = TINY_ALL[family](layers=4)
    modules = dict(model.named_modules())
    ffns = find_ffns(model)
    layers = {"llama": [("decoder", 4)], "bart": [("encoder", 4), ("decoder", 2)]}.get(family, [("encoder", 4)])
    assert [ffn.site for ffn in ffns] == [(stack, layer) for stack, count in layers for layer in range(count)]
    for ffn in ffns:
        path = PATHS[family][ffn.stack.name]
        assert ffn.block is modules[f"{path.blocks}.{ffn.layer}"]
        assert ffn.up.module is modules[f"{path.blocks}.{ffn.layer}.{path.up}"]
        assert ffn.down.module is modules[f"{path.blocks}.{ffn.layer}.{path.down}"]
        assert (ffn.gate and ffn.gate.module) is (
            modules[f"{path.blocks}.{ffn.layer}.{path.gate}"] if path.gate else None
        )
        assert ffn.into == ((ffn.up, ffn.gate) if path.gate else (ffn.up,))
        assert base_model(model).get_submodule(ffn.path) is ffn.block


@families
def test_only_a_decoder_beside_an_encoder_runs_over_what_is_written(family: str) -> None:
    """Its activations have the length of the text written, the others that of the text read."""
    model, batch = TINY_ALL[family](), batches_for(family)[0]
    lengths: dict[str, int] = {}
    for ffn in find_ffns(model):

        def see(_: nn.Module, args: tuple[Tensor, ...], side: str = ffn.stack.side) -> None:
            lengths[side] = args[0].shape[1]

        ffn.down.module.register_forward_pre_hook(see)
    model(**batch.inputs)
    read = batch.inputs["input_ids"].shape[1]
    assert lengths == (
        {"input": read, "output": batch.inputs["decoder_input_ids"].shape[1]} if family == "bart" else {"input": read}
    )
    assert all(batch.mask_of(side).shape[1] == length for side, length in lengths.items())


@families
def test_a_base_model_and_another_head_hold_the_same_ffns(family: str) -> None:
    model = TINY_ALL[family]()
    ours = places(find_ffns(model))
    assert base_model(model) is model.base_model
    assert base_model(model.base_model) is model.base_model
    assert places(find_ffns(model.base_model)) == ours


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("bert", BertForTokenClassification),
        *(("llama", head) for head in (LlamaForSequenceClassification, LlamaForTokenClassification, LlamaModel)),
        ("llama", LlamaForQuestionAnswering),
        *(("bart", head) for head in (BartForSequenceClassification, BartForQuestionAnswering, BartModel)),
        *((family, build) for family, build in TINY_MASKED_LM.items()),
    ],
)
def test_a_head_of_another_kind_changes_nothing(family: str, head: Any) -> None:
    ours = TINY_ALL[family]()
    model = head() if family in TINY_MASKED_LM and head is TINY_MASKED_LM[family] else head(ours.config)
    assert type(model) is not type(ours)
    names = [{module: name for name, module in base_model(each).named_modules()} for each in (ours, model)]
    found, expected = (
        [
            (ffn.site, ffn.path, ffn.width, names[which][ffn.up.module], names[which][ffn.down.module])
            for ffn in find_ffns(each)
        ]
        for which, each in enumerate((ours, model))
    )
    assert found == expected


def test_half_a_bart_is_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"bart.*'encoder\.layers'.*skillprune/families/rows\.py"):
        find_ffns(BartForCausalLM(tiny_bart().config))


@pytest.mark.parametrize(
    ("family", "part"), [*((family, "up") for family in sorted(TINY_ALL)), ("llama", "gate"), ("bart decoder", "up")]
)
def test_row_j_of_up_and_gate_and_the_input_j_of_down_are_one_neuron(family: str, part: str) -> None:
    """Silencing row 7 of up changes coordinate 7 of the input of down, to act(0) = 0, and no other."""
    model = TINY_ALL[family.split()[0]]()
    ffn = find_ffns(model)[3 if "decoder" in family else 0]
    whole = inputs_and_outputs(model, [ffn.down.module])[ffn.down.module][0]
    with torch.no_grad():
        linear = getattr(ffn, part)
        linear.weight[7] = 0
        if linear.bias is not None:
            linear.bias[7] = 0
    silenced = inputs_and_outputs(model, [ffn.down.module])[ffn.down.module][0]
    assert bool((whole[..., 7] != 0).all())
    assert bool((silenced[..., 7] == 0).all())
    others = [neuron for neuron in range(ffn.width) if neuron != 7]
    assert torch.allclose(silenced[..., others], whole[..., others])


@families
def test_down_reads_the_activation_and_the_residual_row_names_what_its_output_is_added_to(family: str) -> None:
    model = TINY_ALL[family]()
    for ffn in find_ffns(model):
        path = PATHS[family][ffn.stack.name]
        up_and_down = (matrix.module for matrix in (*ffn.into, ffn.down))
        seen = inputs_and_outputs(model, [*up_and_down, ffn.residual, ffn.block])
        up = seen[ffn.up.module][1]
        activation = gelu(up) if path.gate is None else up * silu(seen[ffn.block.get_submodule(path.gate)][1])
        assert torch.allclose(seen[ffn.down.module][0], activation, atol=1e-6)
        assert torch.allclose(ffn.fire(seen[ffn.up.module][0]), activation, atol=1e-6)
        added = seen[ffn.down.module][1] + seen[ffn.residual][0]
        if path.norm is not None:
            norm = ffn.block.get_submodule(path.norm)
            assert isinstance(norm, nn.LayerNorm)
            added = layer_norm(added, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        assert torch.allclose(seen[ffn.block][1], added, atol=1e-5)


@families
def test_attention_reads_through_what_runs_before_its_output_projection(family: str) -> None:
    model = TINY_ALL[family]()
    for ffn in find_ffns(model):
        linears, ran = [module for module in ffn.block.modules() if isinstance(module, nn.Linear)], []
        handles = [linear.register_forward_hook(lambda module, *_, ran=ran: ran.append(module)) for linear in linears]
        seen = inputs_and_outputs(model, linears)
        for handle in handles:
            handle.remove()
        assert set(ran[: ran.index(ffn.attention.module)]) == {matrix.module for matrix in ffn.attending}
        entering = {seen[matrix.module][0] for matrix in ffn.attending}
        assert all(torch.equal(each, seen[ffn.attending[0].module][0]) for each in entering)


@families
def test_width_is_read_from_the_weights_and_the_config_attribute_is_the_right_one(family: str) -> None:
    model = TINY_ALL[family](width=40)
    expected = {stack: tuple(40 if width == 32 else width for width in w) for stack, w in TINY_WIDTHS[family].items()}
    for stack, ffns in by_stack(find_ffns(model)).items():
        assert getattr(model.config, ffns[0].stack.width_attribute) == expected[stack][0]
        setattr(model.config, ffns[0].stack.width_attribute, 999)
    assert {stack: tuple(f.width for f in ffns) for stack, ffns in by_stack(find_ffns(model)).items()} == expected


def test_layers_of_one_model_may_differ_in_width() -> None:
    model = tiny_bert(width=24)
    narrow = model.bert.encoder.layer[1]
    narrow.intermediate.dense, narrow.output.dense = nn.Linear(16, 5), nn.Linear(5, 16)
    assert [ffn.width for ffn in find_ffns(model)] == [24, 5, 24]


@families
@pytest.mark.parametrize("hidden", [8, 16])
def test_parameters_per_neuron_are_what_one_more_neuron_adds(family: str, hidden: int) -> None:
    narrow, wide = (of_width(family, width, hidden=hidden) for width in (20, 21))
    added = parameters_of(wide) - parameters_of(narrow)
    assert sum(ffn.parameters_per_neuron for ffn in find_ffns(narrow)) == added
    for ffn in find_ffns(narrow):
        assert counted(ffn) == sum(parameters_of(matrix.module) for matrix in (*ffn.into, ffn.down))


@pytest.mark.parametrize("up_bias", [True, False])
@pytest.mark.parametrize("down_bias", [True, False])
def test_a_missing_bias_is_not_counted(up_bias: bool, down_bias: bool) -> None:
    model = tiny_bert(layers=1, width=20)
    layer = model.bert.encoder.layer[0]
    layer.intermediate.dense, layer.output.dense = nn.Linear(16, 20, bias=up_bias), nn.Linear(20, 16, bias=down_bias)
    (ffn,) = find_ffns(model)
    assert counted(ffn) == parameters_of(ffn.up.module) + parameters_of(ffn.down.module)
    assert ffn.parameters_per_neuron == 16 + 16 + up_bias


def test_the_biases_of_a_gated_ffn_are_counted_and_cut() -> None:
    config = tiny_llama(width=20).config
    config.mlp_bias = True
    model = LlamaForCausalLM(config)
    ffn = find_ffns(model)[0]
    with torch.no_grad():
        for linear in ffn.into:
            linear.bias.copy_(torch.randn(20))
    biases = [linear.bias[[2, 5]].clone() for linear in ffn.into]
    before = parameters_of(model)
    assert counted(ffn) == parameters_of(ffn.block.mlp)
    per_neuron = ffn.parameters_per_neuron
    ffn.keep_([2, 5])
    assert before - parameters_of(model) == 18 * per_neuron
    assert all(torch.equal(linear.bias, bias) for linear, bias in zip(ffn.into, biases, strict=True))
    assert (ffn.up.out_features, ffn.gate.out_features, ffn.down.in_features) == (2, 2, 2)
    model(**batches_for("llama")[0].inputs)


@families
def test_macs_per_neuron_are_the_products_of_its_row_and_its_column(family: str) -> None:
    for ffn in find_ffns(of_width(family, 20, hidden=8)):
        into = sum(1 for linear in ffn.into for _ in linear.weight[3])
        out = sum(1 for row in ffn.down.weight for column, _ in enumerate(row) if column == 3)
        assert ffn.macs_per_neuron == into + out == (24 if family == "llama" else 16)


@families
@pytest.mark.parametrize("where", ["here", "cpu", "disk"])
def test_the_weight_of_down_can_be_read_wherever_accelerate_keeps_it(family: str, where: str, tmp_path: Path) -> None:
    model, kept = TINY_ALL[family](), TINY_ALL[family]()
    if where == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    elif where == "disk":
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    expected = {ffn.site: ffn.down.weight.detach().clone() for ffn in find_ffns(kept)}
    inputs = batches_for(family)[0].inputs
    offloaded = "cpu" if where == "here" else "meta"
    found = {ffn.site: ffn.down_weight() for ffn in find_ffns(model)}
    for ffn in find_ffns(model):
        assert ffn.down.weight.device.type == offloaded
        assert ffn.width == expected[ffn.site].shape[1]
    with torch.no_grad():  # reading moved nothing: the model still computes, and what was read stays what it was
        torch.testing.assert_close(model(**inputs).logits, kept(**inputs).logits)
    for site, weight in found.items():
        assert torch.equal(weight, expected[site])
        assert not weight.requires_grad


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
    config = CTRLConfig(vocab_size=30, n_embd=8, n_layer=1, n_head=2, dff=8)
    with pytest.raises(UnsupportedArchitecture) as refused:
        find_ffns(CTRLForSequenceClassification(config))
    message = str(refused.value)
    assert "'ctrl'" in message
    assert "skillprune/families/rows.py" in message
    assert all(family in message for family in FAMILIES)


def test_a_missing_path_is_named_with_the_file_to_mend() -> None:
    model = tiny_bert()
    del model.bert.encoder.layer[2].intermediate.dense
    with pytest.raises(UnsupportedArchitecture, match=r"'intermediate\.dense'.*BertLayer.*families/rows\.py"):
        find_ffns(model)


def test_blocks_that_are_no_list_are_refused() -> None:
    model = tiny_bert()
    model.bert.encoder.layer = nn.Sequential(*model.bert.encoder.layer)
    with pytest.raises(UnsupportedArchitecture, match=r"bert.*no list of blocks at 'encoder\.layer'"):
        find_ffns(model)


class LowRankLinear(nn.Linear):
    """What adapters do: still a Linear by type, but its weight is not the whole story."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input.mean()


def test_a_gate_that_only_looks_linear_is_refused() -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.gate_proj = LowRankLinear(16, 32, bias=False)
    with pytest.raises(UnsupportedArchitecture, match=r"'mlp\.gate_proj' is a LowRankLinear, not a plain"):
        find_ffns(model)


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

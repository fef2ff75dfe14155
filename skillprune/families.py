"""Where each architecture keeps its FFN neurons, a row per family; the only file that knows transformers' module paths.

What is done with the neurons found here (hooking, scoring, slicing, repairing) is left to the rooms below.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from skillprune.errors import UnsupportedArchitecture

Site = tuple[str, int]
"""Which FFN: the name of its stack and the index of its layer."""


Side = Literal["input", "output"]
"""Which tokens a stack runs over: those the model reads, or those that a decoder beside an encoder writes."""


@dataclass(frozen=True)
class Stack:
    """One pile of transformer blocks; paths are exact and relative to the block (``blocks``: to the base model).

    Attributes:
        name: what plans and checkpoints call the stack.
        blocks: path of the module list.
        up: path of the projection whose row ``j`` belongs to neuron ``j``.
        down: path of the projection whose column ``j`` belongs to neuron ``j``; its input is the neurons' activation.
        activation: path of the function between them: of what up gives, or of what the gate gives.
        width_attribute: config attribute that holds the width when every layer of the stack has the same.
        residual: path of the module whose input is the residual stream that the FFN's output is added to. In
            post-norm blocks that is the up projection itself; in pre-norm blocks it is the norm before the FFN.
        attending: paths of the projections through which that attention reads what the block is given.
        attention: path of the projection whose output is added to the block's input: what attention has to say.
        after: path of the norm that the sum of that stream and the FFN's output goes through before the next block;
            none in pre-norm blocks.
        gate: path of the projection that is activated and multiplies up, row by row; none in a plain FFN.
        side: which tokens the stack runs over.
    """

    name: str
    blocks: str
    up: str
    down: str
    activation: str
    width_attribute: str
    residual: str
    attending: tuple[str, ...]
    attention: str
    after: str | None = None
    gate: str | None = None
    side: Side = "input"


@dataclass(frozen=True)
class FFN:
    """The FFN of one layer of one model, resolved from its row: modules, never sizes written down."""

    stack: Stack
    layer: int
    block: nn.Module
    path: str
    up: nn.Linear
    down: nn.Linear
    activation: nn.Module
    residual: nn.Module
    after: nn.Module
    gate: nn.Linear | None = None

    @property
    def site(self) -> Site:
        """Stack name and layer index."""
        return self.stack.name, self.layer

    @property
    def attending(self) -> tuple[nn.Linear, ...]:
        """The projections through which the block's attention reads its input.

        Raises:
            UnsupportedArchitecture: the block has none there, or they are not plain linear layers.
        """
        return tuple(_linear(self.block, path, type(self.block).__name__) for path in self.stack.attending)

    @property
    def attention(self) -> nn.Linear:
        """The projection that writes what the block's attention found to the residual stream.

        Raises:
            UnsupportedArchitecture: the block has none there, or it is not a plain linear layer.
        """
        return _linear(self.block, self.stack.attention, type(self.block).__name__)

    @property
    def width(self) -> int:
        """Neurons the layer has now, read from the weights."""
        return int(self.down.weight.shape[1])

    @property
    def into(self) -> tuple[nn.Linear, ...]:
        """The projections whose row ``j`` belongs to neuron ``j``: up, and the gate where there is one."""
        return (self.up,) if self.gate is None else (self.up, self.gate)

    def fire(self, read: Tensor) -> Tensor:
        """Activations ``(..., neurons)`` for what the FFN reads, ``(..., hidden)``, as in evaluation mode."""
        up: Tensor = self.up(read)
        fired: Tensor = self.activation(up) if self.gate is None else self.activation(self.gate(read)) * up
        return fired

    @property
    def macs_per_neuron(self) -> int:
        """Multiply-accumulates of matrix products that one neuron costs per token."""
        return sum(int(linear.weight.shape[1]) for linear in self.into) + int(self.down.weight.shape[0])

    @property
    def parameters_per_neuron(self) -> int:
        """Parameters that go when one neuron goes."""
        return self.macs_per_neuron + sum(linear.bias is not None for linear in self.into)

    @property
    def parameters(self) -> int:
        """Parameters of the FFN, the down projection's bias included."""
        shared = 0 if self.down.bias is None else self.down.bias.numel()
        return self.width * self.parameters_per_neuron + shared

    def down_weight(self) -> Tensor:
        """Weight of the down projection, ``(hidden, neurons)``: detached, to be read only.

        Also when accelerate keeps it on the CPU or on disk and lends it to the module for a forward pass; then the
        tensor is on the device the module computes on, and lives as long as the caller holds it.
        """
        with align_module_device(self.down):
            return self.down.weight.detach()


_BERT_ENCODER = Stack(
    name="encoder",
    blocks="encoder.layer",
    up="intermediate.dense",
    down="output.dense",
    activation="intermediate.intermediate_act_fn",
    width_attribute="intermediate_size",
    residual="intermediate.dense",
    attending=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention="attention.output.dense",
    after="output.LayerNorm",
)

_BART_ENCODER = Stack(
    name="encoder",
    blocks="encoder.layers",
    up="fc1",
    down="fc2",
    activation="activation_fn",
    width_attribute="encoder_ffn_dim",
    residual="fc1",
    attending=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention="self_attn.out_proj",
    after="final_layer_norm",
)
_BART_DECODER = replace(
    _BART_ENCODER, name="decoder", blocks="decoder.layers", width_attribute="decoder_ffn_dim", side="output"
)

FAMILIES: dict[str, tuple[Stack, ...]] = {
    "bart": (_BART_ENCODER, _BART_DECODER),
    "bert": (_BERT_ENCODER,),
    "distilbert": (
        Stack(
            name="encoder",
            blocks="transformer.layer",
            up="ffn.lin1",
            down="ffn.lin2",
            activation="ffn.activation",
            width_attribute="hidden_dim",
            residual="ffn.lin1",
            attending=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            attention="attention.out_lin",
            after="output_layer_norm",
        ),
    ),
    "llama": (
        Stack(
            name="decoder",
            blocks="layers",
            up="mlp.up_proj",
            gate="mlp.gate_proj",
            down="mlp.down_proj",
            activation="mlp.act_fn",
            width_attribute="intermediate_size",
            residual="post_attention_layernorm",
            attending=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            attention="self_attn.o_proj",
        ),
    ),
    "roberta": (_BERT_ENCODER,),
}
"""Rows by ``config.model_type``; the stacks of a row in the order they run.

A new plain architecture is one row here and one tiny model in the tests.
"""

_POSITIONS_AFTER_PADDING = {"roberta"}
# Their position ids start behind the padding id, so the table is longer than the inputs may be.


def position_limit(config: PretrainedConfig) -> int | None:
    """The longest input in tokens that the model has positions for; none where its config names no limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= config.pad_token_id + 1
    return positions


def base_model(model: PreTrainedModel) -> nn.Module:
    """The body without its head; the model itself when it has none."""
    body = getattr(model, model.base_model_prefix, model) if model.base_model_prefix else model
    return body if isinstance(body, nn.Module) else model


def find_ffns(model: PreTrainedModel) -> tuple[FFN, ...]:
    """Resolves every FFN of the model, stack by stack, bottom to top.

    Raises:
        UnsupportedArchitecture: the model type has no row, or a path of its row is missing or is not a linear layer.
    """
    model_type = model.config.model_type
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedArchitecture(
            f"model_type {model_type!r} has no row in skillprune/families.py (known: {known}); "
            "add one with the paths of its projections"
        )
    body = base_model(model)
    return tuple(ffn for stack in FAMILIES[model_type] for ffn in _resolve_stack(body, stack, model_type))


def by_stack(ffns: Sequence[FFN]) -> dict[str, tuple[FFN, ...]]:
    """Groups FFNs by stack name, layers in order."""
    grouped: dict[str, tuple[FFN, ...]] = {}
    for ffn in ffns:
        grouped[ffn.stack.name] = (*grouped.get(ffn.stack.name, ()), ffn)
    return grouped


def copy_of(ffn: FFN) -> FFN:
    """The same FFN in a copy of its block, which shares nothing with the model."""
    return _resolve_ffn(deepcopy(ffn.block), ffn.stack, ffn.layer, type(ffn.block).__name__)


def _resolve_stack(body: nn.Module, stack: Stack, model_type: str) -> list[FFN]:
    blocks = _module(body, stack.blocks, model_type)
    if not isinstance(blocks, nn.ModuleList):
        raise UnsupportedArchitecture(f"{model_type}: {stack.blocks!r} is not a list of blocks")
    return [_resolve_ffn(block, stack, layer, model_type) for layer, block in enumerate(blocks)]


def _resolve_ffn(block: nn.Module, stack: Stack, layer: int, model_type: str) -> FFN:
    return FFN(
        stack=stack,
        layer=layer,
        block=block,
        path=f"{stack.blocks}.{layer}",
        up=_linear(block, stack.up, model_type),
        down=_linear(block, stack.down, model_type),
        activation=_module(block, stack.activation, model_type),
        residual=_module(block, stack.residual, model_type),
        after=nn.Identity() if stack.after is None else _module(block, stack.after, model_type),
        gate=None if stack.gate is None else _linear(block, stack.gate, model_type),
    )


def _module(parent: nn.Module, path: str, model_type: str) -> nn.Module:
    try:
        return parent.get_submodule(path)
    except AttributeError as missing:
        raise UnsupportedArchitecture(
            f"{model_type}: this model has no module {path!r} below {type(parent).__name__}; "
            "its row in skillprune/families.py does not fit it"
        ) from missing


def _linear(parent: nn.Module, path: str, model_type: str) -> nn.Linear:
    module = _module(parent, path, model_type)
    if type(module) is not nn.Linear:
        raise UnsupportedArchitecture(
            f"{model_type}: {path!r} is a {type(module).__name__}, not a plain torch.nn.Linear; "
            "quantised or wrapped layers cannot be cut"
        )
    return module

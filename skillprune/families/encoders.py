"""Descriptions of stacks that read: text both ways, images, sound."""

from __future__ import annotations

from dataclasses import replace

from skillprune.families.stack import Stack

BERT = Stack(
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
MPNET = replace(
    BERT, attending=("attention.attn.q", "attention.attn.k", "attention.attn.v"), attention="attention.attn.o"
)
# The projections of its queries and keys also read relative positions, which nothing must be folded into.
_DEBERTA = replace(BERT, attending=())
DEBERTA = replace(_DEBERTA, when={"conv_kernel_size": 0})
PLAIN_DEBERTA = replace(_DEBERTA, when={"conv_kernel_size": None})
# The large ones lay a convolution of the embeddings over what their first block gives.
CONVOLVED_DEBERTA = replace(_DEBERTA, interrupted=True)
DISTILBERT = Stack(
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
)
ALBERT = Stack(
    name="encoder",
    blocks="encoder.albert_layer_groups",
    up="albert_layers.0.ffn",
    down="albert_layers.0.ffn_output",
    activation="albert_layers.0.activation",
    width_attribute="intermediate_size",
    residual="albert_layers.0.ffn",
    attending=(
        "albert_layers.0.attention.query",
        "albert_layers.0.attention.key",
        "albert_layers.0.attention.value",
    ),
    attention="albert_layers.0.attention.dense",
    after="albert_layers.0.full_layer_layer_norm",
    repeats="num_hidden_layers",
    when={"inner_group_num": 1},
)
MODERNBERT = Stack(
    name="encoder",
    blocks="layers",
    up="mlp.Wi",
    down="mlp.Wo",
    activation="mlp.act",
    width_attribute="intermediate_size",
    residual="mlp_norm",
    attending=("attn.Wqkv",),
    attention="attn.Wo",
    fused=True,
)

CLIP = Stack(
    name="vision",
    blocks="vision_model.encoder.layers",
    up="mlp.fc1",
    down="mlp.fc2",
    activation="mlp.activation_fn",
    width_attribute="vision_config.intermediate_size",
    residual="layer_norm2",
    attending=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention="self_attn.out_proj",
)
# Its config says one width for these layers and for an FFN in the pooling head, which is not pruned.
SIGLIP = replace(CLIP, width_attribute=None)
CLIP_TEXT = replace(
    CLIP, name="text", blocks="text_model.encoder.layers", width_attribute="text_config.intermediate_size"
)

VIT = Stack(
    name="encoder",
    blocks="layers",
    up="mlp.fc1",
    down="mlp.fc2",
    activation="mlp.activation_fn",
    width_attribute="intermediate_size",
    residual="layernorm_after",
    attending=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    attention="attention.o_proj",
)
NESTED_VIT = replace(
    VIT,
    blocks="encoder.layer",
    up="intermediate.dense",
    down="output.dense",
    activation="intermediate.intermediate_act_fn",
    attending=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    attention="attention.output.dense",
)
BEIT = replace(VIT, scale="lambda_2", attention_scale="lambda_1")
NESTED_BEIT = replace(NESTED_VIT, scale="lambda_2", attention_scale="lambda_1")
DINOV2 = replace(
    VIT,
    blocks="encoder.layer",
    width_attribute=None,
    residual="norm2",
    scale="layer_scale2",
    attention_scale="layer_scale1",
    when={"use_swiglu_ffn": False},
)
NESTED_DINOV2 = replace(
    DINOV2, activation="mlp.activation", attending=NESTED_VIT.attending, attention=NESTED_VIT.attention
)

WAV2VEC2 = Stack(
    name="encoder",
    blocks="encoder.layers",
    up="feed_forward.intermediate_dense",
    down="feed_forward.output_dense",
    activation="feed_forward.intermediate_act_fn",
    width_attribute="intermediate_size",
    residual="feed_forward",
    attending=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    attention="attention.out_proj",
    after="final_layer_norm",
    when={"do_stable_layer_norm": False},
)
STABLE_WAV2VEC2 = replace(WAV2VEC2, residual="final_layer_norm", after=None, when={"do_stable_layer_norm": True})

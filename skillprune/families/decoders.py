"""Descriptions of stacks that write, and of those that are built like them."""

from __future__ import annotations

from dataclasses import replace

from skillprune.families.stack import Routing, Stack

LLAMA = Stack(
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
)
EUROBERT = replace(LLAMA, name="encoder")
GEMMA2 = replace(LLAMA, residual="pre_feedforward_layernorm", between="post_feedforward_layernorm")
OLMO2 = replace(LLAMA, residual="mlp", between="post_feedforward_layernorm")
COHERE = replace(LLAMA, residual="input_layernorm", parallel=True)
GRANITE = replace(LLAMA, scale="residual_multiplier", attention_scale="residual_multiplier")
NEMOTRON = replace(LLAMA, gate=None)
PERSIMMON = replace(
    LLAMA,
    up="mlp.dense_h_to_4h",
    gate=None,
    down="mlp.dense_4h_to_h",
    activation="mlp.act",
    attending=("self_attn.query_key_value",),
    attention="self_attn.dense",
)
NOMIC_BERT = replace(LLAMA, name="encoder", residual="mlp", after="post_mlp_layernorm")
STARCODER2 = replace(LLAMA, up="mlp.c_fc", gate=None, down="mlp.c_proj", activation="mlp.act")
PHI = replace(
    LLAMA,
    up="mlp.fc1",
    gate=None,
    down="mlp.fc2",
    activation="mlp.activation_fn",
    residual="input_layernorm",
    attention="self_attn.dense",
    parallel=True,
)
PHI3 = replace(
    LLAMA,
    up="mlp.gate_up_proj",
    gate=None,
    activation="mlp.activation_fn",
    attending=("self_attn.qkv_proj",),
    fused=True,
)
GLM = replace(LLAMA, up="mlp.gate_up_proj", gate=None, activation="mlp.activation_fn", fused=True)
STABLELM_LAYOUTS = (
    replace(LLAMA, when={"use_parallel_residual": False}),
    replace(LLAMA, residual="input_layernorm", parallel=True, when={"use_parallel_residual": True}),
)

STACKED = replace(
    LLAMA,
    up="gate_up_proj",
    gate=None,
    down="down_proj",
    activation="mlp.experts.act_fn",
    width_attribute="moe_intermediate_size",
    fused=True,
    routing=Routing("mlp", "mlp.gate", "mlp.experts"),
)
LISTED = replace(STACKED, up="up_proj", gate="gate_proj", activation="mlp.experts.0.act_fn", fused=False)
MIXTRAL = replace(
    STACKED,
    width_attribute="intermediate_size",
    routing=Routing("mlp", "mlp.gate", "mlp.experts", normalised=None),
)
LISTED_MIXTRAL = replace(
    LISTED,
    up="w3",
    gate="w1",
    down="w2",
    activation="block_sparse_moe.experts.0.act_fn",
    width_attribute="intermediate_size",
    routing=Routing("block_sparse_moe", "block_sparse_moe.gate", "block_sparse_moe.experts", normalised=None),
)
OLMOE_LAYOUTS = tuple(replace(stack, width_attribute="intermediate_size") for stack in (STACKED, LISTED))
SHARED_EXPERT = replace(
    LLAMA,
    name="shared",
    up="mlp.shared_expert.up_proj",
    gate="mlp.shared_expert.gate_proj",
    down="mlp.shared_expert.down_proj",
    activation="mlp.shared_expert.act_fn",
    width_attribute="shared_expert_intermediate_size",
)

GPT2 = Stack(
    name="decoder",
    blocks="h",
    up="mlp.c_fc",
    down="mlp.c_proj",
    activation="mlp.act",
    width_attribute="n_inner",
    residual="ln_2",
    attending=("attn.c_attn",),
    attention="attn.c_proj",
)
GPT_NEO = replace(
    GPT2,
    width_attribute="intermediate_size",
    attending=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    attention="attn.attention.out_proj",
)
GPTJ = replace(
    GPT2,
    up="mlp.fc_in",
    down="mlp.fc_out",
    residual="ln_1",
    attending=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    attention="attn.out_proj",
    parallel=True,
)
CODEGEN = replace(GPTJ, attending=("attn.qkv_proj",))
GPT_NEOX = Stack(
    name="decoder",
    blocks="layers",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    activation="mlp.act",
    width_attribute="intermediate_size",
    residual="post_attention_layernorm",
    attending=("attention.query_key_value",),
    attention="attention.dense",
)
GPT_NEOX_LAYOUTS = (
    replace(GPT_NEOX, when={"use_parallel_residual": False}),
    replace(GPT_NEOX, parallel=True, when={"use_parallel_residual": True}),
)
BLOOM = replace(
    GPT_NEOX,
    blocks="h",
    activation="mlp.gelu_impl",
    width_attribute=None,
    attending=("self_attention.query_key_value",),
    attention="self_attention.dense",
    when={"apply_residual_connection_post_layernorm": False},
)
FALCON = replace(
    BLOOM,
    activation="mlp.act",
    width_attribute="ffn_hidden_size",
    when={"parallel_attn": False, "new_decoder_architecture": False},
)
FALCON_PARALLEL = replace(
    FALCON,
    residual="input_layernorm",
    parallel=True,
    when={"parallel_attn": True, "new_decoder_architecture": False},
)
FALCON_NEW = replace(FALCON_PARALLEL, when={"new_decoder_architecture": True})
FALCON_LAYOUTS = (FALCON, FALCON_PARALLEL, replace(FALCON_NEW, residual="ln_mlp"), FALCON_NEW)
OPT = Stack(
    name="decoder",
    blocks="decoder.layers",
    up="fc1",
    down="fc2",
    activation="activation_fn",
    width_attribute="ffn_dim",
    residual="final_layer_norm",
    attending=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention="self_attn.out_proj",
    when={"do_layer_norm_before": True},
)

OPT_LAYOUTS = (
    OPT,
    replace(OPT, residual="fc1", after="final_layer_norm", when={"do_layer_norm_before": False}),
)
BIOGPT = replace(OPT, blocks="layers", width_attribute="intermediate_size", when={})
XGLM = replace(BIOGPT, width_attribute="ffn_dim")

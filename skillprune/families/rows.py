"""The family table: a row per ``config.model_type``, which says where its stacks keep what a pruner needs to know.

A row is a tuple of stacks in the order they run. Of every stack it may give several descriptions, since paths differ
between lines of transformers and with options in the config; the first that a model answers to is the one.
"""

from __future__ import annotations

from dataclasses import replace

from skillprune.families.stack import Stack

Row = tuple[tuple[Stack, ...], ...]

_BERT = Stack(
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
_MPNET = replace(
    _BERT, attending=("attention.attn.q", "attention.attn.k", "attention.attn.v"), attention="attention.attn.o"
)
# The projections of its queries and keys also read relative positions, which nothing must be folded into.
_DEBERTA = replace(_BERT, attending=())
_DISTILBERT = Stack(
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
_ALBERT = Stack(
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
_MODERNBERT = Stack(
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

_LLAMA = Stack(
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
_EUROBERT = replace(_LLAMA, name="encoder")
_GEMMA2 = replace(_LLAMA, residual="pre_feedforward_layernorm", between="post_feedforward_layernorm")
_OLMO2 = replace(_LLAMA, residual="mlp", between="post_feedforward_layernorm")
_COHERE = replace(_LLAMA, residual="input_layernorm", parallel=True)
_GRANITE = replace(_LLAMA, scale="residual_multiplier", attention_scale="residual_multiplier")
_NEMOTRON = replace(_LLAMA, gate=None)
_PERSIMMON = replace(
    _LLAMA,
    up="mlp.dense_h_to_4h",
    gate=None,
    down="mlp.dense_4h_to_h",
    activation="mlp.act",
    attending=("self_attn.query_key_value",),
    attention="self_attn.dense",
)
_NOMIC_BERT = replace(_LLAMA, name="encoder", residual="mlp", after="post_mlp_layernorm")
_STARCODER2 = replace(_LLAMA, up="mlp.c_fc", gate=None, down="mlp.c_proj", activation="mlp.act")
_PHI = replace(
    _LLAMA,
    up="mlp.fc1",
    gate=None,
    down="mlp.fc2",
    activation="mlp.activation_fn",
    residual="input_layernorm",
    attention="self_attn.dense",
    parallel=True,
)
_PHI3 = replace(
    _LLAMA,
    up="mlp.gate_up_proj",
    gate=None,
    activation="mlp.activation_fn",
    attending=("self_attn.qkv_proj",),
    fused=True,
)
_GLM = replace(_LLAMA, up="mlp.gate_up_proj", gate=None, activation="mlp.activation_fn", fused=True)
_STABLELM = (
    replace(_LLAMA, when={"use_parallel_residual": False}),
    replace(_LLAMA, residual="input_layernorm", parallel=True, when={"use_parallel_residual": True}),
)

_GPT2 = Stack(
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
_GPT_NEO = replace(
    _GPT2,
    width_attribute="intermediate_size",
    attending=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    attention="attn.attention.out_proj",
)
_GPTJ = replace(
    _GPT2,
    up="mlp.fc_in",
    down="mlp.fc_out",
    residual="ln_1",
    attending=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    attention="attn.out_proj",
    parallel=True,
)
_CODEGEN = replace(_GPTJ, attending=("attn.qkv_proj",))
_GPT_NEOX = Stack(
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
_BLOOM = replace(
    _GPT_NEOX,
    blocks="h",
    activation="mlp.gelu_impl",
    width_attribute=None,
    attending=("self_attention.query_key_value",),
    attention="self_attention.dense",
    when={"apply_residual_connection_post_layernorm": False},
)
_FALCON = replace(
    _BLOOM,
    activation="mlp.act",
    width_attribute="ffn_hidden_size",
    when={"parallel_attn": False, "new_decoder_architecture": False},
)
_FALCON_PARALLEL = replace(
    _FALCON,
    residual="input_layernorm",
    parallel=True,
    when={"parallel_attn": True, "new_decoder_architecture": False},
)
_FALCON_NEW = replace(_FALCON_PARALLEL, when={"new_decoder_architecture": True})
_OPT = Stack(
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

_BIOGPT = replace(_OPT, blocks="layers", width_attribute="intermediate_size", when={})
_XGLM = replace(_BIOGPT, width_attribute="ffn_dim")

_BART = Stack(
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
    _BART, name="decoder", blocks="decoder.layers", width_attribute="decoder_ffn_dim", side="output"
)
_PRE_NORM_BART = replace(_BART, residual="final_layer_norm", after=None)
_PRE_NORM_BART_DECODER = replace(_BART_DECODER, residual="final_layer_norm", after=None)
_PRE_NORM_BART_ROW: Row = ((_PRE_NORM_BART,), (_PRE_NORM_BART_DECODER,))

_T5_PLAIN = Stack(
    name="encoder",
    blocks="encoder.block",
    up="layer.1.DenseReluDense.wi",
    down="layer.1.DenseReluDense.wo",
    activation="layer.1.DenseReluDense.act",
    width_attribute="d_ff",
    residual="layer.1.layer_norm",
    attending=("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"),
    attention="layer.0.SelfAttention.o",
)
_T5_GATED = replace(_T5_PLAIN, up="layer.1.DenseReluDense.wi_1", gate="layer.1.DenseReluDense.wi_0")
_T5_DECODER_PLAIN = replace(
    _T5_PLAIN,
    name="decoder",
    blocks="decoder.block",
    up="layer.2.DenseReluDense.wi",
    down="layer.2.DenseReluDense.wo",
    activation="layer.2.DenseReluDense.act",
    residual="layer.2.layer_norm",
    side="output",
)
_T5_DECODER_GATED = replace(_T5_DECODER_PLAIN, up="layer.2.DenseReluDense.wi_1", gate="layer.2.DenseReluDense.wi_0")
_T5: Row = ((_T5_PLAIN, _T5_GATED), (_T5_DECODER_PLAIN, _T5_DECODER_GATED))

_CLIP = Stack(
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
_CLIP_TEXT = replace(
    _CLIP, name="text", blocks="text_model.encoder.layers", width_attribute="text_config.intermediate_size"
)

_VIT = Stack(
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
_NESTED_VIT = replace(
    _VIT,
    blocks="encoder.layer",
    up="intermediate.dense",
    down="output.dense",
    activation="intermediate.intermediate_act_fn",
    attending=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    attention="attention.output.dense",
)
_BEIT = replace(_VIT, scale="lambda_2", attention_scale="lambda_1")
_NESTED_BEIT = replace(_NESTED_VIT, scale="lambda_2", attention_scale="lambda_1")
_DINOV2 = replace(
    _VIT,
    blocks="encoder.layer",
    width_attribute=None,
    residual="norm2",
    scale="layer_scale2",
    attention_scale="layer_scale1",
    when={"use_swiglu_ffn": False},
)
_NESTED_DINOV2 = replace(
    _DINOV2, activation="mlp.activation", attending=_NESTED_VIT.attending, attention=_NESTED_VIT.attention
)

_WAV2VEC2 = Stack(
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
_STABLE_WAV2VEC2 = replace(_WAV2VEC2, residual="final_layer_norm", after=None, when={"do_stable_layer_norm": True})

FAMILIES: dict[str, Row] = {
    "albert": ((_ALBERT,),),
    "bart": ((_BART,), (_BART_DECODER,)),
    "beit": ((_BEIT, _NESTED_BEIT),),
    "bert": ((_BERT,),),
    "biogpt": ((_BIOGPT,),),
    "bloom": ((_BLOOM,),),
    "camembert": ((_BERT,),),
    "clip": ((_CLIP_TEXT,), (_CLIP,)),
    "codegen": ((_CODEGEN,),),
    "cohere": ((_COHERE,),),
    "data2vec-text": ((_BERT,),),
    "deberta-v2": ((_DEBERTA,),),
    "deit": ((_VIT, _NESTED_VIT),),
    "dinov2": ((_DINOV2, _NESTED_DINOV2),),
    "distilbert": ((_DISTILBERT,),),
    "electra": ((_BERT,),),
    "ernie": ((_BERT,),),
    "eurobert": ((_EUROBERT,),),
    "falcon": ((_FALCON, _FALCON_PARALLEL, replace(_FALCON_NEW, residual="ln_mlp"), _FALCON_NEW),),
    "gemma": ((_LLAMA,),),
    "gemma2": ((_GEMMA2,),),
    "gemma3_text": ((_GEMMA2,),),
    "glm": ((_GLM,),),
    "gpt_neo": ((_GPT_NEO,),),
    "gpt_neox": (
        (
            replace(_GPT_NEOX, when={"use_parallel_residual": False}),
            replace(_GPT_NEOX, parallel=True, when={"use_parallel_residual": True}),
        ),
    ),
    "gpt2": ((_GPT2,),),
    "gptj": ((_GPTJ,),),
    "granite": ((_GRANITE,),),
    "hubert": ((_WAV2VEC2, _STABLE_WAV2VEC2),),
    "llama": ((_LLAMA,),),
    "m2m_100": _PRE_NORM_BART_ROW,
    "marian": ((_BART,), (_BART_DECODER,)),
    "mbart": _PRE_NORM_BART_ROW,
    "mistral": ((_LLAMA,),),
    "modernbert": ((_MODERNBERT,),),
    "mpnet": ((_MPNET,),),
    "mt5": _T5,
    "nemotron": ((_NEMOTRON,),),
    "nomic_bert": ((_NOMIC_BERT,),),
    "olmo": ((_LLAMA,),),
    "olmo2": ((_OLMO2,),),
    "opt": ((_OPT, replace(_OPT, residual="fc1", after="final_layer_norm", when={"do_layer_norm_before": False})),),
    "pegasus": _PRE_NORM_BART_ROW,
    "persimmon": ((_PERSIMMON,),),
    "phi": ((_PHI,),),
    "phi3": ((_PHI3,),),
    "qwen2": ((_LLAMA,),),
    "qwen3": ((_LLAMA,),),
    "roberta": ((_BERT,),),
    "roformer": ((_BERT,),),
    "siglip": ((_CLIP_TEXT,), (_CLIP,)),
    "smollm3": ((_LLAMA,),),
    "stablelm": (_STABLELM,),
    "starcoder2": ((_STARCODER2,),),
    "t5": _T5,
    "vit": ((_VIT, _NESTED_VIT),),
    "wav2vec2": ((_WAV2VEC2, _STABLE_WAV2VEC2),),
    "whisper": _PRE_NORM_BART_ROW,
    "xglm": ((_XGLM,),),
    "xlm-roberta": ((_BERT,),),
}
"""Rows by ``config.model_type``; a new plain architecture is one row here and one tiny model in the tests."""

POSITIONS_AFTER_PADDING = {"camembert", "data2vec-text", "mpnet", "roberta", "xlm-roberta"}
"""Their position ids start behind the padding id, so the table is longer than the inputs may be."""

"""Descriptions of an encoder and the decoder that reads from it."""

from __future__ import annotations

from dataclasses import replace

from skillprune.families.stack import Row, Stack

BART = Stack(
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
BART_DECODER = replace(BART, name="decoder", blocks="decoder.layers", width_attribute="decoder_ffn_dim", side="output")
PRE_NORM_BART = replace(BART, residual="final_layer_norm", after=None)
PRE_NORM_BART_DECODER = replace(BART_DECODER, residual="final_layer_norm", after=None)
PRE_NORM_BART_ROW: Row = ((PRE_NORM_BART,), (PRE_NORM_BART_DECODER,))

T5_PLAIN = Stack(
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
T5_GATED = replace(T5_PLAIN, up="layer.1.DenseReluDense.wi_1", gate="layer.1.DenseReluDense.wi_0")
T5_DECODER_PLAIN = replace(
    T5_PLAIN,
    name="decoder",
    blocks="decoder.block",
    up="layer.2.DenseReluDense.wi",
    down="layer.2.DenseReluDense.wo",
    activation="layer.2.DenseReluDense.act",
    residual="layer.2.layer_norm",
    side="output",
)
T5_DECODER_GATED = replace(T5_DECODER_PLAIN, up="layer.2.DenseReluDense.wi_1", gate="layer.2.DenseReluDense.wi_0")
T5_ROW: Row = ((T5_PLAIN, T5_GATED), (T5_DECODER_PLAIN, T5_DECODER_GATED))

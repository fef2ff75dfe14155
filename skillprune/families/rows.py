"""The family table: a row per ``config.model_type``, which says where its stacks keep what a pruner needs to know.

A row is a tuple of stacks in the order they run. Of every stack it may give several descriptions, since paths differ
between lines of transformers and with options in the config; the first that a model answers to is the one.
"""

from __future__ import annotations

from skillprune.families import decoders, encoders, pairs
from skillprune.families.stack import Row

FAMILIES: dict[str, Row] = {
    "albert": ((encoders.ALBERT,),),
    "bart": ((pairs.BART,), (pairs.BART_DECODER,)),
    "beit": ((encoders.BEIT, encoders.NESTED_BEIT),),
    "bert": ((encoders.BERT,),),
    "biogpt": ((decoders.BIOGPT,),),
    "bloom": ((decoders.BLOOM,),),
    "camembert": ((encoders.BERT,),),
    "clip": ((encoders.CLIP_TEXT,), (encoders.CLIP,)),
    "codegen": ((decoders.CODEGEN,),),
    "cohere": ((decoders.COHERE,),),
    "data2vec-text": ((encoders.BERT,),),
    "deberta-v2": ((encoders.PLAIN_DEBERTA, encoders.DEBERTA, encoders.CONVOLVED_DEBERTA),),
    "deit": ((encoders.VIT, encoders.NESTED_VIT),),
    "dinov2": ((encoders.DINOV2, encoders.NESTED_DINOV2),),
    "distilbert": ((encoders.DISTILBERT,),),
    "electra": ((encoders.BERT,),),
    "ernie": ((encoders.BERT,),),
    "eurobert": ((decoders.EUROBERT,),),
    "falcon": (decoders.FALCON_LAYOUTS,),
    "gemma": ((decoders.LLAMA,),),
    "gemma2": ((decoders.GEMMA2,),),
    "gemma3_text": ((decoders.GEMMA2,),),
    "glm": ((decoders.GLM,),),
    "gpt2": ((decoders.GPT2,),),
    "gpt_neo": ((decoders.GPT_NEO,),),
    "gpt_neox": (decoders.GPT_NEOX_LAYOUTS,),
    "gptj": ((decoders.GPTJ,),),
    "granite": ((decoders.GRANITE,),),
    "hubert": ((encoders.WAV2VEC2, encoders.STABLE_WAV2VEC2),),
    "llama": ((decoders.LLAMA,),),
    "m2m_100": pairs.PRE_NORM_BART_ROW,
    "marian": ((pairs.BART,), (pairs.BART_DECODER,)),
    "mbart": pairs.PRE_NORM_BART_ROW,
    "mistral": ((decoders.LLAMA,),),
    "modernbert": ((encoders.MODERNBERT,),),
    "mixtral": ((decoders.MIXTRAL, decoders.LISTED_MIXTRAL),),
    "mpnet": ((encoders.MPNET,),),
    "mt5": pairs.T5_ROW,
    "nemotron": ((decoders.NEMOTRON,),),
    "nomic_bert": ((decoders.NOMIC_BERT,),),
    "olmo": ((decoders.LLAMA,),),
    "olmo2": ((decoders.OLMO2,),),
    "olmoe": (decoders.OLMOE_LAYOUTS,),
    "opt": (decoders.OPT_LAYOUTS,),
    "pegasus": pairs.PRE_NORM_BART_ROW,
    "persimmon": ((decoders.PERSIMMON,),),
    "phi": ((decoders.PHI,),),
    "phi3": ((decoders.PHI3,),),
    "qwen2": ((decoders.LLAMA,),),
    "qwen2_moe": ((decoders.STACKED, decoders.LISTED), (decoders.SHARED_EXPERT,)),
    "qwen3": ((decoders.LLAMA,),),
    "qwen3_moe": ((decoders.STACKED, decoders.LISTED),),
    "roberta": ((encoders.BERT,),),
    "roformer": ((encoders.BERT,),),
    "siglip": ((encoders.CLIP_TEXT,), (encoders.SIGLIP,)),
    "smollm3": ((decoders.LLAMA,),),
    "stablelm": (decoders.STABLELM_LAYOUTS,),
    "starcoder2": ((decoders.STARCODER2,),),
    "t5": pairs.T5_ROW,
    "vit": ((encoders.VIT, encoders.NESTED_VIT),),
    "wav2vec2": ((encoders.WAV2VEC2, encoders.STABLE_WAV2VEC2),),
    "whisper": pairs.PRE_NORM_BART_ROW,
    "xglm": ((decoders.XGLM,),),
    "xlm-roberta": ((encoders.BERT,),),
}
"""Rows by ``config.model_type``; a new plain architecture is one row here and one tiny model in the tests."""

POSITIONS_AFTER_PADDING = {"camembert", "data2vec-text", "mpnet", "roberta", "xlm-roberta"}
"""Their position ids start behind the padding id, so the table is longer than the inputs may be."""

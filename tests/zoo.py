"""A tiny random model of every architecture that tests run over: one row each, built and fed in the same way.

Which of them there are depends on the installed transformers: `here` names those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import transformers
from tiny import END, PAD, POSITIONS, VOCABULARY
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

Reads = Literal["text", "text to text", "image", "waveform", "spectrogram", "text and image"]
"""What a model is given: "text to text" and "spectrogram" also have the tokens that a decoder has written so far."""

_LENGTHS, _FRAMES, _SAMPLES = (9, 4, 6), 16, 400
"""Real tokens of the texts that are read (those written have two fewer), for the seed 0; other seeds turn them round,
and odd ones have one more. Length of a spectrogram and of a waveform."""


@dataclass(frozen=True)
class Specimen:
    """One architecture with its sizes.

    Attributes:
        name: its key in `ZOO`.
        model_type: ``config.model_type``.
        sizes: arguments of its config; dicts for configs within it.
        head: name of the class of transformers to build.
        widths: FFN neurons per stack and layer; of one expert, where there are several.
        reads: what `inputs` makes.
        writes: whether ``generate`` works.
        shared: whether all layers are one block.
        spread: how much random noise every parameter gets; less than usual where attention would see only one token.
    """

    name: str
    model_type: str
    sizes: Mapping[str, Any]
    head: str
    widths: Mapping[str, tuple[int, ...]]
    reads: Reads = "text"
    writes: bool = False
    shared: bool = False
    spread: float = 0.3

    def config(self) -> PretrainedConfig:
        """A new config."""
        return AutoConfig.for_model(self.model_type, **deepcopy(dict(self.sizes)))

    def model(self, seed: int = 0) -> PreTrainedModel:
        """With its head, in evaluation mode; every parameter, biases too, is large enough to matter in a test."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            model: PreTrainedModel = getattr(transformers, self.head)(self.config())
            for parameter in model.parameters():
                if parameter.requires_grad:  # tables of positions that are computed are not saved either
                    parameter.add_(self.spread * torch.randn_like(parameter))
        model.eval()
        return model

    def inputs(self, seed: int = 0) -> dict[str, Tensor]:
        """A batch of three; texts have a mask, padding on the right, and lengths that depend on the seed.

        ``generate`` takes no ``decoder_*``.
        """
        return _INPUTS[self.reads](self.config(), torch.Generator().manual_seed(seed))


def _texts(generator: torch.Generator, shorter: int = 0) -> dict[str, Tensor]:
    seed = generator.initial_seed()
    lengths = (torch.tensor(_LENGTHS).roll(seed) + seed % 2)[:, None] - shorter
    mask = (torch.arange(int(lengths.max())) < lengths).long()
    tokens = torch.randint(3, VOCABULARY, mask.shape, generator=generator)
    return {"input_ids": torch.where(mask == 1, tokens, PAD), "attention_mask": mask}


def _written(generator: torch.Generator) -> dict[str, Tensor]:
    return {f"decoder_{name}": value for name, value in _texts(generator, shorter=2).items()}


def _images(config: PretrainedConfig, generator: torch.Generator) -> dict[str, Tensor]:
    shape = (len(_LENGTHS), 3, config.image_size, config.image_size)
    return {"pixel_values": torch.randn(shape, generator=generator)}


def _waveforms(_: PretrainedConfig, generator: torch.Generator) -> dict[str, Tensor]:
    return {"input_values": torch.randn(len(_LENGTHS), _SAMPLES, generator=generator)}


def _spectrograms(config: PretrainedConfig, generator: torch.Generator) -> dict[str, Tensor]:
    shape = (len(_LENGTHS), config.num_mel_bins, _FRAMES)
    return {"input_features": torch.randn(shape, generator=generator), **_written(generator)}


_INPUTS: dict[Reads, Callable[[PretrainedConfig, torch.Generator], dict[str, Tensor]]] = {
    "text": lambda _, generator: _texts(generator),
    "text to text": lambda _, generator: {**_texts(generator), **_written(generator)},
    "image": _images,
    "waveform": _waveforms,
    "spectrogram": _spectrograms,
    "text and image": lambda config, generator: {
        **_texts(generator),
        **_images(config.vision_config, generator),
    },
}

_THREE, _TWO = (32, 32, 32), (24, 24)
_ENCODER, _DECODER = {"encoder": _THREE}, {"decoder": _THREE}
_BOTH = {"encoder": _THREE, "decoder": _TWO}

_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "pad_token_id": PAD, "eos_token_id": END}
_BODY = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
_TEXT = {**_TOKENS, **_BODY, "max_position_embeddings": POSITIONS}
_BERT = {**_TEXT, "intermediate_size": 32}
_DEBERTA = {
    **_BERT,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "pooler_hidden_size": 16,
}
_LLAMA = {**_BERT, "num_key_value_heads": 1, "head_dim": 8}
_GPT = {**_TOKENS, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 32, "n_positions": POSITIONS}
_GPT_NEO = {
    **_TOKENS,
    "hidden_size": 16,
    "num_layers": 3,
    "num_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": POSITIONS,
    "attention_types": [[["global", "local", "global"], 1]],
}
_BLOOM = {**_TOKENS, "hidden_size": 16, "n_layer": 3, "n_head": 2}
_DISTILBERT = {
    **_TOKENS,
    "dim": 16,
    "n_layers": 3,
    "n_heads": 2,
    "hidden_dim": 32,
    "max_position_embeddings": POSITIONS,
}
_FALCON = {**_TEXT, "ffn_hidden_size": 32, "bias": True}
_OPT = {**_TEXT, "ffn_dim": 32, "word_embed_proj_dim": 16}
_XGLM = {**_TOKENS, "d_model": 16, "num_layers": 3, "attention_heads": 2, "ffn_dim": 32}
_T5 = {
    **_TOKENS,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": END,
}
_BART = {
    **_TOKENS,
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": POSITIONS,
    "decoder_start_token_id": END,
    "forced_eos_token_id": None,
}
_WHISPER = {
    **_BART,
    "num_mel_bins": 8,
    "max_source_positions": _FRAMES // 2,
    "max_target_positions": POSITIONS,
    "begin_suppress_tokens": None,
}
_DINO = {**_BODY, "image_size": 8, "patch_size": 4, "mlp_ratio": 2}
_VIT = {**_BODY, "image_size": 8, "patch_size": 4, "intermediate_size": 32}
_CLIP = {
    "text_config": {**_BERT, "projection_dim": 16},
    "vision_config": {**_VIT, "num_hidden_layers": 2, "intermediate_size": 24, "projection_dim": 16},
    "projection_dim": 16,
}
_SOUND = {
    **_BERT,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
_QWEN_MOE = {**_LLAMA, "intermediate_size": 40, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _reader(name: str, family: str, sizes: Mapping[str, Any] = _BERT, **more: Any) -> Specimen:
    """An encoder with a classifier; ``family`` is what the names of its classes begin with."""
    return Specimen(name, name, {**sizes, **more}, f"{family}ForSequenceClassification", _ENCODER)


def _decoder(name: str, family: str, sizes: Mapping[str, Any] = _LLAMA, **more: Any) -> Specimen:
    """A language model."""
    return Specimen(name, name, {**sizes, **more}, f"{family}ForCausalLM", _DECODER, writes=True)


def _rewriter(name: str, head: str, sizes: Mapping[str, Any] = _BART) -> Specimen:
    """An encoder of texts and a decoder that writes others."""
    return Specimen(name, name, sizes, head, _BOTH, "text to text", writes=True)


def _seeing(name: str, family: str, sizes: Mapping[str, Any] = _VIT) -> Specimen:
    """A classifier of images."""
    return Specimen(name, name, sizes, f"{family}ForImageClassification", _ENCODER, "image")


def _hearing(name: str, family: str) -> Specimen:
    """An encoder of sound that spells what it hears."""
    return Specimen(name, name, _SOUND, f"{family}ForCTC", _ENCODER, "waveform")


def _pairing(name: str, head: str) -> Specimen:
    """An encoder of texts beside one of images."""
    return Specimen(name, name, _CLIP, head, {"text": _THREE, "vision": _TWO}, "text and image")


def _t5(name: str, head: str) -> Specimen:
    """An encoder and a decoder of one width; nothing scales their attention down."""
    both = {"encoder": _THREE, "decoder": (32, 32)}
    return replace(_rewriter(name, head, _T5), widths=both, spread=0.2)


def _options(specimen: Specimen, variants: Mapping[str, Mapping[str, Any]]) -> tuple[Specimen, ...]:
    """The specimen, and others of its architecture with other options in the config, by what their names end in."""
    others = (
        replace(specimen, name=f"{specimen.name}-{end}", sizes={**specimen.sizes, **options})
        for end, options in variants.items()
    )
    return (specimen, *others)


ZOO: dict[str, Specimen] = {
    specimen.name: specimen
    for specimen in (
        _reader("bert", "Bert"),
        _reader("electra", "Electra", embedding_size=8),
        _reader("mpnet", "MPNet"),
        *_options(
            _reader("deberta-v2", "DebertaV2", _DEBERTA),
            {"plain": {"conv_kernel_size": 0}, "convolved": {"conv_kernel_size": 3}},
        ),
        _reader("roberta", "Roberta"),
        _reader("xlm-roberta", "XLMRoberta"),
        _reader("camembert", "Camembert"),
        _reader("data2vec-text", "Data2VecText"),
        _reader("ernie", "Ernie"),
        _reader("roformer", "RoFormer", embedding_size=16),
        _reader("distilbert", "DistilBert", _DISTILBERT),
        _reader("modernbert", "ModernBert", cls_token_id=0, sep_token_id=END),
        _reader("nomic_bert", "NomicBert"),
        _reader("eurobert", "EuroBert", _LLAMA, mask_token_id=3),
        replace(_reader("albert", "Albert", embedding_size=8), shared=True),
        replace(_decoder("gpt2", "GPT2", _GPT), head="GPT2LMHeadModel"),
        _decoder("gpt_neo", "GPTNeo", _GPT_NEO),
        _decoder("gptj", "GPTJ", _GPT, rotary_dim=4),
        _decoder("codegen", "CodeGen", _GPT, n_head=4, rotary_dim=4),
        *_options(
            _decoder("gpt_neox", "GPTNeoX", _BERT, use_parallel_residual=False),
            {"parallel": {"use_parallel_residual": True}},
        ),
        replace(_decoder("bloom", "Bloom", _BLOOM), widths={"decoder": (64, 64, 64)}),
        *_options(
            _decoder("falcon", "Falcon", _FALCON, parallel_attn=False),
            {
                "parallel": {"parallel_attn": True},
                "new": {"parallel_attn": True, "new_decoder_architecture": True, "num_kv_heads": 1},
            },
        ),
        *_options(_decoder("opt", "OPT", _OPT), {"post-norm": {"do_layer_norm_before": False}}),
        _decoder("biogpt", "BioGpt", _BERT),
        _decoder("xglm", "XGLM", _XGLM),
        _decoder("phi", "Phi"),
        _decoder("phi3", "Phi3"),
        _decoder("glm", "Glm"),
        _decoder("llama", "Llama"),
        _decoder("mistral", "Mistral"),
        _decoder("qwen2", "Qwen2"),
        _decoder("qwen3", "Qwen3"),
        _decoder("gemma", "Gemma"),
        _decoder("gemma2", "Gemma2"),
        _decoder("gemma3_text", "Gemma3"),
        _decoder("olmo", "Olmo"),
        _decoder("olmo2", "Olmo2"),
        _decoder("granite", "Granite", residual_multiplier=0.5, attention_multiplier=0.35, mlp_bias=True),
        *_options(_decoder("stablelm", "StableLm", use_qkv_bias=True), {"parallel": {"use_parallel_residual": True}}),
        _decoder("cohere", "Cohere", logit_scale=1.0),
        _decoder("starcoder2", "Starcoder2"),
        replace(_decoder("nemotron", "Nemotron"), spread=0.2),
        _decoder("persimmon", "Persimmon"),
        _decoder("smollm3", "SmolLM3"),
        *_options(_t5("t5", "T5ForConditionalGeneration"), {"gated": {"feed_forward_proj": "gated-gelu"}}),
        _t5("mt5", "MT5ForConditionalGeneration"),
        _rewriter("bart", "BartForConditionalGeneration"),
        _rewriter("mbart", "MBartForConditionalGeneration"),
        _rewriter("pegasus", "PegasusForConditionalGeneration"),
        _rewriter("m2m_100", "M2M100ForConditionalGeneration"),
        _rewriter("marian", "MarianMTModel"),
        replace(_rewriter("whisper", "WhisperForConditionalGeneration", _WHISPER), reads="spectrogram"),
        _seeing("vit", "ViT"),
        _seeing("deit", "DeiT"),
        _seeing("beit", "Beit"),
        _seeing("dinov2", "Dinov2", _DINO),
        *_options(_hearing("wav2vec2", "Wav2Vec2"), {"pre-norm": {"do_stable_layer_norm": True}}),
        _hearing("hubert", "Hubert"),
        _pairing("clip", "CLIPModel"),
        _pairing("siglip", "SiglipModel"),
        _decoder("mixtral", "Mixtral", num_local_experts=4, num_experts_per_tok=2),
        _decoder("olmoe", "Olmoe", num_experts=4, num_experts_per_tok=2),
        replace(
            _decoder("qwen2_moe", "Qwen2Moe", _QWEN_MOE, shared_expert_intermediate_size=24),
            widths={**_DECODER, "shared": (24, 24, 24)},
        ),
        _decoder("qwen3_moe", "Qwen3Moe", _QWEN_MOE),
    )
}
"""Specimens by name."""


def here() -> list[str]:
    """Names of the specimens that the installed transformers knows."""
    return [name for name, specimen in ZOO.items() if specimen.model_type in CONFIG_MAPPING_NAMES]

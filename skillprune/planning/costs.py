"""Counts what a model costs and predicts what it will cost at other widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from skillprune.activations import evaluating
from skillprune.errors import UnsupportedArchitecture
from skillprune.families import FFN, by_stack, find_ffns, position_limit
from skillprune.planning.plan import Costs

MAC_SEQUENCE = 128
"""Tokens of the one sequence that multiply-accumulates are counted for, where the model is long enough.

An encoder-decoder model reads and writes that many.
"""


def model_costs(model: PreTrainedModel) -> Costs:
    """Counts parameters, and multiply-accumulates by running one sequence under PyTorch's counter.

    Raises:
        UnsupportedArchitecture: the model reads something else than text.
    """
    ffns = find_ffns(model)
    if model.main_input_name != "input_ids" or hasattr(model.config, "vision_config"):
        raise UnsupportedArchitecture(
            f"{model.config.model_type}: costs are counted for models that read nothing but text; prune one that reads "
            "images or sound with a plan of your own (PruningPlan, prune_)"
        )
    tokens = min(MAC_SEQUENCE, position_limit(model.config) or MAC_SEQUENCE)
    text = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    inputs = {"input_ids": text, "attention_mask": torch.ones_like(text)}
    if model.config.is_encoder_decoder:
        text[:, -1] = model.config.eos_token_id  # a classifier answers where the text ends
        inputs["decoder_input_ids"] = text
    # The counter does not know every fused kernel: attention and experts are spelt out as matrix products.
    with evaluating(model), _experts_in_turn(model), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model(**inputs)
    return Costs(
        sequence=tokens,
        parameters=model.num_parameters(),
        ffn_parameters=sum(parameter.numel() for ffn in ffns for parameter in ffn.parameters),
        macs=counter.get_total_flops() // 2,
        ffn_macs=sum(tokens * ffn.width * ffn.macs_per_neuron for ffn in ffns),
    )


@contextmanager
def _experts_in_turn(model: PreTrainedModel) -> Iterator[None]:
    """Experts compute one after the other, where transformers has faster ways too."""
    if not hasattr(model, "get_experts_implementation"):
        yield
        return
    usual = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(usual)


def predict_costs(before: Costs, ffns: Sequence[FFN], widths: Mapping[str, Sequence[int]]) -> Costs:
    """What the model will cost when its layers have ``widths``; exact, because only FFN matrices shrink."""
    removed = [
        (ffn, ffn.width - width)
        for stack, layers in by_stack(ffns).items()
        for ffn, width in zip(layers, widths[stack], strict=True)
    ]
    parameters = sum(ffn.parameters_per_neuron * gone for ffn, gone in removed)
    macs = sum(before.sequence * ffn.macs_per_neuron * gone for ffn, gone in removed)
    return replace(
        before,
        parameters=before.parameters - parameters,
        ffn_parameters=before.ffn_parameters - parameters,
        macs=before.macs - macs,
        ffn_macs=before.ffn_macs - macs,
    )

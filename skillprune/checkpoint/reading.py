"""What a checkpoint of any form says of its widths, as a model that has them; opening files is left to others."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel

from skillprune.checkpoint.modelling import WIDTHS_KEY
from skillprune.checkpoint.quantizer import SkillPruneConfig
from skillprune.checkpoint.record import Record
from skillprune.errors import PlanMismatch
from skillprune.families import by_stack, find_ffns


def without_code_(config: PretrainedConfig) -> PretrainedConfig:
    """Has the plugin build what the code of an ``auto_map`` checkpoint would build, so that nobody need run it."""
    if widths := getattr(config, WIDTHS_KEY, None):
        config.quantization_config = SkillPruneConfig(widths).to_dict()
        for name in (WIDTHS_KEY, "auto_map"):
            delattr(config, name)
    return config


def unpad_(model: PreTrainedModel, record: Record) -> None:
    """Takes out the neurons of a padded checkpoint that do nothing.

    Raises:
        PlanMismatch: there are other layers than recorded, or neurons beyond the recorded width write something.
    """
    stacks = by_stack(find_ffns(model))
    if {name: len(layers) for name, layers in stacks.items()} != {n: len(w) for n, w in record.widths.items()}:
        raise PlanMismatch(f"skillprune.json tells of widths {record.widths}, which do not fit the model")
    for name, layers in stacks.items():
        for ffn, width in zip(layers, record.widths[name], strict=True):
            if width > ffn.width or bool(ffn.down.lent_weight()[..., width:].any()):
                raise PlanMismatch(f"{name} layer {ffn.layer} does more than the {width} neurons of skillprune.json")
            ffn.keep_(range(width))

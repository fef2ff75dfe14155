"""Loads a pruned checkpoint as it was before it was written: with the head it has, in any form, in its own dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoProcessor, PreTrainedModel

from skillprune.checkpoint.load import refuse_quantised, refuse_unsafe
from skillprune.checkpoint.modelling import WIDTHS_KEY
from skillprune.checkpoint.quantizer import SkillPruneConfig
from skillprune.checkpoint.record import Record, read_record
from skillprune.errors import CheckpointError, PlanMismatch
from skillprune.families import by_stack, find_ffns


def load_stored(directory: Path) -> tuple[PreTrainedModel, Record]:
    """The model with its real widths, and what is known of it; code that the checkpoint carries is not run.

    Raises:
        CheckpointError: the directory is not a checkpoint that skillprune can read.
        PlanMismatch: its widths are not what its record says.
        UnsupportedArchitecture: the model has no row in the family table.
    """
    refuse_unsafe(directory)
    try:
        model = _load(directory)
    except (OSError, ValueError, TypeError, RuntimeError) as unreadable:
        raise CheckpointError(f"{directory} cannot be loaded: {unreadable}") from unreadable
    record = read_record(directory)
    if record is None:
        raise CheckpointError(f"{directory} holds no skillprune.json: it was not written by skillprune")
    if record.form == "padded":
        _unpad_(model, record)
    return model, record


def load_processor(directory: Path) -> Any:
    """The tokenizer or image processor beside the weights; none where there is none."""
    try:
        return AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError):
        return None


def _load(directory: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    refuse_quantised(config, str(directory))
    architecture = getattr(transformers, (config.architectures or [""])[0], None)
    if architecture is None:
        raise CheckpointError(f"{directory}: config.json names no architecture of transformers")
    if widths := getattr(config, WIDTHS_KEY, None):
        config.quantization_config = SkillPruneConfig(widths).to_dict()
        for name in (WIDTHS_KEY, "auto_map"):
            delattr(config, name)
    model: PreTrainedModel = architecture.from_pretrained(directory, config=config, dtype="auto", use_safetensors=True)
    model.eval()
    return model


def _unpad_(model: PreTrainedModel, record: Record) -> None:
    """Takes out the neurons that do nothing.

    Raises:
        PlanMismatch: there are other layers than recorded, or neurons beyond the recorded width write something.
    """
    stacks = by_stack(find_ffns(model))
    if {name: len(layers) for name, layers in stacks.items()} != {n: len(w) for n, w in record.widths.items()}:
        raise PlanMismatch(f"skillprune.json tells of widths {record.widths}, which do not fit the model")
    for name, layers in stacks.items():
        for ffn, width in zip(layers, record.widths[name], strict=True):
            if width > ffn.width or bool(ffn.down_weight()[:, width:].any()):
                raise PlanMismatch(f"{name} layer {ffn.layer} does more than the {width} neurons of skillprune.json")
            ffn.keep_(range(width))

"""Loads a pruned checkpoint as it was before it was written: with the head it has, in any form, in its own dtype."""

from __future__ import annotations

from pathlib import Path

import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from skillprune.checkpoint.formats import widths_of
from skillprune.checkpoint.load import refuse_quantised, refuse_unsafe
from skillprune.checkpoint.reading import unpad_, without_code_
from skillprune.checkpoint.record import Record, read_record
from skillprune.errors import CheckpointError, PlanMismatch


def load_stored(directory: Path) -> tuple[PreTrainedModel, Record]:
    """The model with its real widths, and what is known of it; code that the checkpoint carries is not run.

    Raises:
        CheckpointError: the directory is not a checkpoint that skillprune wrote and can read.
        PlanMismatch: its widths are not what its record says.
        UnsupportedArchitecture: the model has no row in the family table.
    """
    refuse_unsafe(directory)
    record = read_record(directory)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        refuse_quantised(config, str(directory))
        named = getattr(config, "quantization_config", None)
        if record is None and named is None:
            raise CheckpointError(f"{directory} holds no skillprune.json: it was not written by skillprune")
        model = _load(directory, config)
    except (OSError, ValueError, TypeError, RuntimeError) as unreadable:
        raise CheckpointError(f"{directory} cannot be loaded: {unreadable}") from unreadable
    if record is None:  # skillprune 0.1 wrote none, but named uneven widths in the config
        return model, Record("per-layer", widths_of(model))
    if record.form == "padded":
        unpad_(model, record)
    if widths_of(model) != {name: list(widths) for name, widths in record.widths.items()}:
        raise PlanMismatch(f"{directory} has the widths {widths_of(model)}, its skillprune.json says {record.widths}")
    return model, record


def _load(directory: Path, config: PretrainedConfig) -> PreTrainedModel:
    architecture = getattr(transformers, (config.architectures or [""])[0], None)
    if architecture is None:
        raise CheckpointError(f"{directory}: config.json names no architecture of transformers")
    model, report = architecture.from_pretrained(
        directory, config=without_code_(config), dtype="auto", use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{directory} has no weights for {', '.join(missing[:5])}: it is not whole")
    loaded: PreTrainedModel = model.eval()
    return loaded

"""The forms a pruned checkpoint can have, from one that anything loads to one that carries its own code.

Each form prepares a model for `save_pretrained` and says what else belongs into the directory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from skillprune.checkpoint.modelling import MODULE, WIDTHS_KEY, auto_classes, modelling_code
from skillprune.checkpoint.quantizer import SkillPruneConfig
from skillprune.errors import CheckpointError
from skillprune.families import by_stack, config_value, config_widths, find_ffns, set_config_value_
from skillprune.recipe import Form, Format

Widths = dict[str, list[int]]


@dataclass(frozen=True)
class Extras:
    """What a directory needs beside what `save_pretrained` writes.

    Attributes:
        files: texts by file name.
        config: further keys of ``config.json``.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def choose(model: PreTrainedModel, asked: Format) -> Form:
    """The form a model is written in.

    Raises:
        CheckpointError: ``uniform`` is asked for, but the stock config cannot say the widths.
    """
    uneven = uneven_widths(model)
    if asked == "uniform" and uneven:
        raise CheckpointError(
            f"the widths {uneven} cannot be written as uniform: the architecture's config has no place for them; "
            "write them per-layer, padded or auto_map, or prune every layer to the same width"
        )
    if asked == "auto":
        return "per-layer" if uneven else "uniform"
    return asked


def prepared(model: PreTrainedModel, form: Form) -> AbstractContextManager[Extras]:
    """Makes a model ready to be saved in some form; afterwards its layers are as they were."""
    return _FORMS[form](model)


def uneven_widths(model: PreTrainedModel) -> Widths:
    """Widths per stack and layer, if transformers alone would build others from the config; empty if the same."""
    widths = widths_of(model)
    return {} if widths == stock_widths(model) else widths


def widths_of(model: PreTrainedModel) -> Widths:
    """Neurons per stack and layer."""
    return {name: [ffn.width for ffn in layers] for name, layers in by_stack(find_ffns(model)).items()}


def stock_widths(model: PreTrainedModel) -> Widths:
    """Neurons per stack and layer of the model that transformers builds from the config."""
    config = deepcopy(model.config)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
        return widths_of(type(model)(config))


@contextmanager
def _as_uniform(model: PreTrainedModel) -> Iterator[Extras]:
    _forget_widths_(model)
    yield Extras()


@contextmanager
def _as_per_layer(model: PreTrainedModel) -> Iterator[Extras]:
    model.config.quantization_config = SkillPruneConfig(widths_of(model))
    yield Extras()


@contextmanager
def _as_padded(model: PreTrainedModel) -> Iterator[Extras]:
    """Neurons that do nothing make layers equal: exact, and no faster than the widest layer."""
    _forget_widths_(model)
    ffns, widths = find_ffns(model), [ffn.width for ffn in find_ffns(model)]
    attributes = {attribute: config_value(model.config, attribute) for attribute in config_widths(ffns)}
    for attribute, found in config_widths(ffns).items():
        set_config_value_(model.config, attribute, max(found))
    stock = stock_widths(model)
    for ffn in ffns:
        ffn.pad_(stock[ffn.stack.name][ffn.layer])
    try:
        yield Extras()
    finally:
        for ffn, width in zip(ffns, widths, strict=True):
            ffn.keep_(range(width))
        for attribute, value in attributes.items():
            set_config_value_(model.config, attribute, value)


@contextmanager
def _as_auto_map(model: PreTrainedModel) -> Iterator[Extras]:
    """The checkpoint brings the few lines that narrow its layers; whoever loads it must trust them."""
    _forget_widths_(model)
    classes = {name: f"{MODULE}.{of}" for name, of in auto_classes(model).items()}
    yield Extras(
        files={f"{MODULE}.py": modelling_code(model)},
        config={"auto_map": classes, WIDTHS_KEY: widths_of(model)},
    )


def _forget_widths_(model: PreTrainedModel) -> None:
    """Takes out of the config what a per-layer checkpoint says there."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
        # transformers 4.57 notes this beside it, and then cannot write it as JSON.
        vars(model.config).pop("_pre_quantization_dtype", None)


_FORMS: dict[Form, Callable[[PreTrainedModel], AbstractContextManager[Extras]]] = {
    "uniform": _as_uniform,
    "per-layer": _as_per_layer,
    "padded": _as_padded,
    "auto_map": _as_auto_map,
}

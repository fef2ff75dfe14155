"""Finds a model's FFNs by its row of the family table, and refuses a model that the row does not describe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import reduce

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from skillprune.errors import UnsupportedArchitecture
from skillprune.families.experts import Mixture
from skillprune.families.ffn import FFN
from skillprune.families.rows import FAMILIES, POSITIONS_AFTER_PADDING
from skillprune.families.stack import Stack

_TABLE = "skillprune/families/rows.py"


def position_limit(config: PretrainedConfig) -> int | None:
    """The longest input in tokens that the model has positions for; none where its config names no limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in POSITIONS_AFTER_PADDING:
        positions -= config.pad_token_id + 1
    return positions


def base_model(model: PreTrainedModel) -> nn.Module:
    """The body without its head; the model itself when it has none."""
    # Prefixes differ between lines of transformers, and some name an attribute that does not exist.
    for name in filter(None, (model.base_model_prefix, "model")):
        if isinstance(body := getattr(model, name, None), nn.Module):
            return body
    return model


def find_ffns(model: PreTrainedModel) -> tuple[FFN, ...]:
    """Resolves every FFN of the model, stack by stack, bottom to top.

    Raises:
        UnsupportedArchitecture: the model type has no row, a path of its row is missing or is not a linear layer, or
            weights that the row takes for those of one layer are used elsewhere too.
    """
    model_type = model.config.model_type
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedArchitecture(
            f"model_type {model_type!r} has no row in {_TABLE} (known: {known}); "
            "add one with the paths of its projections"
        )
    body = base_model(model)
    found = tuple(
        ffn
        for descriptions in FAMILIES[model_type]
        for ffn in _resolve(body, _fitting(body, model.config, descriptions), model.config)
    )
    _refuse_tied(model, found)
    return found


def by_stack(ffns: Sequence[FFN]) -> dict[str, tuple[FFN, ...]]:
    """Groups FFNs by stack name, layers in order."""
    grouped: dict[str, tuple[FFN, ...]] = {}
    for ffn in ffns:
        grouped[ffn.stack.name] = (*grouped.get(ffn.stack.name, ()), ffn)
    return grouped


def set_config_value_(config: PretrainedConfig, path: str, value: object) -> None:
    """Sets an attribute of the config or, with dots, of a part of it."""
    *parts, name = path.split(".")
    setattr(reduce(getattr, parts, config), name, value)


def config_value(config: PretrainedConfig, path: str) -> object:
    """An attribute of the config or, with dots, of a part of it; none where there is no such attribute."""
    value: object = config
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def config_widths(ffns: Sequence[FFN]) -> dict[str, set[int]]:
    """The widths of the layers that read theirs from a config attribute, by that attribute."""
    widths: dict[str, set[int]] = {}
    for ffn in ffns:
        if ffn.stack.width_attribute is not None:
            widths.setdefault(ffn.stack.width_attribute, set()).add(ffn.width)
    return widths


def _fitting(body: nn.Module, config: PretrainedConfig, descriptions: Sequence[Stack]) -> Stack:
    """The first description of a stack that the model answers to.

    Raises:
        UnsupportedArchitecture: none; the message names what is missing for the one that comes closest.
    """
    missing = [tuple(_missing(body, config, stack)) for stack in descriptions]
    if () in missing:
        return descriptions[missing.index(())]
    raise UnsupportedArchitecture(
        f"{config.model_type}: this model has no {min(missing, key=len)[0]}; its row in {_TABLE} does not fit it"
    )


def _missing(body: nn.Module, config: PretrainedConfig, stack: Stack) -> Iterator[str]:
    """What a description of a stack names that the model does not have."""
    for name, wanted in stack.when.items():
        if (value := config_value(config, name)) != wanted:
            yield f"{name} {wanted!r} in its config, but {value!r}"
    blocks = _module(body, stack.blocks)
    if blocks is None:
        yield f"module {stack.blocks!r} below {type(body).__name__}"
    elif not isinstance(blocks, nn.ModuleList):
        yield f"list of blocks at {stack.blocks!r}"
    else:
        for block in blocks:
            paths = (*stack.modules, *(() if stack.routing else stack.projections))
            yield from (
                f"module {path!r} below {type(block).__name__}" for path in paths if _module(block, path) is None
            )
            if stack.routing is not None:
                yield from _missing_in_experts(_module(block, stack.routing.experts), stack)


def _missing_in_experts(experts: nn.Module | None, stack: Stack) -> Iterator[str]:
    if isinstance(experts, nn.ModuleList):
        yield from (
            f"module {path!r} below {type(expert).__name__}"
            for expert in experts
            for path in stack.projections
            if _module(expert, path) is None
        )
    elif experts is not None:
        held = dict(experts.named_parameters(recurse=False))
        yield from (f"parameter {name!r} in {type(experts).__name__}" for name in stack.projections if name not in held)


def _resolve(body: nn.Module, stack: Stack, config: PretrainedConfig) -> list[FFN]:
    blocks = body.get_submodule(stack.blocks)
    assert isinstance(blocks, nn.ModuleList)
    found = [_ffn(stack, layer, block, len(blocks), config) for layer, block in enumerate(blocks)]
    for ffn in found:
        ffn.check()
    return found


def _ffn(stack: Stack, layer: int, block: nn.Module, blocks: int, config: PretrainedConfig) -> FFN:
    if stack.routing is not None:
        wanted, normalised = stack.routing.top_k, stack.routing.normalised
        top_k = int(getattr(config, wanted))
        return Mixture(stack, layer, block, 1, top_k, normalised is None or bool(getattr(config, normalised)))
    return FFN(stack, layer, block, 1 if stack.repeats is None else int(getattr(config, stack.repeats)) // blocks)


def _refuse_tied(model: PreTrainedModel, ffns: Sequence[FFN]) -> None:
    """Weights with several names would be cut under one of them and used under the other."""
    names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for ffn in ffns:
        if any(names[id(parameter)] > 1 for parameter in ffn.parameters):
            raise UnsupportedArchitecture(
                f"{model.config.model_type}: the FFN weights of {ffn.stack.name} layer {ffn.layer} are tied to others, "
                f"of which its row in {_TABLE} knows nothing; untie them before pruning"
            )


def _module(parent: nn.Module, path: str) -> nn.Module | None:
    try:
        return parent.get_submodule(path)
    except AttributeError:
        return None

"""Writes the Python file of an ``auto_map`` checkpoint: stock classes whose layers are narrowed when they are built."""

from __future__ import annotations

from functools import cache
from pprint import pformat
from typing import Any

import transformers
from transformers import PreTrainedModel

from skillprune.families import FAMILIES, base_model

MODULE = "modeling_skillprune"
WIDTHS_KEY = "skillprune_widths"
"""Key of ``config.json`` that holds widths per stack and layer."""

_CODE = '''"""Stock transformers classes with FFN layers of the widths that config.json names under "{key}"."""

import transformers
from torch import nn

# Where the stacks keep their FFNs, most specific first: paths differ between versions of transformers.
STACKS = {stacks}


def _module(parent, path):
    try:
        return parent.get_submodule(path)
    except AttributeError:
        return None


def _parts(block, experts):
    """What has projections: the block, its experts one by one, or the module that holds those of all experts."""
    found = block if experts is None else _module(block, experts)
    return found if isinstance(found, nn.ModuleList) else [found]


def _holds(part, path):
    return part is not None and (isinstance(getattr(part, path, None), nn.Parameter) or _module(part, path) is not None)


def _resized(parameter, shape):
    kept = [old if new is None else new for old, new in zip(parameter.shape[-len(shape) :], shape)]
    return nn.Parameter(parameter.new_empty([*parameter.shape[: -len(shape)], *kept]))


def _resize(part, path, rows, columns):
    """Gives a projection another number of rows or columns; None leaves it."""
    if isinstance(getattr(part, path, None), nn.Parameter):
        setattr(part, path, _resized(getattr(part, path), (rows, columns)))
        return
    module = part.get_submodule(path)
    transposed = hasattr(module, "nf")
    module.weight = _resized(module.weight, (columns, rows) if transposed else (rows, columns))
    if module.bias is not None and rows is not None:
        module.bias = _resized(module.bias, (rows,))
    for name, size in zip(("nf", "nx") if transposed else ("out_features", "in_features"), (rows, columns)):
        if size is not None:
            setattr(module, name, size)


def _narrow(model):
    widths = getattr(model.config, "{key}", None) or {{}}
    names = (model.base_model_prefix, "model")
    found = [getattr(model, name) for name in names if name and isinstance(getattr(model, name, None), nn.Module)]
    body = (found or [model])[0]
    for stack, layers in widths.items():
        for description in STACKS[stack]:
            blocks = _module(body, description["blocks"])
            parts = [_parts(block, description["experts"]) for block in blocks or ()]
            paths = [*description["into"], description["down"]]
            if parts and all(_holds(part, path) for several in parts for part in several for path in paths):
                break
        else:
            raise ValueError(f"this version of transformers keeps the FFNs of {{type(model).__name__}} elsewhere")
        for several, width in zip(parts, layers):
            for part in several:
                for path in description["into"]:
                    _resize(part, path, description["rows"] * width, None)
                _resize(part, description["down"], None, width)


{classes}'''

_CLASS = '''class {name}(transformers.{name}):
    """The stock class with narrower layers; transformers knows by its name how to read its weights."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        _narrow(self)

    @classmethod
    def is_custom_code(cls):
        """Its weights have the names of the stock class's; transformers 5 must translate them in the same way."""
        return False
'''


def modelling_code(model: PreTrainedModel) -> str:
    """The file's text, for the model with its head and without; it imports nothing but torch and transformers."""
    names = sorted(set(auto_classes(model).values()))
    return _CODE.format(
        key=WIDTHS_KEY,
        stacks=pformat(_stacks(model.config.model_type), width=100, sort_dicts=False),
        classes="\n\n".join(_CLASS.format(name=name) for name in names),
    )


def auto_classes(model: PreTrainedModel) -> dict[str, str]:
    """The stock class by the Auto class that loads it, for the model with its head and without.

    Empty for a class that no Auto class loads.
    """
    wanted = {type(model).__name__, type(base_model(model)).__name__}
    found: dict[str, str] = {}
    for name, auto in _auto_models().items():
        classes = getattr(auto, "_model_mapping", {}).get(type(model.config), ())
        several = classes if isinstance(classes, tuple) else (classes,)
        # Nothing in T5 is its model without a head: the parts of both stand side by side.
        fitting = [each.__name__ for each in several if each.__name__ in wanted or name == "AutoModel"]
        if fitting:
            found[name] = fitting[0]
    return found


@cache
def _auto_models() -> dict[str, Any]:
    return {name: getattr(transformers, name) for name in dir(transformers) if name.startswith("AutoModel")}


def loader_of(model: PreTrainedModel) -> str:
    """The class of transformers that users load the model with: an Auto class of its task, or its own class."""
    autos = [auto for auto, name in auto_classes(model).items() if name == type(model).__name__]
    wide = {"AutoModelForPreTraining", "AutoModelWithLMHead"}  # each loads heads of several tasks
    return next((auto for auto in autos if auto not in wide), type(model).__name__)


def _stacks(model_type: str) -> dict[str, list[dict[str, Any]]]:
    return {
        descriptions[0].name: [
            {
                "blocks": stack.blocks,
                "experts": None if stack.routing is None else stack.routing.experts,
                "into": [path for path in (stack.up, stack.gate) if path is not None],
                "rows": 2 if stack.fused else 1,
                "down": stack.down,
            }
            for stack in descriptions
        ]
        for descriptions in FAMILIES[model_type]
    }

"""Undoes what exporters leave behind in a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PretrainedConfig, PreTrainedModel


@contextmanager
def kept(model: PreTrainedModel) -> Iterator[None]:
    """Undoes what exporters write into the model's configs, and into the model in place of its ``forward``."""
    before, forward = [(config, dict(vars(config))) for config in _configs_of(model)], vars(model).get("forward")
    try:
        yield
    finally:
        for config, values in before:
            vars(config).clear()
            vars(config).update(values)
        vars(model).pop("forward", None)
        if forward is not None:  # that of a library which wraps models, as accelerate does
            model.forward = forward


def _configs_of(model: PreTrainedModel) -> list[PretrainedConfig]:
    """The configs of the model and of the models within it, each once."""
    found = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    return list(found.values())

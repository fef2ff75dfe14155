"""Runs a model with vectors in its soft-prompt slots, called like the model itself; tuning them is left to others.

A classifier's slots stand behind the first token: the head of a BERT-like model reads index 0, which has to stay [CLS].
Those of a language model stand in front, where PEFT puts them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from skillprune.activations.hooks import frozen
from skillprune.answers import Classifier, TaskModel
from skillprune.errors import MissingExtra, UnsupportedArchitecture
from skillprune.prompts.slots import without_slots

Voice = Callable[..., Any]
"""Takes a model's keyword arguments, with room for the slots, and returns the model's output."""

_FIRST = 1


def slots_after(subject: TaskModel) -> int:
    """How many real tokens stand in front of the slots."""
    return _FIRST if isinstance(subject, Classifier) else 0


def make_voice(subject: TaskModel, vectors: Tensor, head: Mapping[str, Tensor]) -> Voice:
    """The model of ``subject`` with ``vectors`` ``(tokens, hidden)`` in its slots, and ``head`` in place of its own.

    Raises:
        MissingExtra: the model is a language model, and PEFT is not installed.
        UnsupportedArchitecture: the model is a classifier with a decoder.
    """
    if not isinstance(subject, Classifier):
        return _through_peft(subject.model, vectors)
    if subject.model.config.is_encoder_decoder:
        raise UnsupportedArchitecture(
            f"{subject.model.config.model_type}: soft prompts of classifiers need an encoder or a decoder alone, "
            "this one has both; language models of either kind are supported"
        )
    return _by_hand(subject.model, vectors, head)


def embed(model: PreTrainedModel, token: int) -> Tensor:
    """What the model's blocks would be given for a token, before positions: ``(hidden,)``, where it is computed."""
    table: Any = model.get_input_embeddings()
    device = table.weight.device
    with torch.no_grad():
        # The hooks that move an offloaded model's weights move its inputs too.
        embedded: Tensor = table(torch.tensor([[token]], device=None if device.type == "meta" else device))
    return embedded[0, 0]


def _by_hand(model: PreTrainedModel, vectors: Tensor, head: Mapping[str, Tensor]) -> Voice:
    """Vectors put over the embedded fillers, so that a model that looks at ``input_ids`` still finds them.

    RoBERTa counts positions there, and the head of a causal model looks there for the last token before the padding.
    """

    def put(_: nn.Module, __: object, embedded: Tensor) -> Tensor:
        inserted = vectors.to(embedded).expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :_FIRST], inserted, embedded[:, _FIRST + len(vectors) :]], dim=1)

    def speak(**inputs: Any) -> Any:
        handle = model.get_input_embeddings().register_forward_hook(put)
        try:
            if not head:
                return model(**inputs)
            replaced = {name: value.to(model.get_parameter(name).dtype) for name, value in head.items()}
            return functional_call(model, replaced, (), inputs)
        finally:
            handle.remove()

    return speak


def _through_peft(model: PreTrainedModel, vectors: Tensor) -> Voice:
    try:
        from peft import PromptTuningConfig, get_peft_model
    except ImportError as missing:
        raise MissingExtra("soft prompts of language models", "prompts") from missing
    config = PromptTuningConfig(
        task_type=_peft_task(model),
        num_virtual_tokens=len(vectors),
        token_dim=vectors.shape[1],
        num_transformer_submodules=1,
        # Prompt tuning uses neither, yet PEFT insists on finding them, and does not under DistilBERT's names.
        num_layers=1,
        num_attention_heads=1,
    )
    prompted: Any
    with frozen(model), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # PEFT 0.21 asks transformers 5.23 for a property under its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        prompted = get_peft_model(model, config)
    # PEFT takes the first weight with as many rows as the vocabulary for the embeddings; the model knows them.
    prompted.word_embeddings = model.get_input_embeddings()
    prompted.prompt_encoder["default"].embedding.weight = (
        vectors if isinstance(vectors, nn.Parameter) else nn.Parameter(vectors, requires_grad=False)
    )

    def speak(*, input_ids: Tensor, attention_mask: Tensor, **others: Any) -> Any:
        dropped: dict[str, Tensor] = {
            name: others.pop(name) for name in ("position_ids", "token_type_ids") if name in others
        }
        with _handed_over(model, dropped):
            return prompted(
                input_ids=without_slots(input_ids, len(vectors)),
                attention_mask=without_slots(attention_mask, len(vectors)),
                **others,
            )

    return speak


def _peft_task(model: PreTrainedModel) -> str:
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if model.can_generate() else "FEATURE_EXTRACTION"


@contextmanager
def _handed_over(model: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Gives the model inputs that PEFT would drop with a warning: position ids, and which text a token belongs to."""

    def add(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**given, **inputs}

    handle = model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()

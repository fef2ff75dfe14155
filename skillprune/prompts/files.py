"""Soft prompts as files: safetensors with the vectors and what they belong to; tuning them is left to others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skillprune.answers import TaskModel
from skillprune.errors import CheckpointError
from skillprune.prompts.prompted import Prompted, PromptSettings, SoftPrompt
from skillprune.prompts.voices import embed

_FORMAT = "skillprune soft prompt 1"
_VECTORS, _HEAD = "vectors", "head."


def save_prompt(prompted: Prompted, path: Path | str) -> None:
    """Writes a prompt to a file of its own: vectors, head if it was trained, and metadata; never the model."""
    prompt = prompted.prompt
    tensors = {_VECTORS: prompt.vectors, **{_HEAD + name: value for name, value in prompt.head.items()}}
    about = {
        "kind": _kind(prompted.subject),
        "model_type": prompted.model.config.model_type,
        "settings": asdict(prompt.settings),
        "losses": prompt.losses,
    }
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(stored, path, metadata={"format": _FORMAT, "prompt": json.dumps(about)})


def load_prompt(subject: TaskModel, path: Path | str) -> Prompted:
    """Puts a saved prompt to a model: the one it was tuned for, pruned or not.

    Raises:
        CheckpointError: the file is missing or holds no soft prompt, or the prompt is for another kind of task, or for
            a model of another architecture, hidden size or head.
    """
    tensors, about = _read(path)
    vectors, kind, model_type = tensors.pop(_VECTORS), _kind(subject), subject.model.config.model_type
    if (about["kind"], about["model_type"]) != (kind, model_type):
        found = f"{about['kind']} of type {about['model_type']}"
        raise CheckpointError(f"{path}: the soft prompt belongs to a {found}, not to a {kind} of type {model_type}")
    somewhere = embed(subject.model, 0)
    if vectors.shape[1] != len(somewhere):
        sizes = f"{vectors.shape[1]}, the model's embeddings {len(somewhere)}"
        raise CheckpointError(f"{path}: the soft prompt belongs to another model: its vectors have size {sizes}")
    head = {name.removeprefix(_HEAD): value.to(somewhere.device) for name, value in tensors.items()}
    shapes = {name: value.shape for name, value in subject.model.named_parameters()}
    for name, value in head.items():
        if shapes.get(name) != value.shape:
            raise CheckpointError(
                f"{path}: the soft prompt has a head of its own, whose {name} does not fit the model's"
            )
    prompt = SoftPrompt(
        vectors.to(somewhere.device), PromptSettings(**about["settings"]), head, tuple(map(float, about["losses"]))
    )
    return Prompted(subject, prompt)


def _read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as unreadable:
        raise CheckpointError(f"{path}: the soft prompt cannot be read: {unreadable}") from unreadable
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path} holds no soft prompt")
    return tensors, json.loads(metadata["prompt"])


def _kind(subject: TaskModel) -> str:
    return type(subject).__name__.lower()

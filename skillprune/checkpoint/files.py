"""Finds the files of a checkpoint: in a directory or, through its cache, on the hub."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open

_WEIGHTS = "model.safetensors"


def file_of(location: str | Path, name: str, revision: str | None = None) -> Path | None:
    """A file of a checkpoint, downloaded if need be; none if the checkpoint has no such file."""
    if Path(location).is_dir():
        path = Path(location, name)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(str(location), name, revision=revision))
    except EntryNotFoundError:  # also where the hub cannot be asked, and the cache does not hold it
        return None


def dtype_of(location: str | Path, revision: str | None = None) -> torch.dtype:
    """Number format of the first weight with one, as transformers finds it where no config says it."""
    path = file_of(location, _WEIGHTS, revision)
    if path is None and (index := file_of(location, f"{_WEIGHTS}.index.json", revision)) is not None:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        path = file_of(location, min(shards), revision)
    if path is not None:
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                weight: torch.Tensor = weights.get_tensor(name)
                if weight.is_floating_point():
                    return weight.dtype
    return torch.float32

"""Loads a classifier and its tokenizer from a directory, the hub or the embedded demo, and refuses unsafe weights."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from skillprune.demo import reviews_tiny
from skillprune.errors import CheckpointError, ResourceFailure
from skillprune.families import position_limit
from skillprune.progress import Progress, silent
from skillprune.recipe import ModelSpec

Attention = Literal["eager", "sdpa"]
"""How attention is computed: spelled out, or by PyTorch's fused kernel."""

DEMO = "builtin:reviews-tiny"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json"),
    *("spiece.model", "sentencepiece.bpe.model", "bpe.codes"),
)

_BLOCK = 1 << 20
_WRONG_NAMES = (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError)


@dataclass(frozen=True, eq=False)
class Source:
    """A model ready to be worked on.

    Attributes:
        model: the classifier, in the dtype it is computed in.
        tokenizer: its tokenizer.
        dtype: dtype its weights are stored in, and the pruned ones will be.
        fingerprint: hash of the files, or of hub id and revision.
        hub_id: its id on the hub, none for a directory or the demo.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    dtype: torch.dtype
    fingerprint: str
    hub_id: str | None


def load_source(spec: ModelSpec, *, attention: Attention = "sdpa", progress: Progress = silent) -> Source:
    """Loads what a recipe's ``model`` names; safetensors only, no remote code.

    Args:
        spec: directory, hub id or embedded demo, with revision, dtype and device.
        attention: ``sdpa`` to compute with, ``eager`` to export from.
        progress: told about the demo's training.

    Raises:
        CheckpointError: the directory is not a transformers checkpoint, has no safetensors weights, no tokenizer, or
            one that does not fit the model.
        ResourceFailure: the hub could not be reached.
    """
    location = str(reviews_tiny(progress)) if spec.name == DEMO else spec.name
    directory = Path(location)
    if directory.is_dir():
        _refuse_unsafe(directory)
    try:
        # Named, because without it transformers asks on a terminal whether to run the checkpoint's code.
        config = AutoConfig.from_pretrained(location, revision=spec.revision, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(location, revision=spec.revision, trust_remote_code=False)
        model = load_classifier(
            location, dtype=spec.dtype, attention=attention, revision=spec.revision, device_map=spec.device_map
        )
    except OSError as failed:
        users_fault = directory.is_dir() or isinstance(failed.__cause__, _WRONG_NAMES)
        kind = CheckpointError if users_fault else ResourceFailure
        raise kind(f"model {spec.name!r} cannot be loaded: {_first_line(failed)}") from failed
    except torch.OutOfMemoryError as full:
        raise ResourceFailure(f"model {spec.name!r} does not fit into the device's memory") from full
    except (ValueError, TypeError, RuntimeError, SafetensorError) as unreadable:
        # What transformers raises for configs it does not know, sizes that do not fit and truncated weights.
        raise CheckpointError(f"model {spec.name!r} cannot be loaded: {_first_line(unreadable)}") from unreadable
    _fit_tokenizer_(tokenizer, model)
    stored = getattr(config, "dtype", None)
    return Source(
        model=model,
        tokenizer=tokenizer,
        dtype=stored if isinstance(stored, torch.dtype) else torch.float32,
        fingerprint=fingerprint(directory) if directory.is_dir() else _digest(location, _commit(config, spec)),
        hub_id=None if directory.is_dir() else location,
    )


def load_classifier(
    location: str | Path,
    *,
    dtype: str,
    attention: Attention = "sdpa",
    revision: str | None = None,
    device_map: str | None = None,
) -> PreTrainedModel:
    """`from_pretrained` with everything named that the two transformers lines have different defaults for."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        location,
        revision=revision,
        dtype=getattr(torch, dtype),
        device_map=device_map,
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise CheckpointError(
            f"{location} has no weights for {missing}: it is not a fine-tuned classifier, and skills are found in one"
        )
    classifier: PreTrainedModel = model.eval()
    return classifier


def fingerprint(directory: Path) -> str:
    """Hash of the names and contents of a checkpoint's config, weights and tokenizer; its other files do not matter."""
    digest = hashlib.sha256()
    names = (*TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
    present = [path for path in map(directory.joinpath, ("config.json", *names)) if path.is_file()]
    for path in sorted([*present, *directory.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _refuse_unsafe(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} holds no config.json: it is not a transformers checkpoint")
    if any(directory.glob("*.safetensors")):
        _refuse_wordless(directory)
        return
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{directory} holds pickled weights only ({pickled[0]}); unpickling can run code. Convert it once, where "
            "you trust it, with AutoModelForSequenceClassification: from_pretrained(DIR), then "
            "save_pretrained(DIR, safe_serialization=True)"
        )
    raise CheckpointError(f"{directory} holds no *.safetensors weights")


def _fit_tokenizer_(tokenizer: Tokenizer, model: PreTrainedModel) -> None:
    """Limits the tokenizer to the inputs the model can read.

    Raises:
        CheckpointError: it has more tokens than the model has embeddings.
    """
    rows = model.config.vocab_size
    if len(tokenizer) > rows:
        raise CheckpointError(f"the tokenizer has {len(tokenizer)} tokens, the model embeds only {rows}")
    tokenizer.model_max_length = min(tokenizer.model_max_length, position_limit(model.config) or sys.maxsize)


def _refuse_wordless(directory: Path) -> None:
    # Without these files transformers 5 makes up a tokenizer that knows no word.
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{directory} holds no tokenizer; there should be one of {', '.join(TOKENIZER_FILES)}")


def _commit(config: PretrainedConfig, spec: ModelSpec) -> str:
    """The commit the hub served, which a branch name does not tell."""
    return str(getattr(config, "_commit_hash", None) or spec.revision or "main")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

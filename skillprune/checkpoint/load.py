"""Loads a model and its tokenizers from a directory, the hub or the embedded demo, and refuses unsafe weights."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from skillprune.checkpoint.files import dtype_of
from skillprune.checkpoint.quantizer import METHOD
from skillprune.checkpoint.reading import unpad_, without_code_
from skillprune.checkpoint.record import read_record
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

AUTO_CLASSES = {
    "text-classification": AutoModelForSequenceClassification,
    "masked-lm": AutoModelForMaskedLM,
    "causal-lm": AutoModelForCausalLM,
    "language-modeling": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
"""What builds the model of each kind of task."""

_BLOCK = 1 << 20
_WRONG_NAMES = (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError)


@dataclass(frozen=True, eq=False)
class Source:
    """A model ready to be worked on.

    Attributes:
        model: the model with the head of its task, in the dtype it is computed in.
        tokenizer: its tokenizer.
        target_tokenizer: what writes its targets, if not the same.
        dtype: dtype its weights are stored in, and the pruned ones will be.
        fingerprint: hash of the files, or of hub id and revision.
        hub_id: its id on the hub, none for a directory or the demo.
        history: what is known of every pruning that led to it, the first one first.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    dtype: torch.dtype
    fingerprint: str
    hub_id: str | None
    target_tokenizer: Tokenizer | None = None
    history: tuple[Mapping[str, Any], ...] = ()


def load_source(
    spec: ModelSpec,
    *,
    task_type: str = "text-classification",
    target_tokenizer: str | None = None,
    attention: Attention = "sdpa",
    progress: Progress = silent,
) -> Source:
    """Loads what a recipe's ``model`` names; safetensors only, no remote code.

    Args:
        spec: directory, hub id or embedded demo, with revision, dtype and device.
        task_type: kind of task, which decides on the head.
        target_tokenizer: directory of the tokenizer that writes targets, below the checkpoint or by itself.
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
        refuse_unsafe(directory)
        _refuse_wordless(directory)
    try:
        # Named, because without it transformers asks on a terminal whether to run the checkpoint's code.
        config = AutoConfig.from_pretrained(location, revision=spec.revision, trust_remote_code=False)
        refuse_quantised(config, spec.name)
        tokenizer = AutoTokenizer.from_pretrained(location, revision=spec.revision, trust_remote_code=False)
        model = load_model(
            location,
            task_type=task_type,
            dtype=spec.dtype,
            attention=attention,
            revision=spec.revision,
            device_map=spec.device_map,
        )
        writer = _target_tokenizer(location, target_tokenizer, spec) if target_tokenizer else None
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
    return Source(
        model=model,
        tokenizer=tokenizer,
        dtype=_stored_dtype(config, location, spec.revision),
        fingerprint=fingerprint(directory) if directory.is_dir() else _digest(location, _commit(config, spec)),
        hub_id=None if directory.is_dir() else location,
        target_tokenizer=writer,
        history=_history(location, spec.revision),
    )


def _stored_dtype(config: PretrainedConfig, location: str, revision: str | None) -> torch.dtype:
    """What the weights are stored in, as the config says or, if it does not, they themselves."""
    stored = getattr(config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else dtype_of(location, revision)


def _history(location: str, revision: str | None) -> tuple[Mapping[str, Any], ...]:
    """What was pruned before, as far as the checkpoint tells."""
    record = read_record(location, revision)
    return () if record is None else tuple(record.history)


def load_model(
    location: str | Path,
    *,
    dtype: str,
    task_type: str = "text-classification",
    attention: Attention = "sdpa",
    revision: str | None = None,
    device_map: str | None = None,
) -> PreTrainedModel:
    """`from_pretrained` with everything named that the two transformers lines have different defaults for.

    A pruned checkpoint has its real widths, whatever form it is in, and no code it carries is run. Attention is eager
    where the architecture has no other.
    """
    auto = AUTO_CLASSES[task_type]
    config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
    with warnings.catch_warnings():
        # A layer that was pruned to nothing has empty matrices, and nothing in them to initialise is just right.
        warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
        model, report = auto.from_pretrained(
            location,
            config=without_code_(config),
            revision=revision,
            dtype=getattr(torch, dtype),
            device_map=device_map,
            attn_implementation=attention if _has_sdpa(auto, config) else "eager",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise CheckpointError(
            f"{location} has no weights for {missing}: it was not trained for {task_type}, and skills are found in "
            "what was; fine-tune it first, or choose another task.type"
        )
    loaded: PreTrainedModel = model.eval()
    _refuse_two_way(loaded, location, task_type)
    record = read_record(location, revision)
    if record is not None and record.form == "padded":
        unpad_(loaded, record)
    return loaded


def _has_sdpa(auto: Any, config: PretrainedConfig) -> bool:
    """Whether what an Auto class builds from a config can use PyTorch's fused kernel of attention."""
    return bool(getattr(auto._model_mapping.get(type(config), None), "_supports_sdpa", True))


def _refuse_two_way(model: PreTrainedModel, location: str | Path, task_type: str) -> None:
    """A masked language model can be loaded as a causal one, and would see the words it should predict."""
    config = model.config
    two_way = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder
    if task_type in ("causal-lm", "language-modeling") and two_way and not getattr(config, "is_decoder", False):
        raise CheckpointError(
            f"{location} is a {config.model_type} model, which reads in both directions and cannot predict the next "
            f"word, as {task_type} asks for; set task.type to masked-lm"
        )


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


def _target_tokenizer(location: str, name: str, spec: ModelSpec) -> Tokenizer:
    inside = Path(location, name)
    if inside.is_dir() or Path(name).is_dir():
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            inside if inside.is_dir() else name, trust_remote_code=False
        )
        return tokenizer
    tokenizer = AutoTokenizer.from_pretrained(location, subfolder=name, revision=spec.revision, trust_remote_code=False)
    return tokenizer


def refuse_unsafe(directory: Path) -> None:
    """Looks at the files of a checkpoint.

    Raises:
        CheckpointError: there is no config, or there are no safetensors weights.
    """
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} holds no config.json: it is not a transformers checkpoint")
    if any(directory.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{directory} holds pickled weights only ({pickled[0]}); unpickling can run code. Convert it once, where "
            "you trust it, with AutoModelForSequenceClassification: from_pretrained(DIR), then "
            "save_pretrained(DIR, safe_serialization=True)"
        )
    raise CheckpointError(f"{directory} holds no *.safetensors weights")


def refuse_quantised(config: PretrainedConfig, name: str) -> None:
    """Looks at how a checkpoint's weights are stored.

    Raises:
        CheckpointError: they are quantised.
    """
    quantised = getattr(config, "quantization_config", None)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
    if quantised is not None and method != METHOD:
        raise CheckpointError(
            f"{name} is already quantised ({method}); prune the checkpoint it was made from, and quantise what comes "
            "out"
        )


def _fit_tokenizer_(tokenizer: Tokenizer, model: PreTrainedModel) -> None:
    """Limits the tokenizer to the inputs the model can read.

    Raises:
        CheckpointError: it has more tokens than the model has embeddings, special ones left out, which no text has.
    """
    rows = getattr(model.config.get_text_config(), "vocab_size", sys.maxsize)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if any(number >= rows and token not in special for token, number in tokenizer.get_vocab().items()):
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

"""Exports models that write, with their caches, and refuses files that do not write what PyTorch writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from skillprune.activations import evaluating
from skillprune.errors import ResourceFailure, UnsupportedArchitecture
from skillprune.export.artifact import OnnxArtifact
from skillprune.export.constant import constant_where_empty
from skillprune.export.files import SPLIT_ABOVE, data_of
from skillprune.export.generation.decoder import write_decoder
from skillprune.export.generation.encoder_decoder import write_encoder_decoder
from skillprune.export.generation.parity import check_writer
from skillprune.export.generation.stored import store
from skillprune.export.generation.tracing import spelled_out
from skillprune.export.staging import open_checked
from skillprune.export.torchscript import OPSET
from skillprune.export.traceable import check_traceable
from skillprune.generation import DECODER, Feeds, load_writer

_MOVING_ROTATIONS = {"dynamic", "longrope"}
"""Rotary embeddings that change with the length of the text, by a branch that no trace can follow."""


def check_writable(model: PreTrainedModel) -> None:
    """Refuses models whose writing no trace can follow.

    Raises:
        UnsupportedArchitecture: it reads no texts, is a mixture of experts, or its rotary embeddings change.
    """
    name = type(model).__name__
    if model.main_input_name != "input_ids":
        raise UnsupportedArchitecture(f"{name} reads {model.main_input_name}; writers of ONNX files read texts only")
    check_traceable(model)
    if kind := _rotations(model.config.to_dict()) & _MOVING_ROTATIONS:
        kinds = ", ".join(sorted(kind))
        raise UnsupportedArchitecture(
            f"{name} has rotary embeddings of type {kinds}: they change with a text's length, so no trace fits all"
        )


def export_decoder(
    model: PreTrainedModel,
    texts: Sequence[Feeds],
    directory: Path,
    *,
    split_above: int = SPLIT_ABOVE,
) -> OnnxArtifact:
    """Writes ``model.onnx``, which reads a text and continues it, and compares it with PyTorch on ``texts``.

    The directory is one that optimum's ``ORTModelForCausalLM`` reads; `write_decoder` names inputs and outputs.

    Args:
        model: a language model in float32.
        texts: ``input_ids`` and ``attention_mask`` ``(batch, sequence)``, padded on the left; of two shapes at least.
        directory: created where it is missing. Older files stay until the new ones have passed.
        split_above: bytes of weights above which they are stored in ``model.onnx.data``.

    Returns:
        The artefact, whose path is the directory.

    Raises:
        UnsupportedArchitecture: no trace can follow the model: a mixture of experts, rotary embeddings that change.
        ParityError: a logit differs by more than the tolerance; nothing is kept.
        VerificationFailed: the exporter cannot write the model, or ONNX Runtime cannot load it.
        ResourceFailure: a file could not be written.
    """
    _refuse_other(model, encoder_decoder=False)
    return _export(model, texts, directory, lambda traced: write_decoder(model, traced / DECODER), split_above)


def export_encoder_decoder(
    model: PreTrainedModel,
    texts: Sequence[Feeds],
    directory: Path,
    *,
    split_above: int = SPLIT_ABOVE,
) -> OnnxArtifact:
    """Writes an encoder and a decoder's first and later steps, and compares them with PyTorch on ``texts``.

    They are ``encoder_model.onnx``, ``decoder_model.onnx`` and ``decoder_with_past_model.onnx``, which optimum's
    ``ORTModelForSeq2SeqLM`` reads; `write_encoder_decoder` names inputs and outputs.

    Args:
        model: an encoder-decoder of texts in float32.
        texts: ``input_ids`` and ``attention_mask`` ``(batch, encoder_sequence)`` of two shapes at least.
        directory: created where it is missing. Older files stay until the new ones have passed.
        split_above: bytes of weights of one graph above which they are stored beside it.

    Returns:
        The artefact, whose path is the directory.

    Raises:
        UnsupportedArchitecture: it reads no texts.
        ParityError: a logit differs by more than the tolerance; nothing is kept.
        VerificationFailed: the exporter cannot write the model, or ONNX Runtime cannot load it.
        ResourceFailure: a file could not be written.
    """
    _refuse_other(model, encoder_decoder=True)
    return _export(model, texts, directory, lambda traced: write_encoder_decoder(model, traced), split_above)


def _export(
    model: PreTrainedModel,
    texts: Sequence[Feeds],
    directory: Path,
    write: Callable[[Path], None],
    split_above: int,
) -> OnnxArtifact:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as place,
            evaluating(model),
            spelled_out(model),
        ):
            traced, fresh = Path(place, "traced"), Path(place, "fresh")
            traced.mkdir()
            fresh.mkdir()
            with constant_where_empty(model):
                write(traced)
            for graph in sorted(traced.glob("*.onnx")):
                store(graph, fresh / graph.name, split_above=split_above)
            _save_configs(model, fresh)
            difference, tolerance = check_writer(model, load_writer(fresh, open_checked), texts)
            files = _replace(fresh, directory)
    except OSError as failed:
        raise ResourceFailure(f"{directory} could not be written: {failed}") from failed
    size = sum(file.stat().st_size for file in files if file.suffix != ".json")
    return OnnxArtifact("fp32", directory, size, "torchscript", OPSET, difference, tolerance)


def _replace(fresh: Path, directory: Path) -> list[Path]:
    """Moves the files where they belong, weights before the graphs that read them; older weights go."""
    directory.mkdir(exist_ok=True)
    found = sorted(fresh.iterdir(), key=lambda file: (file.suffix != ".data", file.name))
    placed = [directory / file.name for file in found]
    for file, place in zip(found, placed, strict=True):
        os.replace(file, place)
    graphs = [place for place in placed if place.suffix == ".onnx"]
    for older in set(map(data_of, graphs)) - set(placed):
        older.unlink(missing_ok=True)
    return placed


def _save_configs(model: PreTrainedModel, directory: Path) -> None:
    """Both configs, without the widths of a pruned model: a graph has them, and whoever reads it needs no plug-in."""
    config = deepcopy(model.config)
    for name in ("quantization_config", "_pre_quantization_dtype"):  # 4.57 writes the latter if the former is missing
        if hasattr(config, name):
            delattr(config, name)
    config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)


def _refuse_other(model: PreTrainedModel, *, encoder_decoder: bool) -> None:
    if bool(model.config.is_encoder_decoder) != encoder_decoder:
        right = "export_decoder" if encoder_decoder else "export_encoder_decoder"
        raise UnsupportedArchitecture(f"{type(model).__name__} is exported by {right}")
    check_writable(model)


def _rotations(config: Mapping[str, Any]) -> set[str]:
    """The kinds of rotary embeddings that a config asks for, in either version's words; layers may differ."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    asked = [given, *(each for each in given.values() if isinstance(each, dict))]
    return {str(each.get("rope_type", each.get("type"))) for each in asked}

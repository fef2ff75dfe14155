"""Writes a pruned checkpoint anew in another form, and proves that what was written loads and computes the same."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from skillprune.checkpoint import Record, load_stored, loader_of, save_pruned, verify_reload
from skillprune.errors import CheckpointError, OutputError
from skillprune.pipeline.directory import replacing
from skillprune.pipeline.modalities import arbitrary_inputs
from skillprune.pipeline.saving import TARGET_TOKENIZER
from skillprune.progress import Progress, silent
from skillprune.recipe import FORMS, Form
from skillprune.report import class_code, loading_section, with_loading_section

Dtype = Literal["float32", "float16", "bfloat16"]

_CARD = "README.md"
_WRITTEN_ANEW = {"config.json", "generation_config.json", "skillprune.json", "modeling_skillprune.py", _CARD}
_LEFT_BEHIND = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".data", ".py"}
"""Weights, and code."""


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        source: the checkpoint that was read.
        output: the one that was written.
        form_before: form of the first.
        form: form of the second.
        widths: neurons per stack and layer; those that only pad a layer do not count.
        dtype: number format of the weights.
        bytes_before: size of the weights of the first.
        bytes: size of the weights of the second.
        max_abs_diff: largest difference of what the written model computes in a fresh process.
        code: lines of Python that load it.
    """

    source: str
    output: str
    form_before: Form
    form: Form
    widths: Mapping[str, tuple[int, ...]]
    dtype: str
    bytes_before: int
    bytes: int
    max_abs_diff: float
    code: str

    def __str__(self) -> str:
        sizes = f"{self.bytes_before:,} -> {self.bytes:,} bytes of weights in {self.dtype}"
        return "\n".join(
            [
                f"{self.source} ({self.form_before}) -> {self.output} ({self.form})",
                *(f"  {stack}: {', '.join(map(str, widths))} neurons" for stack, widths in self.widths.items()),
                f"  {sizes}",
                f"  reloaded in a fresh process, largest difference {self.max_abs_diff:.1e}",
                "",
                self.code,
            ]
        )


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    form: Form,
    dtype: Dtype | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Writes a pruned checkpoint, in whatever form it is, in another one.

    The model computes the same in every form. Tokenizer and other small files come along; the model card is told how
    the new form is loaded. Before the directory appears, it has been loaded in a fresh process and compared.

    Args:
        source: directory that skillprune wrote.
        output: a new or empty directory.
        form: ``uniform``, ``per-layer``, ``padded`` or ``auto_map``, as for `save_pruned`.
        dtype: number format of the weights; None keeps the one they have.
        progress: told how far it is.

    Raises:
        CheckpointError: the source is not a pruned checkpoint, or its widths cannot be written in this form.
        OutputError: the output is not empty.
        VerificationFailed: what was written does not load, or computes something else; it is not kept.
        ResourceFailure: the disk failed.
    """
    source, output = Path(source), Path(output)
    if form not in FORMS:
        raise CheckpointError(f"no form {form!r}; there are {', '.join(FORMS)}")
    _refuse_occupied(output)
    progress("load", 0, 1)
    model, record = load_stored(source)
    progress("load", 1, 1)
    number_format = model.dtype if dtype is None else getattr(torch, dtype)
    with replacing(output) as fresh:
        difference = _write(model, record, source, fresh, form=form, dtype=number_format, progress=progress)
    return Conversion(
        source=str(source),
        output=str(output),
        form_before=record.form,
        form=form,
        widths={stack: tuple(widths) for stack, widths in record.widths.items()},
        dtype=str(number_format).removeprefix("torch."),
        bytes_before=_weight_bytes(source),
        bytes=_weight_bytes(output),
        max_abs_diff=difference,
        code=class_code(form, loader_of(model), str(output)),
    )


def _write(
    model: PreTrainedModel,
    record: Record,
    source: Path,
    fresh: Path,
    *,
    form: Form,
    dtype: torch.dtype,
    progress: Progress,
) -> float:
    progress("write", 0, 1)
    save_pruned(model, None, fresh, dtype=dtype, form=form, history=record.history)
    for path in _companions(source):
        shutil.copyfile(path, fresh / path.name)
    if (source / TARGET_TOKENIZER).is_dir():
        shutil.copytree(source / TARGET_TOKENIZER, fresh / TARGET_TOKENIZER)
    card = source / _CARD
    said = card.read_text(encoding="utf-8") if card.is_file() else ""
    section = loading_section(form, class_code(form, loader_of(model), "model"))
    (fresh / _CARD).write_text(with_loading_section(said, section), encoding="utf-8")
    progress("write", 1, 1)
    progress("reload in a fresh process", 0, 1)
    difference = verify_reload(model, fresh, arbitrary_inputs(model))
    progress("reload in a fresh process", 1, 1)
    return difference


def _refuse_occupied(output: Path) -> None:
    for place in (output, *output.parents):
        if place.exists() and not place.is_dir():
            raise OutputError(f"{place} is a file; name a directory with --output")
    if output.is_dir() and any(output.iterdir()):
        raise OutputError(f"{output} is not empty; choose another --output")


def _companions(source: Path) -> list[Path]:
    """The small files beside the weights, which are the same in every form: those of tokenizers and the like."""
    return [
        path
        for path in sorted(source.iterdir())
        if path.is_file()
        and path.name not in _WRITTEN_ANEW
        and not path.name.startswith(".")
        and not _LEFT_BEHIND.intersection(path.suffixes)
    ]


def _weight_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))

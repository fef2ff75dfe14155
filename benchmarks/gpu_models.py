"""Models with random weights and tokens drawn at random, for what is measured on a GPU: nothing is downloaded."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, PreTrainedModel

from skillprune.data import Batch
from skillprune.data.targets import next_tokens
from skillprune.pipeline.memory import PeakMemory

Made = TypeVar("Made")
Parts = Mapping[str, Callable[[], dict[str, Any]]]
"""What a section measures, by name: each part is measured and kept on its own."""

Sizes = Mapping[str, Any]
"""Of a model, as its config calls them."""

KEEP = 0.25
SEED = 0


@dataclass(frozen=True)
class Texts:
    """A calibration sample: texts of one length, none padded.

    Attributes:
        count: texts.
        tokens: of each text.
        batch: texts per batch.
    """

    count: int
    tokens: int
    batch: int

    @property
    def all_tokens(self) -> int:
        """Of all texts together."""
        return self.count * self.tokens


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        base: sizes of BERT-base.
        large: those of BERT-large.
        billion: those of a Llama of a billion parameters.
        seven: those of one of seven billion.
        shapes: (batch, sequence) at which encoders are timed.
        goal_shape: the one at which their goal is judged.
        prefill: (batch, sequence) of a prompt.
        sentences: calibration sample of the encoder.
        short: that of the smaller Llama.
        long: that of the larger one.
    """

    base: Sizes
    large: Sizes
    billion: Sizes
    seven: Sizes
    shapes: tuple[tuple[int, int], ...]
    goal_shape: tuple[int, int]
    prefill: tuple[int, int]
    sentences: Texts
    short: Texts
    long: Texts


def _sizes(hidden: int, width: int, layers: int, heads: int, vocabulary: int, **others: int) -> Sizes:
    return {
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        **others,
    }


FULL = Scale(
    base=_sizes(768, 3072, 12, 12, 30_522),
    large=_sizes(1024, 4096, 24, 16, 30_522),
    billion=_sizes(2048, 8192, 16, 32, 128_256, num_key_value_heads=8, tie_word_embeddings=True),
    seven=_sizes(4096, 11_008, 32, 32, 32_000, num_key_value_heads=32),
    shapes=tuple((batch, 128) for batch in (32, 1, 8, 64, 128, 256)),
    goal_shape=(32, 128),
    prefill=(8, 128),
    sentences=Texts(2048, 128, 64),
    short=Texts(128, 512, 8),
    long=Texts(128, 2048, 2),
)
SMALL = Scale(
    base=_sizes(64, 256, 2, 4, 100),
    large=_sizes(64, 256, 3, 4, 100),
    billion=_sizes(64, 256, 2, 4, 100, num_key_value_heads=2, tie_word_embeddings=True),
    seven=_sizes(64, 256, 3, 4, 100, num_key_value_heads=4),
    shapes=((2, 16), (1, 16)),
    goal_shape=(2, 16),
    prefill=(2, 16),
    sentences=Texts(32, 16, 8),
    short=Texts(16, 32, 4),
    long=Texts(16, 32, 4),
)


@dataclass(frozen=True)
class Bench:
    """What every section is told.

    Attributes:
        device: ``cuda`` or ``cpu``, for PyTorch and for ONNX Runtime.
        scale: how large everything is.
        rounds: rounds of every timing.
        folder: for files that are not kept.
    """

    device: str
    scale: Scale
    rounds: int
    folder: Path


def bert(sizes: Sizes) -> BertForSequenceClassification:
    """A classifier in float32 on the CPU, with the attention that exports best."""
    torch.manual_seed(SEED)
    config = BertConfig(**sizes, attn_implementation="eager")
    return BertForSequenceClassification(config).eval()


def llama(
    kind: type[PreTrainedModel],
    sizes: Sizes,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "eager",
) -> Any:
    """A Llama of some kind (language model, classifier) whose weights are drawn where they stay."""
    torch.manual_seed(SEED)
    config = LlamaConfig(**sizes, attn_implementation=attention, pad_token_id=0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return kind(config).eval()
    finally:
        torch.set_default_dtype(before)


def arrays(vocabulary: int, batch: int, sequence: int, *, padded: bool = False) -> dict[str, NDArray[np.int64]]:
    """Token ids and their mask, ``(batch, sequence)``; with ``padded`` the last text is half as long."""
    drawn = np.random.default_rng([SEED, batch, sequence])
    ids = drawn.integers(1, vocabulary, size=(batch, sequence), dtype=np.int64)
    mask = np.ones_like(ids)
    if padded:
        mask[-1, sequence // 2 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def batches(texts: Texts, vocabulary: int) -> tuple[Batch, ...]:
    """Random texts whose every token is to be predicted from those before it, labelled in turn."""
    drawn = torch.Generator().manual_seed(SEED)
    found = []
    for start in range(0, texts.count, texts.batch):
        ids = torch.randint(1, vocabulary, (texts.batch, texts.tokens), generator=drawn)
        mask = torch.ones_like(ids)
        indices = torch.arange(start, start + texts.batch)
        found.append(
            Batch(
                inputs={"input_ids": ids, "attention_mask": mask},
                labels=indices % 2,
                special=torch.zeros_like(ids, dtype=torch.bool),
                indices=indices,
                targets=next_tokens(ids, mask.bool()),
            )
        )
    return tuple(found)


def watched(device: str, work: Callable[[], Made]) -> tuple[Made, dict[str, float | None]]:
    """What ``work`` gives, with its seconds and the most memory that was held meanwhile, in MiB."""
    release()
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with PeakMemory() as memory:
        started = perf_counter()
        made = work()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = perf_counter() - started
    held = round(torch.cuda.max_memory_allocated() / 2**20) if on_gpu else None
    return made, {"seconds": round(seconds, 3), "peak_gpu_mib": held, "peak_rss_mib": round(memory.peak_mib)}


def release() -> None:
    """Gives back what is no longer needed, so that no measurement pays for the one before it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

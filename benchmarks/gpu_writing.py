"""How fast a Llama writes in ONNX Runtime on a GPU: the time of one more token, with a cache that stays there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ffn_share import keep_first_neurons_
from gpu_latency import THREADS
from gpu_models import KEEP, SEED, Bench, Parts, Sizes, arrays, llama, release
from transformers import LlamaForCausalLM

from skillprune.benchmark import check_provider, open_writer, paired_speedup
from skillprune.benchmark.timing import Prepare, Shape, measure_controlled, timed
from skillprune.export import size_of, to_float16
from skillprune.export.generation import export_decoder
from skillprune.generation import DECODER, Feeds
from skillprune.pipeline.inputs import PARITY_SHAPES
from skillprune.progress import silent


def decoding(name: str, sizes: Sizes, bench: Bench) -> Parts:
    """The dense and the pruned model after a prompt."""
    batch, sequence = bench.scale.prefill
    return {f"{name}, decoding, ONNX Runtime, {batch} x {sequence}": partial(next_token, name, sizes, bench)}


def next_token(name: str, sizes: Sizes, bench: Bench) -> dict[str, Any]:
    """Milliseconds of one step of all texts of a batch, right after the prompt.

    Raises:
        ProviderUnavailable: ONNX Runtime does not run on the device.
    """
    check_provider(bench.device)  # before minutes go into files that nothing can run
    dense, pruned = (written(keep, sizes, bench.folder / name / f"writer-{keep}") for keep in (1.0, KEEP))
    release()
    batch, sequence = bench.scale.prefill
    prompt = arrays(sizes["vocab_size"], batch, sequence)
    (controlled,) = measure_controlled(
        [partial(after_prompt, directory, prompt, bench.device) for directory in (dense, pruned, dense)],
        [Shape("decoding", (SEED, batch, sequence))],
        rounds=bench.rounds,
        seed=SEED,
        progress=silent,
    )
    dense_ms, pruned_ms = (controlled.samples.ms[..., column] for column in range(2))
    medians = {"dense": float(np.median(dense_ms)), "pruned": float(np.median(pruned_ms))}
    control = controlled.ratio
    return {
        "runtime": "ONNX Runtime, float16 files",
        "provider": bench.device,
        "batch": batch,
        "prompt": sequence,
        "step_ms": medians,
        "tokens_per_second": {model: 1000 * batch / ms for model, ms in medians.items()},
        "speedup": asdict(paired_speedup(dense_ms, pruned_ms, seed=(SEED, batch, sequence))),
        "control": {**asdict(control), "ok": control.low <= 1 <= control.high},
        "fp16_bytes": {"dense": size_of(dense / DECODER), "pruned": size_of(pruned / DECODER)},
    }


def written(keep: float, sizes: Sizes, folder: Path) -> Path:
    """The directory of a float16 writer, made of a float32 one that was compared with PyTorch."""
    model = llama(LlamaForCausalLM, sizes)
    keep_first_neurons_(model, keep)
    whole, half = folder / "fp32", folder / "fp16"
    export_decoder(model, [arrays(sizes["vocab_size"], *shape) for shape in PARITY_SHAPES], whole)
    to_float16(whole / DECODER, half / DECODER)
    for config in whole.glob("*.json"):
        shutil.copy(config, half)
    shutil.rmtree(whole)
    return half


@contextmanager
def after_prompt(directory: Path, prompt: Feeds, device: str) -> Iterator[Prepare]:
    """Reads a prompt once; every run is the step that follows it."""
    writer = open_writer(directory, threads=THREADS, provider=device)
    said, state = writer.read(prompt)
    run = timed(lambda: writer.step(said.argmax(axis=1), state))
    yield lambda _: run

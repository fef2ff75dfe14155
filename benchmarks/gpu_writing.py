"""How fast a Llama writes in ONNX Runtime on a GPU: the time of one more token, with a cache that stays there."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ffn_share import keep_first_neurons_
from gpu_latency import THREADS
from gpu_models import KEEP, SEED, Bench, Parts, Sizes, arrays, llama, release
from transformers import LlamaForCausalLM

from skillprune.benchmark import Subject, check_provider, measure_latency
from skillprune.export import size_of, to_float16
from skillprune.export.generation import export_decoder
from skillprune.generation import DECODER
from skillprune.pipeline.inputs import PARITY_SHAPES


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
    found = measure_latency(
        [Subject("dense", "fp16", dense), Subject("pruned", "fp16", pruned)],
        [bench.scale.prefill],
        lambda *shape: arrays(sizes["vocab_size"], *shape),
        threads=THREADS,
        provider=bench.device,
        rounds=bench.rounds,
        seed=SEED,
        phases=("next token",),
    )
    (control,), batch = found.controls, bench.scale.prefill[0]
    medians = {row.subject: row.p50_ms for row in found.measurements}
    return {
        "runtime": "ONNX Runtime, float16 files",
        "provider": found.measurements[0].provider,
        "batch": batch,
        "prompt": bench.scale.prefill[1],
        "step_ms": medians,
        "tokens_per_second": {model: 1000 * batch / ms for model, ms in medians.items()},
        "speedup": asdict(found.measurements[1].speedup),
        "control": {**asdict(control.ratio), "ok": control.ok},
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

"""How much faster pruned models are on a GPU: float16 files in ONNX Runtime, and PyTorch beside them.

Three models are timed in the same interleaved rounds: dense, with a quarter of the neurons, and without any FFN neuron.
`ffn_share` says what is made of the three times.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from ffn_share import keep_first_neurons_, share, without_ffn
from gpu_models import KEEP, SEED, Bench, Parts, Sizes, arrays, bert, llama, release
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaForSequenceClassification, PreTrainedModel

from skillprune.benchmark import Latency, Ratio, Subject, check_provider, measure_latency, paired_speedup
from skillprune.benchmark.timing import Prepare, Run, Shape, measure_controlled
from skillprune.errors import ProviderUnavailable
from skillprune.export import export_onnx, size_of, to_float16
from skillprune.pipeline.inputs import PARITY_SHAPES
from skillprune.progress import silent

DENSE, PRUNED, LIMIT = "dense", f"keep {KEEP:g}", "without FFN"
STARTED, REPLAYED = "kernel by kernel", "CUDA graph"
LEAST_SPEEDUP, LEAST_SHARE = 1.6, 0.85
"""The goal at one shape: how much faster than the dense float16 file, and how much of what was possible."""

THREADS = len(os.sched_getaffinity(0))
Milliseconds = NDArray[np.float64]


@dataclass(frozen=True)
class Trio:
    """The three models that are compared, made anew whenever they are asked for.

    Attributes:
        make: makes the dense one, in float32 on the CPU.
        vocabulary: tokens that it knows.
        folder: where files go.
    """

    make: Callable[[], PreTrainedModel]
    vocabulary: int
    folder: Path

    @cached_property
    def removed(self) -> float:
        """The share of FFN multiply-accumulates that pruning takes away."""
        return keep_first_neurons_(self.make(), KEEP)

    @cached_property
    def halves(self) -> dict[str, PreTrainedModel]:
        """All three in float16 on the CPU, with PyTorch's fused attention."""
        found = {name: self._model(name).half() for name in (DENSE, PRUNED, LIMIT)}
        for model in found.values():
            model.set_attn_implementation("sdpa")
        return found

    @cached_property
    def files(self) -> dict[str, Path]:
        """All three in float16, each made of a float32 file that was compared with PyTorch."""
        found = {}
        for name in (DENSE, PRUNED, LIMIT):
            place = self.folder / name.replace(" ", "-")
            parity = [arrays(self.vocabulary, *shape, padded=True) for shape in PARITY_SHAPES]
            whole = export_onnx(self._model(name), parity, place / "fp32" / "model.onnx").path
            found[name] = to_float16(whole, place / "fp16" / "model.onnx").path
            shutil.rmtree(whole.parent)
        return found

    def _model(self, name: str) -> PreTrainedModel:
        model = self.make()
        if name == PRUNED:
            keep_first_neurons_(model, KEEP)
        return without_ffn(model) if name == LIMIT else model


def encoder(name: str, sizes: Sizes, bench: Bench) -> Parts:
    """A BERT at every shape, in both runtimes."""
    trio = Trio(partial(bert, sizes), sizes["vocab_size"], bench.folder / name)
    shapes = bench.scale.shapes
    batch, sequence = smallest = min(shapes)
    return {
        **{f"{name}, ONNX Runtime, {b} x {s}": partial(judged, trio, (b, s), bench) for b, s in shapes},
        f"{name}, CUDA graphs, {batch} x {sequence}": partial(as_cuda_graphs, trio, smallest, bench),
        **{f"{name}, PyTorch, {b} x {s}": partial(in_pytorch, trio, (b, s), bench) for b, s in shapes},
    }


def prefill(name: str, sizes: Sizes, bench: Bench) -> Parts:
    """A Llama that reads prompts, in both runtimes."""
    trio = Trio(partial(llama, LlamaForSequenceClassification, sizes), sizes["vocab_size"], bench.folder / name)
    batch, sequence = shape = bench.scale.prefill
    return {
        f"{name}, prefill, ONNX Runtime, {batch} x {sequence}": partial(in_onnx_runtime, trio, shape, bench),
        f"{name}, prefill, PyTorch, {batch} x {sequence}": partial(in_pytorch, trio, shape, bench),
    }


def judged(trio: Trio, shape: tuple[int, int], bench: Bench) -> dict[str, Any]:
    """Float16 files at one shape, with the goal where there is one."""
    found = in_onnx_runtime(trio, shape, bench)
    if shape != bench.scale.goal_shape:
        return found
    steady = found["control"]["ok"]
    met = steady and found["speedup"]["value"] >= LEAST_SPEEDUP and found["share"] >= LEAST_SHARE
    return {**found, "goal": {"speedup_at_least": LEAST_SPEEDUP, "share_at_least": LEAST_SHARE, "met": met}}


def in_onnx_runtime(trio: Trio, shape: tuple[int, int], bench: Bench) -> dict[str, Any]:
    """Float16 files at one shape.

    Raises:
        ProviderUnavailable: ONNX Runtime does not run on the device.
    """
    check_provider(bench.device)  # before minutes go into files that nothing can run
    found = _timed([Subject(name, "fp16", path) for name, path in trio.files.items()], trio, shape, bench)
    (control,) = found.controls
    times = {each.subject: np.array(each.round_ms).reshape(control.openings, -1) for each in found.measurements}
    row = _row(times, shape, trio.removed, control.ratio)
    return {
        "runtime": "ONNX Runtime, float16 files",
        "provider": found.measurements[0].provider,
        **row,
        "fp16_bytes": {name: size_of(path) for name, path in trio.files.items()},
    }


def as_cuda_graphs(trio: Trio, shape: tuple[int, int], bench: Bench) -> dict[str, Any]:
    """Float16 files whose kernels are started one by one, and the same files recorded as CUDA graphs and replayed.

    Raises:
        ProviderUnavailable: the device is no CUDA device, or ONNX Runtime does not run on it.
    """
    if bench.device != "cuda":
        raise ProviderUnavailable("only CUDA has graphs to record")
    check_provider(bench.device)
    found = _timed(
        [
            Subject(name, variant, trio.files[name], capture=variant == REPLAYED)
            for variant in (STARTED, REPLAYED)
            for name in (DENSE, PRUNED)
        ],
        trio,
        shape,
        bench,
    )
    return {
        "runtime": "ONNX Runtime, float16 files",
        "provider": found.measurements[0].provider,
        "p50_ms": {f"{each.subject}, {each.variant}": each.p50_ms for each in found.measurements},
        "speedup": {f"{each.subject}, {each.variant}": asdict(each.speedup) for each in found.measurements},
        "control": [asdict(each) for each in found.controls],
    }


def _timed(subjects: Sequence[Subject], trio: Trio, shape: tuple[int, int], bench: Bench) -> Latency:
    return measure_latency(
        subjects,
        [shape],
        lambda batch, sequence: arrays(trio.vocabulary, batch, sequence),
        threads=THREADS,
        provider=bench.device,
        rounds=bench.rounds,
        seed=SEED,
    )


def in_pytorch(trio: Trio, shape: tuple[int, int], bench: Bench) -> dict[str, Any]:
    """PyTorch's own float16 models at one shape: what stands in where ONNX Runtime has no GPU."""
    models, given = trio.halves, arrays(trio.vocabulary, *shape)
    inputs = {name: torch.from_numpy(array).to(bench.device) for name, array in given.items()}
    release()

    @contextmanager
    def opened(model: PreTrainedModel) -> Iterator[Prepare]:
        run = CLOCKS[bench.device](deepcopy(model).to(bench.device), inputs)
        yield lambda _: run

    (controlled,) = measure_controlled(
        [partial(opened, model) for model in (*models.values(), models[DENSE])],
        [Shape(f"PyTorch {shape}", (SEED, *shape))],
        rounds=bench.rounds,
        seed=SEED,
        progress=silent,
    )
    times = {name: controlled.samples.ms[..., column] for column, name in enumerate(models)}
    row = _row(times, shape, trio.removed, controlled.ratio)
    return {
        "runtime": "PyTorch, float16, in place of ONNX Runtime",
        "provider": bench.device,
        **row,
    }


def _by_events(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Run:
    """Times on the GPU itself."""

    def run(repeats: int) -> int:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.inference_mode():
            begin.record()
            for _ in range(repeats):
                model(**inputs)
            end.record()
        torch.cuda.synchronize()
        return int(begin.elapsed_time(end) * 1e6)

    return run


def _by_wall(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Run:
    def run(repeats: int) -> int:
        started = perf_counter_ns()
        with torch.inference_mode():
            for _ in range(repeats):
                model(**inputs)
        return perf_counter_ns() - started

    return run


CLOCKS: Mapping[str, Callable[[PreTrainedModel, Mapping[str, Tensor]], Run]] = {
    "cuda": _by_events,
    "cpu": _by_wall,
}


def _row(
    times: Mapping[str, Milliseconds],
    shape: tuple[int, int],
    removed: float,
    control: Ratio,
) -> dict[str, Any]:
    """Times ``(openings, rounds)`` of all three, and what follows."""
    keyed = {(name, *shape): ms for name, ms in times.items()}
    found = share(keyed, PRUNED, shape, removed, np.random.default_rng(SEED))
    faster = paired_speedup(times[DENSE], times[PRUNED], seed=(SEED, *shape))
    return {
        **found,
        "speedup": asdict(faster),
        "control": {**asdict(control), "ok": control.low <= 1 <= control.high},
        "openings": len(times[DENSE]),
    }

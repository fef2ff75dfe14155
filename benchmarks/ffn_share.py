"""How much of the time that FFN pruning can save is really saved, in ONNX Runtime on this machine.

share = (t_dense - t_pruned) / (t_dense - t_without_ffn) / (share of FFN multiply-accumulates removed)

where t_without_ffn is the same graph without FFN neurons, so that a bias is all that is left of every FFN. All files
are timed in the same interleaved rounds; the interval is a bootstrap over openings and their rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import minilm_recipe, write_result
from transformers import PreTrainedModel

from skillprune import export_onnx, load_source
from skillprune.benchmark import Subject, measure_latency
from skillprune.families import find_ffns
from skillprune.pipeline.inputs import random_inputs
from skillprune.planning import KeepRatio, predict_plan
from skillprune.surgery import record_widths_

SHAPES = [(8, 128), (1, 128), (1, 32)]


def main() -> None:
    """Exports, times and divides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    recipe = minilm_recipe()
    source = load_source(recipe.model, attention="eager")

    def feeds(batch: int, sequence: int, padded: bool = False) -> dict[str, NDArray[np.int64]]:
        return random_inputs(source.model, source.tokenizer, batch, sequence, seed=0, padded=padded)

    parity = [feeds(2, 16, True), feeds(3, 29, True)]
    with tempfile.TemporaryDirectory() as folder:
        subjects, removed = [], {}
        for keep in arguments.keep:
            model = load_source(recipe.model, attention="eager").model
            removed[f"keep {keep:g}"] = keep_first_neurons_(model, keep)
            subjects.append(export(f"keep {keep:g}", model, parity, folder))
        dense = export("dense", source.model, parity, folder)
        limit = export("without FFN", without_ffn(load_source(recipe.model, attention="eager").model), parity, folder)
        latency = measure_latency(
            [dense, limit, *subjects], SHAPES, feeds, threads=2, provider="cpu", rounds=arguments.rounds, seed=0
        )
    openings = {(c.batch, c.sequence): c.openings for c in latency.controls}
    rounds = {
        (m.subject, m.batch, m.sequence): np.array(m.round_ms).reshape(openings[m.batch, m.sequence], -1)
        for m in latency.measurements
    }
    rows = [
        share(rounds, name, shape, part, np.random.default_rng(0)) for name, part in removed.items() for shape in SHAPES
    ]
    controls = [{"shape": [c.batch, c.sequence], "ok": c.ok, "ratio": c.ratio.value} for c in latency.controls]
    write_result("ffn-share-minilm", seeds=[0], result={"rows": rows, "controls": controls})


def export(name: str, model: PreTrainedModel, parity: list[dict[str, NDArray[np.int64]]], folder: str) -> Subject:
    """Writes one ONNX file, checked against PyTorch."""
    path = Path(folder, name.replace(" ", "-"), "model.onnx")
    export_onnx(model, parity, path)
    return Subject(name, "fp32", path)


def keep_first_neurons_(model: PreTrainedModel, keep: float) -> float:
    """Slices in place (time does not depend on which neurons go); the share of FFN multiply-accumulates removed."""
    predicted = predict_plan(model, KeepRatio(keep))
    for ffn in find_ffns(model):
        ffn.keep_(range(predicted.width_after[ffn.stack.name][ffn.layer]))
    record_widths_(model)
    return 1 - predicted.after.ffn_macs / predicted.before.ffn_macs


def without_ffn(model: PreTrainedModel) -> PreTrainedModel:
    """Removes every neuron, in place: exported, what is left of an FFN is the bias of its down projection."""
    for ffn in find_ffns(model):
        ffn.keep_(())
    record_widths_(model)
    return model


def share(
    rounds: dict[tuple[str, int, int], NDArray[np.float64]],
    name: str,
    shape: tuple[int, int],
    removed: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The realised share with its 95 % interval; medians over the same resampled openings and rounds."""
    dense, limit, pruned = (rounds[(each, *shape)] for each in ("dense", "without FFN", name))
    openings, each = dense.shape
    drawn = rng.integers(0, openings, size=(4000, openings, 1)), rng.integers(0, each, size=(4000, openings, each))

    def of(*picked: Any) -> Any:
        d, w, p = (np.median(times[picked], axis=(-2, -1)) for times in (dense, limit, pruned))
        return (d - p) / (d - w) / removed

    low, high = np.quantile(of(*drawn), [0.025, 0.975])
    found = {"removed_ffn_macs": removed, "share": float(of(...)), "low": float(low), "high": float(high)}
    times = {"dense_ms": dense, "pruned_ms": pruned, "without_ffn_ms": limit}
    medians = {key: round(float(np.median(value)), 3) for key, value in times.items()}
    speed = {"speedup": float(np.median(dense / pruned)), "speedup_limit": float(np.median(dense / limit))}
    line = {"subject": name, "batch": shape[0], "sequence": shape[1], **found, **speed, **medians}
    print(line, flush=True)
    return line


if __name__ == "__main__":
    main()

"""Times the widths that `peers.py` found in ONNX Runtime, whoever chose them.

Time does not depend on which neurons stay, nor on how many classes the head tells apart, so every distinct list of
widths is exported once, always by skillprune's exporter. They are timed in groups, each beside the dense model in the
same interleaved rounds; rows of `results/peers-minilm.json` are joined to these by their widths.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from ffn_share import export
from numpy.typing import NDArray
from provenance import RESULTS, write_result
from samples import CHECKPOINTS

from skillprune import load_source
from skillprune.benchmark import Latency, measure_latency
from skillprune.checkpoint import Source
from skillprune.families import find_ffns
from skillprune.pipeline.inputs import random_inputs
from skillprune.recipe import ModelSpec
from skillprune.surgery import record_widths_

SHAPES = [(8, 128), (1, 32)]
GROUP = 8
"""Shapes of a network that are open at once, beside the dense one."""

Widths = tuple[int, ...]


def main() -> None:
    """Every distinct list of widths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="peers-minilm", help="of the result file of peers.py")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--tasks", nargs="+", choices=list(CHECKPOINTS), default=["sst2"], help="whose widths")
    arguments = parser.parse_args()
    rows = json.loads((RESULTS / f"{arguments.name}.json").read_text(encoding="utf-8"))["result"]["rows"]
    rows = [row for row in rows if "widths" in row and row["task"] in arguments.tasks]
    found = sorted({tuple(row["widths"]) for row in rows}, reverse=True)
    timed: list[dict[str, Any]] = []
    for start in range(0, len(found), GROUP):
        timed += timings(found[start : start + GROUP], arguments.rounds)
    write_result(f"{arguments.name}-latency", seeds=[0], result={"rows": timed})


def timings(group: Sequence[Widths], rounds: int) -> list[dict[str, Any]]:
    """A line per widths and shape, and the controls' verdicts in each."""
    source = dense()

    def feeds(batch: int, sequence: int, padded: bool = False) -> dict[str, NDArray[np.int64]]:
        return random_inputs(source.model, source.tokenizer, batch, sequence, seed=0, padded=padded)

    parity = [feeds(2, 16, True), feeds(3, 29, True)]
    with tempfile.TemporaryDirectory() as folder:
        subjects = [export("dense", source.model, parity, folder)]
        subjects += [export(label(widths), narrowed(widths).model, parity, folder) for widths in group]
        latency = measure_latency(subjects, SHAPES, feeds, threads=2, provider="cpu", rounds=rounds, seed=0)
    return lines(group, latency)


def dense() -> Source:
    """MiniLM with the attention that exports to the fastest graph."""
    return load_source(ModelSpec(name=str(CHECKPOINTS["sst2"])), attention="eager")


def narrowed(widths: Widths) -> Source:
    """The same with the first neurons of every layer only."""
    source = dense()
    for ffn, width in zip(find_ffns(source.model), widths, strict=True):
        ffn.keep_(range(width))
    record_widths_(source.model)
    return source


def label(widths: Widths) -> str:
    """A name that is also one of a file."""
    return "-".join(map(str, widths))


def lines(group: Sequence[Widths], latency: Latency) -> list[dict[str, Any]]:
    """What was measured, without the dense model's own lines."""
    names = {label(widths): widths for widths in group}
    steady = {(control.batch, control.sequence): control.ok for control in latency.controls}
    return [
        {
            "widths": list(names[each.subject]),
            "batch": each.batch,
            "sequence": each.sequence,
            "p50_ms": round(each.p50_ms, 3),
            "speedup": each.speedup.value,
            "low": each.speedup.low,
            "high": each.speedup.high,
            "control_ok": steady[each.batch, each.sequence],
        }
        for each in latency.measurements
        if each.subject in names
    ]


if __name__ == "__main__":
    main()

"""Whether the files that a run chose are the fastest there are: timed anew against every candidate and a plain export.

Candidates are the files of all exporters and fusions, and of the pruned model every number format. A plain export is
what `torch.onnx.export` writes by itself, in a session whose options are left as they are. Files are exported again,
and the choice is judged by other rounds than those it was made by.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from provenance import HERE, update_result
from transformers import PreTrainedModel

from skillprune import load_recipe, load_source
from skillprune.benchmark import Feeds, Subject, measure_latency
from skillprune.checkpoint import load_model
from skillprune.export import FUSIONS, Arrays, export_candidates
from skillprune.pipeline.inputs import parity_inputs, random_inputs
from skillprune.pipeline.summary import control_row
from skillprune.recipe import BenchmarkSpec
from skillprune.report import Report, read_report

SLOWER = 0.03
"""How much slower than any other file the chosen one may be."""

ROUNDS = 60


def main() -> None:
    """Judges both choices of a run: the dense reference and what is shipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=HERE.parent / "runs" / "minilm-sst2-fast")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    recipe = load_recipe(HERE / "recipes" / f"{arguments.run.name}.yaml")
    source, report = load_source(recipe.model, attention="eager"), read_report(arguments.run / "report.json")
    pruned = load_model(arguments.run / "model", task_type=recipe.task.type, dtype="float32", attention="eager")
    inputs = parity_inputs(source.model, source.tokenizer, seed=recipe.seed)

    def feeds(batch: int, sequence: int) -> Arrays:
        return random_inputs(source.model, source.tokenizer, batch, sequence, seed=recipe.seed)

    result = {}
    for name, model, chosen in (("dense", source.model, _dense(arguments.run)), ("pruned", pruned, None)):
        with tempfile.TemporaryDirectory() as folder:
            others = list(candidates(model, inputs, Path(folder)))
            if chosen is None:
                formats = {each.variant: arguments.run / each.path for each in report.artifacts if not each.refused}
                chosen = Subject("chosen", best(report), formats.pop(best(report)))
                others += [Subject("variant", variant, path) for variant, path in formats.items()]
            result[name] = compared(chosen, others, feeds, recipe.benchmark, arguments.rounds)
    update_result("candidates", arguments.run.name, seeds=[recipe.seed], result=result)


def candidates(model: PreTrainedModel, inputs: Sequence[Arrays], folder: Path) -> Iterator[Subject]:
    """All files of all exporters, and the one that torch writes when it is asked for nothing in particular."""
    for each in export_candidates(model, inputs, folder / "candidates", fusions=FUSIONS).passed:
        yield Subject("candidate", each.backend, each.path)
    given = {name: torch.from_numpy(array) for name, array in inputs[0].items()}
    moving = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in given}
    plain = folder / "plain.onnx"
    model.set_attn_implementation("sdpa")
    torch.onnx.export(model.eval(), (), plain, kwargs=given, dynamic_shapes=moving, verbose=False)
    yield Subject("plain", "torch.onnx.export", plain, "onnxruntime-default")


def compared(
    chosen: Subject, others: Sequence[Subject], feeds: Feeds, spec: BenchmarkSpec, rounds: int
) -> dict[str, Any]:
    """How many times faster than the chosen file every other one is: at most ``1 + SLOWER`` if the choice was right."""
    latency = measure_latency(
        [chosen, *others], spec.shapes, feeds, threads=spec.threads, provider=spec.provider, rounds=rounds, seed=0
    )
    rows = [
        {
            "file": f"{row.subject} {row.variant}",
            "shape": [row.batch, row.sequence],
            "p50_ms": row.p50_ms,
            "faster_than_chosen": [row.speedup.value, row.speedup.low, row.speedup.high],
        }
        for row in latency.measurements
    ]
    closest = max(latency.measurements, key=lambda row: row.speedup.value)
    most, steady = closest.speedup.value, all(control.ok for control in latency.controls)
    return {
        "chosen": chosen.variant,
        "rows": rows,
        "controls": [control_row(control).model_dump() for control in latency.controls],
        "goal": {
            "no_other_faster_by_more_than": SLOWER,
            "most": asdict(closest.speedup),
            "met": steady and most <= 1 + SLOWER,
        },
    }


def best(report: Report) -> str:
    """The variant that is shipped."""
    assert report.best is not None
    return report.best.variant


def _dense(run: Path) -> Subject:
    return Subject("chosen", "fp32", run / "onnx" / "dense" / "fp32" / "model.onnx")


if __name__ == "__main__":
    main()

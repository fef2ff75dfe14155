"""What scoring costs beside a bare forward pass over the same batches, in time and in memory."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from provenance import minilm_recipe, write_result
from transformers import PreTrainedModel

from skillprune import load_source, load_splits, make_batches, resolve_task
from skillprune.data import Batch
from skillprune.evaluation import label_names
from skillprune.scoring import CRITERIA, Provenance, ScoringData, score_neurons

FORWARD_ONLY = sorted(CRITERIA)


def main() -> None:
    """Times interleaved rounds, then measures peak memory for two amounts of data in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--peak", type=int, metavar="REPEATS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_mib(arguments.peak))
        return
    model, data = prepared(arguments.examples)
    batches = [*data.calibration, *data.validation]
    bare(model, batches)
    ratios = []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        bare(model, batches)
        middle = time.perf_counter()
        score(model, data)
        ratios.append((time.perf_counter() - middle) / (middle - start))
        print(f"round {len(ratios)}: {ratios[-1]:.3f} x bare forward", flush=True)
    memory = {repeats: peak_of(repeats) for repeats in (1, 20)}
    result = {
        "criteria": FORWARD_ONLY,
        "examples": arguments.examples,
        "ratio_to_bare_forward": {"median": statistics.median(ratios), "rounds": ratios},
        "peak_rss_mib": {f"{512 * repeats} examples": peak for repeats, peak in memory.items()},
        "memory_growth": memory[20] / memory[1] - 1,
    }
    write_result("scoring-cost-minilm", seeds=[0], result=result)


def prepared(examples: int) -> tuple[PreTrainedModel, ScoringData]:
    """The dense model, and as many calibration as validation examples."""
    recipe = minilm_recipe()
    source = load_source(recipe.model)
    task = resolve_task(recipe.task, label_names(source.model))
    splits = load_splits(task, examples=examples, seed=0)

    def batches(split: Sequence[object]) -> tuple[Batch, ...]:
        return make_batches(split[:examples], source.tokenizer, max_length=task.max_length, batch_size=32)  # type: ignore[arg-type]

    return source.model, ScoringData(batches(splits.calibration), batches(splits.validation))


def bare(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """The forward passes that scoring cannot do without."""
    with torch.inference_mode():
        for batch in batches:
            model(**batch.inputs)


def score(model: PreTrainedModel, data: ScoringData) -> None:
    """Every forward-only criterion at once."""
    score_neurons(model, data, criteria=FORWARD_ONLY, provenance=Provenance("", "", 0, "mean", 0))


def peak_mib(repeats: int) -> float:
    """Most resident memory of this process after scoring 512 calibration examples, seen ``repeats`` times over."""
    from skillprune.pipeline.memory import PeakMemory

    model, data = prepared(512)
    with PeakMemory() as memory:
        score(model, ScoringData([*data.calibration] * repeats, data.validation))
    return memory.peak_mib


def peak_of(repeats: int) -> float:
    """The same in a fresh process, so that nothing of an earlier measurement is left in it."""
    command = [sys.executable, __file__, "--peak", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()

"""What scoring costs beside a bare forward pass over the same batches, in time and in memory.

Sections: ``forward`` (criteria of activations), ``gram`` (`skill`), ``gradients``, ``store`` (against a loop that
stores activations in NumPy arrays), ``memory`` (1,000 against 20,000 calibration examples) and ``processes`` (two
against one). Each is timed in interleaved rounds on one machine; every section adds to the result file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from provenance import HERE, minilm_recipe, update_result
from safetensors.numpy import load_file
from torch import Tensor

from skillprune import load_source, load_splits, make_batches, resolve_task
from skillprune.activations import Reading
from skillprune.answers import Classifier, label_names
from skillprune.data import Batch, Example
from skillprune.families import find_ffns
from skillprune.scoring import ScoringData, prepare_criteria, probe, settings_for
from skillprune.scoring.engine import observe
from skillprune.scoring.skill import GRADED_EXAMPLES

FORWARD = ("wanda", "fluctuation", "magnitude", "random", "predictivity", "average_precision", "linear_probe")
GRADIENTS = ("taylor", "fisher", "gauss_newton", "attribution")
MEMORY = {
    "sums": ("wanda", "fluctuation", "predictivity", "taylor", "fisher", "gauss_newton", "attribution", "skill"),
    "responses": ("average_precision", "linear_probe"),
}
FEW, MANY = 1_000, 20_000


def main() -> None:
    """Runs the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "EXAMPLES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_mib(arguments.peak[0], int(arguments.peak[1])))
        return
    for name in arguments.sections or SECTIONS:
        update_result("scoring-cost-minilm", name, seeds=[0], result=SECTIONS[name](arguments))


def forward(arguments: argparse.Namespace) -> dict[str, Any]:
    """All criteria of activations together, without Gram matrices."""
    return against_bare(FORWARD, arguments, [*SPLITS])


def gram(arguments: argparse.Namespace) -> dict[str, Any]:
    """The statistics of `skill`: Gram matrices over all examples, gradients over the first 512."""
    return against_bare(("skill",), arguments, ["calibration"])


def gradients(arguments: argparse.Namespace) -> dict[str, Any]:
    """All gradient criteria together."""
    return against_bare(GRADIENTS, arguments, ["calibration"])


SPLITS = ("calibration", "validation")


def against_bare(criteria: Sequence[str], arguments: argparse.Namespace, splits: Sequence[str]) -> dict[str, Any]:
    """Streaming of some criteria against forward passes over the splits they read.

    Every round times the bare passes twice, whose mean counts, and the streaming once, in random order. What turns the
    collected statistics into scores afterwards, `finish`, does not run the model and is timed by itself, once.
    """
    subject, data = prepared(arguments.examples)
    batches = [batch for split in splits for batch in getattr(data, split)]
    ffns, rng = find_ffns(subject.model), np.random.default_rng(0)
    workers = prepare_criteria(ffns, criteria, settings_for(subject, data))

    def streaming() -> None:
        workers[:] = prepare_criteria(ffns, criteria, settings_for(subject, data))
        observe(subject, data, [(worker, ffns) for worker in workers], Reading())

    def bare() -> None:
        run_bare(subject, batches)

    work = {"bare": bare, "again": bare, "scoring": streaming}
    bare()
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.rounds):
        names = rng.permutation(list(work)).tolist()
        took = {name: seconds(work[name]) for name in names}
        bare_seconds = (took["bare"] + took["again"]) / 2
        rounds.append({"scoring": took["scoring"] / bare_seconds, "control": took["again"] / took["bare"]})
        rounds[-1] |= {"bare_seconds": bare_seconds}
        print(f"round {len(rounds)}: {rounds[-1]}", flush=True)
    finishing = seconds(lambda: [worker.finish(ffn) for worker in workers for ffn in ffns])
    return {
        "criteria": list(criteria),
        "examples": {split: sum(map(len, getattr(data, split))) for split in splits},
        "ratio_to_bare_forward": spread([each["scoring"] for each in rounds]),
        "control_bare_to_bare": spread([each["control"] for each in rounds]),
        "bare_seconds": median(each["bare_seconds"] for each in rounds),
        "finish_seconds": finishing,
    }


def spread(ratios: Sequence[float]) -> dict[str, Any]:
    """The median and every round."""
    return {"median": median(ratios), "rounds": list(ratios)}


def store(arguments: argparse.Namespace) -> dict[str, Any]:
    """Predictivity of mean-pooled activations against a loop that keeps every activation in NumPy arrays.

    The loop gets batches of 8 in file order, the default of the published code, batches of 32 in file order, and our
    batches of like length. Beside each stands what the bare forward passes over the same batches take: no way of
    collecting activations can be faster than that. Memory is the peak of processes that do one of the two.
    """
    subject, data = prepared(arguments.examples)
    given = {
        "batches of 8 in file order": {split: in_file_order(getattr(data, split), 8) for split in SPLITS},
        "batches of 32 in file order": {split: in_file_order(getattr(data, split), 32) for split in SPLITS},
        "our batches": {split: list(getattr(data, split)) for split in SPLITS},
    }
    found, expected = [], []
    ratios: dict[str, dict[str, list[float]]] = {name: {"loop": [], "bare_forward": []} for name in given}
    for _ in range(min(3, arguments.rounds)):
        ours = seconds(lambda: found.append(streamed_predictivity(subject, data)))
        for name, splits in given.items():
            loop = seconds(lambda splits=splits: expected.append(stored_predictivity(subject, splits)))
            bare = seconds(
                lambda splits=splits: run_bare(subject, [each for split in SPLITS for each in splits[split]])
            )
            ratios[name]["loop"].append(loop / ours)
            ratios[name]["bare_forward"].append(bare / ours)
            print(f"store everything, {name}: {loop / ours:.2f} times as long, bare {bare / ours:.2f}", flush=True)
    worst = max(float(np.abs(mine - other).max()) for mine, other in zip(found[-1], expected[-1], strict=True))
    peaks = {how: peak_of(how, arguments.examples) for how in ("streamed", "stored")}
    return {
        "times_as_long_as_streaming": {
            name: {what: spread(values) for what, values in each.items()} for name, each in ratios.items()
        },
        "largest_difference": worst,
        "peak_rss_mib": peaks,
        "memory_ratio": peaks["stored"] / peaks["streamed"],
    }


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory for two amounts of calibration data, each in a process of its own.

    The larger amount is the batches of the smaller one again and again, so that only their number differs: memory is as
    large as the largest batch wants it, and more text has larger ones. For the same reason no batch is cut in two, in
    either amount, by the bound of the examples whose gradients `skill` reads.
    """
    found = {}
    for kind in MEMORY:
        peaks = {examples: peak_of(kind, examples) for examples in (FEW, MANY)}
        disk = {examples: disk_mib(kind, examples) for examples in (FEW, MANY)}
        found[kind] = {
            "criteria": list(MEMORY[kind]),
            "peak_rss_mib": {f"{examples} examples": peak for examples, peak in peaks.items()},
            "disk_mib": {f"{examples} examples": size for examples, size in disk.items()},
            "growth_beyond_disk": (peaks[MANY] - disk[MANY] + disk[FEW]) / peaks[FEW] - 1,
        }
        print(kind, found[kind], flush=True)
    return found


def processes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The command line under torchrun with two processes of one thread against one process of one thread."""
    recipe = HERE / "recipes" / "minilm-sst2.yaml"
    options = ["--set", "scoring.also=[predictivity, wanda, fluctuation, fisher, gauss_newton, average_precision]"]
    walls: dict[int, list[float]] = {1: [], 2: []}
    scores: dict[int, dict[str, NDArray[np.float64]]] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with TemporaryDirectory() as folder:
        for number in range(min(3, arguments.rounds)):
            for world in walls:
                output = Path(folder, f"{world}-{number}")
                launcher = [sys.executable, "-m"]
                if world > 1:
                    launcher += ["torch.distributed.run", "--nproc_per_node", str(world), "-m"]
                command = [*launcher, "skillprune", "score", str(recipe), "--output", str(output), *options]
                walls[world].append(
                    seconds(
                        lambda command=command: subprocess.run(
                            command, env=environment, check=True, capture_output=True
                        )
                    )
                )
                scores[world] = load_file(output / "scores.safetensors")
    names = [key for key in scores[1] if key.count("/") == 2]  # the others are details
    return {
        "largest_relative_difference": max(relative(scores[1][key], scores[2][key]) for key in names),
        "largest_difference_by_largest_score": max(by_largest(scores[1][key], scores[2][key]) for key in names),
        "wall_seconds": walls,
        "wall_time_ratio": median(walls[2]) / median(walls[1]),
    }


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "forward": forward,
    "gram": gram,
    "gradients": gradients,
    "store": store,
    "memory": memory,
    "processes": processes,
}


def prepared(examples: int, apart: int = 0) -> tuple[Classifier, ScoringData]:
    """The dense model, as many calibration examples, some of them in batches of their own, and all of validation."""
    recipe = minilm_recipe()
    source = load_source(recipe.model)
    task = resolve_task(recipe.task, label_names(source.model))
    splits = load_splits(task, examples=examples, seed=0)

    def batches(split: Sequence[Example]) -> tuple[Batch, ...]:
        return make_batches(split, source.tokenizer, max_length=task.max_length, batch_size=32)

    first, others = batches(splits.calibration[:apart]), batches(splits.calibration[apart:])
    calibration = (*first, *(shifted(batch, apart) for batch in others))
    return Classifier(source.model), ScoringData(calibration, batches(splits.validation))


def run_bare(subject: Classifier, batches: Sequence[Batch]) -> None:
    """The forward passes that scoring cannot do without."""
    with torch.inference_mode():
        for batch in batches:
            subject.model(**batch.inputs)


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def streamed_predictivity(subject: Classifier, data: ScoringData) -> list[NDArray[np.float64]]:
    """Ours, from model to scores."""
    ffns = find_ffns(subject.model)
    workers = prepare_criteria(ffns, ["predictivity"], settings_for(subject, data))
    observe(subject, data, [(workers[0], ffns)], Reading())
    return [workers[0].finish(ffn).scores for ffn in ffns]


def stored_predictivity(subject: Classifier, sentences: dict[str, list[Batch]]) -> list[NDArray[np.float64]]:
    """The same scores by keeping everything: arrays per batch, layer and position, and loops over sentences."""
    ffns = find_ffns(subject.model)
    kept: dict[str, list[list[list[NDArray[np.float32]]]]] = {}
    for split, batches in sentences.items():
        kept[split] = [[] for _ in ffns]
        for batch in batches:
            for layer, activations in enumerate(all_activations(subject, batch)):
                positions = range(activations.shape[1])
                kept[split][layer].append([activations[:, place].numpy().copy() for place in positions])
    pooled = {split: [pool_sentences(rows, sentences[split]) for rows in layers] for split, layers in kept.items()}
    labels = {
        split: np.concatenate([batch.labels.numpy() for batch in batches]) for split, batches in sentences.items()
    }
    return [
        two_sided(
            pooled["calibration"][layer], labels["calibration"], pooled["validation"][layer], labels["validation"]
        )
        for layer in range(len(ffns))
    ]


def all_activations(subject: Classifier, batch: Batch) -> list[Tensor]:
    """Every layer's activations of one batch."""
    found: list[Tensor] = []
    hooks = [
        ffn.down.module.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
        for ffn in find_ffns(subject.model)
    ]
    with torch.no_grad():
        subject.model(**batch.inputs)
    for hook in hooks:
        hook.remove()
    return found


def pool_sentences(rows: Sequence[Sequence[NDArray[np.float32]]], batches: Sequence[Batch]) -> NDArray[np.float64]:
    """Mean over the real tokens of every sentence."""
    means = []
    for positions, batch in zip(rows, batches, strict=True):
        for sentence, length in enumerate(batch.mask.sum(dim=1).tolist()):
            means.append(np.mean([positions[place][sentence] for place in range(length)], axis=0, dtype=np.float64))
    return np.stack(means)


def two_sided(
    train: NDArray[np.float64], train_labels: NDArray[np.int64], dev: NDArray[np.float64], dev_labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Balanced predictivity of two classes."""
    baseline = (train[train_labels == 0].mean(axis=0) + train[train_labels == 1].mean(axis=0)) / 2
    fires = dev > baseline
    accuracy = (fires[dev_labels == 1].mean(axis=0) + 1 - fires[dev_labels == 0].mean(axis=0)) / 2
    return np.maximum(accuracy, 1 - accuracy)


def in_file_order(batches: Sequence[Batch], size: int) -> list[Batch]:
    """The same examples as a plain loader would batch them: in order, padded to the longest of each batch."""
    rows = {int(index): (batch, row) for batch in batches for row, index in enumerate(batch.indices)}
    chosen = [rows[index] for index in sorted(rows)]
    return [together(chosen[start : start + size]) for start in range(0, len(chosen), size)]


def together(rows: Sequence[tuple[Batch, int]]) -> Batch:
    """Rows of several batches as one batch, padded with zeros on the right."""

    def padded(tensors: Sequence[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)

    inputs = {name: padded([batch.inputs[name][row] for batch, row in rows]) for name in rows[0][0].inputs}
    longest = int(inputs["attention_mask"].sum(dim=1).max())
    return Batch(
        {name: tensor[:, :longest] for name, tensor in inputs.items()},
        torch.stack([batch.labels[row] for batch, row in rows]),
        padded([batch.special[row] for batch, row in rows])[:, :longest],
        torch.stack([batch.indices[row] for batch, row in rows]),
    )


def peak_mib(kind: str, examples: int) -> float:
    """Most resident memory of this process while it scores."""
    from skillprune.pipeline.memory import PeakMemory

    subject, data = prepared(examples) if kind in ("streamed", "stored") else again_and_again(examples // FEW)
    with PeakMemory() as watch:
        if kind == "streamed":
            streamed_predictivity(subject, data)
        elif kind == "stored":
            stored_predictivity(subject, {split: in_file_order(getattr(data, split), 8) for split in SPLITS})
        else:
            score_all(subject, data, MEMORY[kind])
    return watch.peak_mib


def again_and_again(turns: int) -> tuple[Classifier, ScoringData]:
    """The model, and a thousand calibration examples ``turns`` times over, each time as new examples."""
    subject, data = prepared(FEW, apart=GRADED_EXAMPLES)
    repeated = [shifted(batch, FEW * turn) for turn in range(turns) for batch in data.calibration]
    return subject, ScoringData(repeated, data.validation)


def shifted(batch: Batch, start: int) -> Batch:
    """The batch with examples that are counted from ``start``."""
    return replace(batch, indices=batch.indices + start)


def score_all(subject: Classifier, data: ScoringData, criteria: Sequence[str]) -> None:
    """Streams and finishes; the probe is stopped after two passes, which touch everything that more of them would."""
    probe.ITERATIONS = 2
    ffns = find_ffns(subject.model)
    workers = prepare_criteria(ffns, criteria, settings_for(subject, data))
    observe(subject, data, [(worker, ffns) for worker in workers], Reading())
    for worker in workers:
        for ffn in ffns:
            worker.finish(ffn)


def peak_of(kind: str, examples: int) -> float:
    """The same in a fresh process, so that nothing of an earlier measurement is left in it."""
    command = [sys.executable, __file__, "--peak", kind, str(examples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def disk_mib(kind: str, examples: int) -> float:
    """What the disk-backed responses of calibration take."""
    widths = sum(ffn.width for ffn in find_ffns(load_source(minilm_recipe().model).model))
    arrays = len(MEMORY["responses"]) + 1 if kind == "responses" else 0  # the probe's are standardised in one more
    return arrays * examples * widths * 4 / 2**20


def relative(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Largest difference of a neuron's two scores, relative to them."""
    size = np.maximum(np.abs(first), np.abs(second))
    return float((np.abs(first - second) / np.where(size > 0, size, 1)).max())


def by_largest(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Largest difference of two score vectors, relative to the largest score."""
    return float(np.abs(first - second).max() / np.abs(first).max())


if __name__ == "__main__":
    main()

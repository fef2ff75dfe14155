"""How often the gate cries wolf, and how often it sees a real loss of speed-up, on a host that others use too.

The embedded demo is pruned to a quarter of its FFN neurons, and once more with wider layers, so that its speed-up is
some 15 % smaller. Both are measured again and again in short runs, while other processes come and go. Every run of the
first is held against the next run of it, and every run of the wider one against a run of the first, each against
another, so that no baseline that came out badly decides about many: `skillprune gate RUN --baseline OTHER_RUN`. An
alarm about the same model is false; one about the wider model is right. Where the identical-pair control of a run stays
off, the gate judges nothing.

The loss that was injected is measured by itself, in one long run of both files without the others. Files are exported
once: that the fastest exporter may be another one from run to run, which the gate tells, is not looked at here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from provenance import HERE, TIMING, kept_row, update_result

import skillprune
from skillprune import load_recipe, load_source
from skillprune.benchmark import Latency, Subject, environment, measure_latency
from skillprune.gating import Demands, judge
from skillprune.pipeline.inputs import random_inputs
from skillprune.pipeline.summary import control_row, latency_row
from skillprune.report import Report

RECIPE = HERE.parent / "recipes" / "quickstart.yaml"
SHAPE = (8, 64)
KEEP = {"same": 0.25, "wider": 0.4375}
THREADS, ROUNDS, LONG = 2, 240, 360
RUNS, CHUNK = 100, 10

# Works for a while, then rests for a while, like whatever else runs on a shared machine.
OTHERS = """
import random, time
while True:
    end = time.perf_counter() + random.uniform(0.005, 0.2)
    while time.perf_counter() < end:
        sum(range(1000))
    time.sleep(random.uniform(0.005, 0.4))
"""


def main() -> None:
    """Measures runs in chunks that are kept, judges all of them, and writes the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--name", default="alarms", help="of what is written and kept (default: %(default)s)")
    arguments = parser.parse_args()
    stem = f"gate-{arguments.name}"
    with TemporaryDirectory() as folder:
        files = Files(Path(folder))
        injected = timed_here(f"{stem}-injected", files.injected)
        with others(2):
            same, wider = (files.reports(kind, arguments.runs, stem) for kind in KEEP)
    found = {"same": judged(same, [*same[1:], same[0]]), "wider": judged(wider, same)}
    result = {
        "shape": SHAPE,
        "rounds": ROUNDS,
        "host": host(),
        "other_processes": 2,
        "exporters": files.exporters(),
        "injected": injected,
        "runs": {kind: sum(counts.values()) for kind, counts in found.items()},
        "false_alarms": found["same"]["failed"],
        "caught": found["wider"]["failed"],
        "outcomes": found,
        "speedups": {kind: list(map(speedup, reports)) for kind, reports in (("same", same), ("wider", wider))},
    }
    update_result("gate", arguments.name, seeds=[0], result=result)


@contextmanager
def others(count: int) -> Iterator[None]:
    """Other processes that work now and then, for as long as the context is open."""
    started = [subprocess.Popen([sys.executable, "-c", OTHERS]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()


def timed_here(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row of times, which is kept and knows the machine that it was taken on."""
    row = kept_row(name, lambda: {"host": host(), **measure()}, TIMING)
    if row["host"] != host():
        raise SystemExit(f"{name} was timed on another machine or in another way; delete it to time it here")
    return row


def host() -> str:
    """What times belong to: the machine, the library, and how they were taken."""
    found = environment()
    taken = f"{SHAPE[0]} x {SHAPE[1]}, {THREADS} threads, {ROUNDS} rounds, keep {KEEP}"
    return f"{found['cpu']}, {found['cores']} cores, onnxruntime {found['onnxruntime']}: {taken}"


def judged(runs: Sequence[Report], baselines: Sequence[Report]) -> dict[str, int]:
    """What the gate says of every run, each held against its own baseline."""
    said = Counter(judge(run, Demands(), other).outcome for run, other in zip(runs, baselines, strict=True))
    return {outcome: said[outcome] for outcome in ("passed", "failed", "incomparable")}


def speedup(run: Report) -> list[float | None]:
    """What a run found, and its interval."""
    (row,) = (row for row in run.latency if row.subject == "pruned")
    return [row.speedup, row.speedup_low, row.speedup_high]


class Files:
    """The two pruned models beside their dense one, and measurements of them."""

    def __init__(self, folder: Path) -> None:
        """Prunes and exports; the reports are templates for all measurements to come."""
        self.folders = {kind: folder / kind for kind in KEEP}
        self.templates: dict[str, Report] = {}
        for kind, keep in KEEP.items():
            changes = [f"plan.keep_ratio={keep}", f"benchmark.shapes=[[{SHAPE[0]}, {SHAPE[1]}]]", "benchmark.rounds=12"]
            recipe = load_recipe(RECIPE, [*changes, "demand.min_speedup=null"])
            self.templates[kind] = skillprune.run(recipe, self.folders[kind])
        self.source = load_source(recipe.model)

    def exporters(self) -> dict[str, list[str]]:
        """Whose dense and whose pruned file was kept."""
        return {
            kind: [row.exporter for row in report.candidates if row.speed == 1.0]
            for kind, report in self.templates.items()
        }

    def injected(self) -> dict[str, Any]:
        """How much of the speed-up the wider model loses, both measured in the same rounds."""
        subjects = [self._dense(), *(Subject(kind, "fp32", self._pruned(kind)) for kind in KEEP)]
        latency = self._measure(subjects, LONG, seed=0)
        speedups = {row.subject: row.speedup.value for row in latency.measurements}
        return {"speedups": speedups, "loss": 1 - speedups["wider"] / speedups["same"]}

    def reports(self, kind: str, count: int, stem: str) -> list[Report]:
        """Short runs of one of the models, each with its own seed."""
        found: list[Report] = []
        for first in range(0, count, CHUNK):
            seeds = range(first, min(first + CHUNK, count))
            row = timed_here(f"{stem}-{kind}-{first}-{len(seeds)}", partial(self._chunk, kind, seeds))
            found += [self.templates[kind].model_validate(self._filled(kind, each)) for each in row["measured"]]
        return found

    def _chunk(self, kind: str, seeds: Sequence[int]) -> dict[str, Any]:
        offset = 1000 * (1 + list(KEEP).index(kind))
        subjects = [self._dense(), Subject("pruned", "fp32", self._pruned(kind))]
        latencies = [self._measure(subjects, ROUNDS, seed=offset + seed) for seed in seeds]
        measured = [
            {
                "latency": [latency_row(row).model_dump() for row in latency.measurements],
                "controls": [control_row(control).model_dump() for control in latency.controls],
            }
            for latency in latencies
        ]
        return {"measured": measured}

    def _filled(self, kind: str, measured: dict[str, Any]) -> dict[str, Any]:
        kept = {"verdict": {**self.templates[kind].verdict.model_dump(), "ok": True, "reasons": []}}
        return {**self.templates[kind].model_dump(), **kept, **measured}

    def _measure(self, subjects: Sequence[Subject], rounds: int, *, seed: int) -> Latency:
        feeds = partial(random_inputs, self.source.model, self.source.tokenizer, seed=0)
        return measure_latency(subjects, [SHAPE], feeds, threads=THREADS, provider="cpu", rounds=rounds, seed=seed)

    def _dense(self) -> Subject:
        """One file for all: both models were pruned from it."""
        return Subject("dense", "fp32", self.folders["same"] / "onnx" / "dense" / "fp32" / "model.onnx")

    def _pruned(self, kind: str) -> Path:
        return self.folders[kind] / "onnx" / "fp32" / "model.onnx"


if __name__ == "__main__":
    main()

"""Accuracy after pruning without training: criteria x repairs x widths, on MiniLM fine-tuned for three tasks.

The seed draws the calibration sample. Nothing is chosen by what comes out: the test split is read once per arm. Scores
are computed once per task and seed and shared by all arms; what every finished arm answered is kept in
``results/parts/quality`` per checkpoint, so that an interrupted run goes on where it stopped, and pairs can be compared
in other ways. The result file is written from all arms that are there; to be deleted when skillprune prunes otherwise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from provenance import HERE, PARTS, code_fingerprint, over_seeds, write_result
from samples import CHECKPOINTS, Sample, draw
from verdict import paired, standing

from skillprune import KeepRatio, load_source, plan_pruning, prune_and_repair_
from skillprune.answers import Classifier
from skillprune.evaluation import Predictions, accuracy, predict_split, torch_predictor
from skillprune.pipeline.blockwise import chosen_again
from skillprune.pipeline.sensitivity import measured_curves
from skillprune.planning import PruningPlan, curves_of
from skillprune.progress import silent
from skillprune.recipe import RepairSpec
from skillprune.repair import METHODS, Lessons
from skillprune.scoring import CRITERIA, Provenance, load_scores, save_scores, score_neurons, settings_for
from skillprune.surgery import prune_

ANSWERS = PARTS / "quality"
SCORES = HERE / "work" / "scores"
EXAMPLES = 2048


class Arm(NamedTuple):
    """One way to prune, at one width."""

    criterion: str
    repair: str
    keep_ratio: float
    allocation: str = "uniform"
    selection: str = "once"


DENSE = Arm("none", "none", 1.0)
DEFAULT = {"criterion": "skill", "repair": "least_squares", "allocation": "uniform", "selection": "once"}


def main() -> None:
    """Runs the arms that were asked for and are not done, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", choices=CHECKPOINTS, default=["sst2", "trec"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25, 0.1, 0.02])
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=list(CRITERIA))
    parser.add_argument("--repairs", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--modes", action="store_true", help="skill with every allocation and selection instead")
    arguments = parser.parse_args()
    arms = [DENSE, *(modes(arguments.keep) if arguments.modes else crossed(arguments))]
    for task in arguments.tasks:
        for seed in arguments.seeds:
            bench = Bench(task, seed)
            bench.score({arm.criterion for arm in arms} - {DENSE.criterion})
            for arm in arms:
                bench.run(arm)
    rows = [row for task in CHECKPOINTS for row in finished(task)]
    arm_keys = ("task", "checkpoint", *Arm._fields)
    result = {
        "rows": rows,
        "summary": over_seeds(rows, arm_keys, "test"),
        "verdict": standing(rows, Arm._fields[:2] + Arm._fields[3:], "default_minus_arm"),
    }
    write_result("quality-minilm", seeds=sorted({row["seed"] for row in rows}), result=result)


def crossed(arguments: argparse.Namespace) -> Iterable[Arm]:
    """Every criterion with every repair at every width."""
    return (
        Arm(criterion, repair, keep)
        for keep in arguments.keep
        for repair in arguments.repairs
        for criterion in arguments.criteria
    )


def modes(kept: Sequence[float]) -> Iterable[Arm]:
    """`skill` with least squares: how widths are shared out and when neurons are chosen."""
    return (
        Arm("skill", "least_squares", keep, allocation, selection)
        for keep in kept
        for allocation in ("uniform", "global", "sensitivity")
        for selection in ("once", "blockwise")
    )


@dataclass(frozen=True)
class Bench:
    """One task and one calibration sample."""

    task: str
    seed: int

    @cached_property
    def sample(self) -> Sample:
        """What the seed draws, and the dense model."""
        return draw(self.task, self.seed, EXAMPLES)

    @cached_property
    def lessons(self) -> Lessons:
        """What all repairs would compute alike."""
        return Lessons()

    def score(self, criteria: Set[str]) -> None:
        """All criteria that were not computed before, together."""
        missing = [name for name in CRITERIA if name in criteria and not self._scores_of(name).is_file()]
        if not missing:
            return
        source, splits, data = self.sample.source, self.sample.splits, self.sample.data
        subject = Classifier(source.model)
        settings = settings_for(subject, data, labels=self.sample.task.labels, seed=self.seed, keep_metric=True)
        seen = Provenance(source.fingerprint, splits.fingerprint(), len(splits.calibration), "mean", self.seed)
        self._scores_of("").parent.mkdir(parents=True, exist_ok=True)
        for found in score_neurons(subject, data, criteria=missing, provenance=seen, settings=settings):
            save_scores([found], self._scores_of(found.criterion))

    def _scores_of(self, criterion: str) -> Path:
        return SCORES / self.task / self._name / f"{criterion}.safetensors"

    @cached_property
    def _name(self) -> str:
        """Folder of one seed of one checkpoint: training one again on another machine gives another, up to rounding."""
        return f"{self.seed}-{self.sample.source.fingerprint[:8]}"

    def run(self, arm: Arm) -> None:
        """Prunes, reads the test split once, and keeps the answers."""
        path = ANSWERS / self.task / self._name / f"{'-'.join(map(str, arm))}.npz"
        if path.is_file():
            return
        calibration, started, widths = self.sample.data.calibration, monotonic(), {}
        model = load_source(self.sample.checkpoint).model
        if arm != DENSE:
            plan = self.plan(arm)
            widths = plan.width_after
            if arm.repair == "zero":
                prune_(model, plan)
            else:
                prune_and_repair_(model, plan, calibration, method=arm.repair, lessons=self.lessons)
        seconds = monotonic() - started
        found = predict_split(torch_predictor(model), self.sample.test)
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = json.dumps({"widths": widths, "seconds": round(seconds, 1), "code": code_fingerprint()})
        draft = path.with_suffix(".draft")
        with draft.open("wb") as file:
            labels, predicted = (each.astype(np.uint8) for each in (found.labels, found.predicted))
            np.savez_compressed(file, labels=labels, predicted=predicted, facts=np.array(facts))
        draft.replace(path)
        print(self.task, self.seed, *arm, round(accuracy(found.labels, found.predicted), 4), facts, flush=True)

    def plan(self, arm: Arm) -> PruningPlan:
        """Which neurons stay."""
        dense, calibration = self.sample.source.model, self.sample.data.calibration
        (scores,) = load_scores(self._scores_of(arm.criterion))
        curves = None
        if arm.allocation == "global":
            curves = curves_of(scores)
        elif arm.allocation == "sensitivity":
            curves = measured_curves(Classifier(dense), scores, calibration, silent)
        plan = plan_pruning(dense, scores, KeepRatio(arm.keep_ratio), curves=curves)
        if arm.selection == "once":
            return plan
        model = load_source(self.sample.checkpoint).model
        return replace(plan, keep=chosen_again(model, plan, scores, calibration, RepairSpec(), silent))


def finished(task: str) -> list[dict[str, Any]]:
    """A row per arm that was run: beside the dense model, and beside skillprune's default of the same width."""
    rows = []
    for folder in sorted((ANSWERS / task).glob("*")):
        seed, checkpoint = folder.name.split("-")
        done = {path.name.removesuffix(".npz"): np.load(path) for path in sorted(folder.glob("*.npz"))}
        answers = {
            name: Predictions(each["labels"].astype(int), each["predicted"].astype(int)) for name, each in done.items()
        }
        for name, given in answers.items():
            arm: dict[str, Any] = dict(zip(Arm._fields, name.split("-"), strict=True))
            arm["keep_ratio"] = float(arm["keep_ratio"])
            own = answers.get("-".join(str({**arm, **DEFAULT}[field]) for field in Arm._fields))
            rows.append(
                {
                    "task": task,
                    "seed": int(seed),
                    **arm,
                    **json.loads(str(done[name]["facts"])),
                    "checkpoint": checkpoint,
                    "test": accuracy(given.labels, given.predicted),
                    "to_dense": paired(answers["-".join(map(str, DENSE))], given, int(seed)),
                    "default_minus_arm": None if own is None or own is given else paired(given, own, int(seed)),
                }
            )
    return rows


if __name__ == "__main__":
    main()

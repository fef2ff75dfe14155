"""A decoder and an encoder-decoder with fewer neurons: without training, and with at most five minutes of it.

``stories`` is a small Llama judged by its perplexity, ``g2p`` a small BART judged by the words it pronounces without a
mistake. The seed draws the calibration sample and the order of training. How to prune and how to train was chosen on
validation, with ``--search`` and ``--search --train``; the test split is read once per row.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from time import monotonic, process_time
from typing import Any

from finetune import every_hundredth
from provenance import kept_row, over_seeds, update_result
from samples import SHARED

from skillprune import KeepRatio, load_source, load_splits, plan_pruning, prune_and_repair_, resolve_task
from skillprune.answers import Writer, label_names
from skillprune.evaluation import Outcome, compare, judge_split
from skillprune.pipeline.blockwise import chosen_again
from skillprune.pipeline.detection import batches_of
from skillprune.planning import PruningPlan, curves_of
from skillprune.progress import silent
from skillprune.recipe import ModelSpec, RepairSpec, TaskSpec
from skillprune.recovery import RecoverySettings, recover_
from skillprune.scoring import Provenance, ScoringData, score_neurons, settings_for

EXAMPLES = 8192
KEPT = {"stories": (0.75, 0.5), "g2p": (0.5, 0.25)}
WAYS = (
    ("wanda", "zero", "uniform", "once"),
    ("wanda", "least_squares", "uniform", "once"),
    ("skill", "zero", "uniform", "once"),
    ("skill", "least_squares", "uniform", "once"),
    ("skill", "least_squares", "global", "once"),
    ("skill", "least_squares", "uniform", "blockwise"),
    ("skill", "least_squares", "global", "blockwise"),
)
"""Criterion, repair, allocation, selection."""
LABEL_WEIGHTS = (0.0, 1.0)
"""Of the right answers beside the dense model's, in training."""


@dataclass(frozen=True)
class Subject:
    """A model with its data.

    Attributes:
        model: its directory.
        task: what it does.
        round_to: widths are multiples of this.
        batch: texts per batch.
        epochs: what takes at most five minutes on two cores.
        learning_rate: largest step.
        temperature: of the answers.
        label_weight: of the right answers beside the dense model's.
        way: how it is pruned, the best of ``--search`` on validation.
    """

    model: ModelSpec
    task: TaskSpec
    round_to: int
    batch: int
    epochs: int
    learning_rate: float
    temperature: float
    label_weight: float
    way: tuple[str, str, str, str]


def _files(name: str) -> dict[str, Any]:
    return {split: SHARED / "data" / name / f"{split}.csv" for split in ("train", "validation", "test")}


SUBJECTS = {
    "stories": Subject(
        ModelSpec(name=str(SHARED / "models" / "stories260k"), dtype="float32"),
        TaskSpec(type="language-modeling", data=_files("stories"), metric="perplexity", max_length=256),
        round_to=1,
        batch=16,
        epochs=4,
        learning_rate=2e-3,
        temperature=1.0,
        label_weight=0.0,
        way=WAYS[5],
    ),
    "g2p": Subject(
        ModelSpec(name=str(SHARED / "models" / "g2p-bart"), dtype="float32"),
        TaskSpec(
            type="seq2seq",
            data=_files("g2p"),
            target_tokenizer="target_tokenizer",
            metric="exact_match",
            max_length=64,
        ),
        round_to=16,
        batch=64,
        epochs=30,
        learning_rate=2e-3,
        temperature=4.0,
        label_weight=1.0,
        way=WAYS[6],
    ),
}


def main() -> None:
    """Search, or the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--search", action="store_true", help="compare ways on validation, first seed")
    parser.add_argument("--train", action="store_true", help="train what was pruned")
    asked = parser.parse_args()
    for name in asked.models:
        if asked.search:
            section, rows = _search(name, asked.train)
            update_result("writers", f"{name}-{section}", seeds=[0], result={"rows": rows})
        else:
            section, rows = _measurement(name, asked.seeds, asked.train)
            summary = over_seeds(rows, ("keep_ratio",), "test")
            result = {"way": SUBJECTS[name].way, "rows": rows, "summary": summary}
            update_result("writers", f"{name}-{section}", seeds=asked.seeds, result=result)


def _search(name: str, train: bool) -> tuple[str, list[dict[str, Any]]]:
    """Ways to train at the larger width, or ways to prune at both."""
    keep = KEPT[name][0]
    if train:
        return "training", [
            kept_row(f"writers-training-{name}-{keep}-{weight}", lambda w=weight: taught(name, keep, w))
            for weight in LABEL_WEIGHTS
        ]
    return "search", [
        kept_row(f"writers-search-{name}-{keep}-{'-'.join(way)}", lambda k=keep, w=way: searched(name, k, w))
        for keep in KEPT[name]
        for way in WAYS
    ]


def _measurement(name: str, seeds: list[int], train: bool) -> tuple[str, list[dict[str, Any]]]:
    """Every seed at both widths, with or without training."""
    section, measure, way = "recovered" if train else "pruned", recovered if train else pruned, SUBJECTS[name].way
    return section, [
        kept_row(f"writers-{section}-{name}-{keep}-{seed}-{'-'.join(way)}", lambda k=keep, s=seed: measure(name, k, s))
        for keep in KEPT[name]
        for seed in seeds
    ]


class Bench:
    """One model and one seed: its data, and what was found out about its neurons."""

    def __init__(self, name: str, seed: int) -> None:
        self.subject, self.seed = SUBJECTS[name], seed
        self.source = load_source(self.subject.model, **self._head)
        self.task = resolve_task(self.subject.task, label_names(self.source.model))
        self.splits = load_splits(self.task, examples=EXAMPLES, seed=seed)
        self.data = ScoringData(self.batches("calibration"), self.batches("validation"))

    @property
    def _head(self) -> dict[str, Any]:
        return {"task_type": self.subject.task.type, "target_tokenizer": self.subject.task.target_tokenizer}

    def batches(self, split: str) -> Any:
        """A split in batches."""
        return batches_of(getattr(self.splits, split), self.source, self.task, self.subject.batch)

    @cached_property
    def scores(self) -> dict[str, Any]:
        """Of both criteria, in the same passes."""
        writer, seen = Writer(self.source.model), Provenance("", "", len(self.splits.calibration), "mean", self.seed)
        settings = settings_for(writer, self.data, labels=(), seed=self.seed, keep_metric=True)
        found = score_neurons(writer, self.data, criteria=["wanda", "skill"], provenance=seen, settings=settings)
        return {each.criterion: each for each in found}

    def pruned(self, keep: float, way: tuple[str, str, str, str]) -> tuple[Any, PruningPlan]:
        """A fresh pruned model, and what was kept."""
        criterion, repair, allocation, selection = way
        scores, calibration = self.scores[criterion], self.data.calibration
        curves = curves_of(scores) if allocation == "global" else None
        plan = plan_pruning(self.source.model, scores, KeepRatio(keep), curves=curves, round_to=self.subject.round_to)
        if selection == "blockwise":
            kept = chosen_again(self._dense(), plan, scores, calibration, RepairSpec(method=repair), silent)
            plan = replace(plan, keep=kept)
        model = self._dense()
        prune_and_repair_(model, plan, calibration, method=repair)
        return model, plan

    def _dense(self) -> Any:
        return load_source(self.subject.model, **self._head).model

    def outcome(self, model: Any, split: str) -> Outcome:
        """What a model makes of a split."""
        return judge_split(Writer(model), self.batches(split), self.task.metric)


@cache
def _bench(name: str, seed: int) -> Bench:
    """Scored once for all rows of a model and a seed."""
    return Bench(name, seed)


def searched(name: str, keep: float, way: tuple[str, str, str, str]) -> dict[str, Any]:
    """One way to prune, on validation."""
    bench = _bench(name, 0)
    model, plan = bench.pruned(keep, way)
    names = ("criterion", "repair", "allocation", "selection")
    value = bench.outcome(model, "validation").value(bench.task.metric)
    return {"model": name, "keep_ratio": keep, **dict(zip(names, way, strict=True)), "widths": plan.width_after} | {
        "metric": bench.task.metric,
        "validation": value,
    }


def pruned(name: str, keep: float, seed: int) -> dict[str, Any]:
    """Without training, on test."""
    bench = _bench(name, seed)
    return _row(bench, name, keep, bench.pruned(keep, bench.subject.way)[0])


def taught(name: str, keep: float, label_weight: float) -> dict[str, Any]:
    """One way to train, on validation."""
    bench, subject = _bench(name, 0), replace(SUBJECTS[name], label_weight=label_weight)
    model, found = _trained(bench, subject, keep)
    value = bench.outcome(model, "validation").value(bench.task.metric)
    return {"model": name, "keep_ratio": keep, "metric": bench.task.metric, "validation": value} | found


def recovered(name: str, keep: float, seed: int) -> dict[str, Any]:
    """With training, on test; the epoch is chosen by the loss on validation."""
    bench = _bench(name, seed)
    model, found = _trained(bench, bench.subject, keep)
    return _row(bench, name, keep, model) | found


def _trained(bench: Bench, subject: Subject, keep: float) -> tuple[Any, dict[str, Any]]:
    """A pruned and trained model, and what its training was like."""
    model, _ = bench.pruned(keep, subject.way)
    settings = RecoverySettings(
        epochs=subject.epochs,
        learning_rate=subject.learning_rate,
        temperature=subject.temperature,
        label_weight=subject.label_weight,
        patience=subject.epochs,
        seed=bench.seed,
    )
    started, computed = monotonic(), process_time()
    done = recover_(
        Writer(model),
        Writer(bench.source.model),
        bench.batches("train"),
        bench.data.validation,
        settings,
        metric="loss",
        progress=every_hundredth(),
    )
    return model, {
        "seconds": round(monotonic() - started),
        "cpu_seconds": round(process_time() - computed),
        "settings": asdict(settings),
        "validation_losses": [-epoch.metric for epoch in done.epochs],
    }


def _row(bench: Bench, name: str, keep: float, model: Any) -> dict[str, Any]:
    metric, dense, found = bench.task.metric, bench.outcome(bench.source.model, "test"), bench.outcome(model, "test")
    return {
        "model": name,
        "keep_ratio": keep,
        "seed": bench.seed,
        "metric": metric,
        "dense": dense.value(metric),
        "test": found.value(metric),
        "to_dense": asdict(compare(dense, found, metric=metric, seed=bench.seed)),
    }


if __name__ == "__main__":
    main()

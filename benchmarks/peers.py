"""Other pruners on the same checkpoint, the same calibration examples and the same number of FFN neurons, untrained.

torch-pruning, TextPruner and onnxsim run in environments of their own, made where they are missing. Every arm is stored
when done, so that an interrupted run continues; skillprune's own arm is always computed anew. Nothing is chosen by
what comes out: every arm reads the test split once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peer_jobs import WORK, Peer, has_outcome, predictions, read_outcome, run_peer, write_split
from provenance import over_seeds, write_result
from samples import CHECKPOINTS, spec
from verdict import paired, standing

from skillprune import KeepRatio, load_source, load_splits, make_batches, plan_pruning, prune_and_repair_, resolve_task
from skillprune.answers import Classifier, label_names
from skillprune.data import Batch, Example
from skillprune.evaluation import Predictions, accuracy, predict_split, torch_predictor
from skillprune.planning import PruningPlan, predict_plan
from skillprune.recipe import ModelSpec
from skillprune.scoring import NeuronScores, Provenance, ScoringData, score_neurons, settings_for

KEPT = (0.25, 0.1, 0.02)
EXAMPLES = 2048
ITERATIONS = 4
ARM = ("task", "keep_ratio", "peer", "arm")

PEERS = {
    "torch_pruning": Peer(
        "torch_pruning",
        "torch-pruning==1.6.1",
        {
            f"{importance}, {scope}": {"importance": importance, "global_pruning": scope == "global"}
            for importance in ("magnitude", "taylor", "hessian")
            for scope in ("local", "global")
        },
    ),
    "textpruner": Peer(
        "textpruner",
        "textpruner==1.1.post2",
        {
            f"{name}, {shape}": {"iterations": iterations, "even": shape == "even"}
            for name, iterations in (("one-shot", 1), (f"{ITERATIONS} iterations", ITERATIONS))
            for shape in ("even", "uneven")
        },
    ),
    "onnxsim": Peer(
        "onnxsim",
        "onnxsim==0.8.1",
        {"pruned": {}, "fine-tuned": {"finetune_examples": 512}},
        ("torch", "transformers", "numpy", "onnx", "onnxruntime"),
    ),
}


@dataclass(frozen=True)
class Sample:
    """A task with one calibration sample.

    Attributes:
        task: its name.
        seed: what drew the sample.
        checkpoint: the dense classifier.
        labels: names of the classes.
        data: what skillprune scores with; its calibration batches are also what everyone repairs with.
        test: what everyone is judged by.
        folder: where peers find the same.
    """

    task: str
    seed: int
    checkpoint: ModelSpec
    labels: tuple[str, ...]
    data: ScoringData
    test: tuple[Batch, ...]
    folder: Path


def main() -> None:
    """Every task, seed, width and arm."""
    arguments = parse()
    peers = [chosen(PEERS[name], arguments.arms) for name in arguments.peers]
    rows = []
    for task in arguments.tasks:
        for seed in arguments.seeds:
            sample = draw(task, seed, arguments.examples, arguments.test_examples)
            neurons = {keep: neurons_left(sample, keep) for keep in arguments.keep}
            for peer in () if arguments.stored else peers:
                run_peer(peer, Path(sample.checkpoint.name), sample.folder, list(neurons.values()))
            mine = None if arguments.peers_only else dict(skillprune_arms(sample, arguments.keep))
            rows += rows_of(sample, neurons, peers, mine)
    result: dict[str, Any] = {"examples": arguments.examples, "rows": rows}
    result["summary"] = over_seeds(rows, ARM, "test_accuracy")
    if not arguments.peers_only:
        result["verdict"] = standing(rows, ("peer", "arm"), "skillprune_minus_peer")
    write_result(arguments.name, seeds=arguments.seeds, result=result)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=list(CHECKPOINTS), default=["sst2", "trec"])
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEPT))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--arms", nargs="+", help="only arms whose names start like one of these")
    parser.add_argument("--peers-only", action="store_true", help="leave skillprune's own arm out")
    parser.add_argument("--stored", action="store_true", help="run no peer, report the arms that are stored")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="calibration examples")
    parser.add_argument("--test-examples", type=int, help="read only so many test examples, to try things out")
    parser.add_argument("--name", default="peers-minilm", help="of the result file")
    return parser.parse_args()


def chosen(peer: Peer, starts: Sequence[str] | None) -> Peer:
    """The peer with some of its arms only."""
    return replace(peer, arms={name: peer.arms[name] for name in peer.arms if name.startswith(tuple(starts or [""]))})


def draw(task: str, seed: int, examples: int, test_examples: int | None) -> Sample:
    """Draws the calibration sample and writes it where the peers find it."""
    checkpoint = ModelSpec(name=str(CHECKPOINTS[task]))
    source = load_source(checkpoint)
    resolved = resolve_task(spec(task), label_names(source.model))
    splits = load_splits(resolved, examples=examples, seed=seed)

    def batches(given: Sequence[Example]) -> tuple[Batch, ...]:
        return make_batches(given, source.tokenizer, max_length=resolved.max_length, batch_size=32)

    data, test = ScoringData(batches(splits.calibration), batches(splits.validation)), splits.test[:test_examples]
    name = "-".join([task, str(seed), str(len(test)), source.fingerprint[:8], splits.fingerprint()[:8]])
    sample = Sample(task, seed, checkpoint, tuple(resolved.labels), data, batches(test), WORK / "samples" / name)
    write_split(data.calibration, sample.folder / "calibration.npz")
    write_split(sample.test, sample.folder / "test.npz")
    return sample


def neurons_left(sample: Sample, keep: float) -> int:
    """How many neurons skillprune keeps in all layers together; everyone else may keep as many."""
    return sum(predict_plan(load_source(sample.checkpoint).model, KeepRatio(keep)).width_after["encoder"])


def skillprune_arms(sample: Sample, kept: Sequence[float]) -> list[tuple[float, tuple[Predictions, PruningPlan]]]:
    """skillprune's default at every width."""
    scores = skillprune_scores(sample)
    return [(keep, skillprune_arm(sample, scores, keep)) for keep in kept]


def skillprune_scores(sample: Sample) -> NeuronScores:
    """What the default criterion says."""
    model = Classifier(load_source(sample.checkpoint).model)
    settings = settings_for(model, sample.data, labels=sample.labels, seed=sample.seed)
    seen = Provenance("", "", sum(len(batch) for batch in sample.data.calibration), "mean", sample.seed)
    (scores,) = score_neurons(model, sample.data, criteria=["skill"], provenance=seen, settings=settings)
    return scores


def skillprune_arm(sample: Sample, scores: NeuronScores, keep: float) -> tuple[Predictions, PruningPlan]:
    """The default plan and repair, and what the pruned model answers."""
    model = load_source(sample.checkpoint).model
    plan = plan_pruning(model, scores, KeepRatio(keep))
    prune_and_repair_(model, plan, sample.data.calibration, method="least_squares")
    return predict_split(torch_predictor(model), sample.test), plan


def rows_of(
    sample: Sample,
    neurons: Mapping[float, int],
    peers: Sequence[Peer],
    mine: Mapping[float, tuple[Predictions, PruningPlan]] | None,
) -> list[dict[str, Any]]:
    """One line per width and arm: the dense model, skillprune, and every peer beside skillprune."""
    common = {"task": sample.task, "seed": sample.seed}
    dense = predict_split(torch_predictor(load_source(sample.checkpoint).model), sample.test)
    rows = [line({**common, "keep_ratio": 1.0, "peer": "none", "arm": "dense"}, dense)]
    for keep, count in neurons.items():
        at = {**common, "keep_ratio": keep, "neurons": count}
        ours = mine[keep] if mine else None
        if ours:
            rows.append(line({**at, "peer": "skillprune", "arm": "default"}, ours[0]))
            rows[-1]["widths"] = list(ours[1].width_after["encoder"])
        for peer in peers:
            for arm in (each for each in peer.arms if has_outcome(peer, sample.folder, each, count)):
                found = read_outcome(peer, sample.folder, arm, count)
                predicted = predictions(found, sample.folder)
                rows.append(line({**at, "peer": peer.name, "arm": arm}, predicted))
                rows[-1] |= {"settings": dict(peer.arms[arm]), "widths": list(found.widths)}
                rows[-1] |= {key: getattr(found, key) for key in ("parameters", "seconds", "versions")}
                if ours:
                    rows[-1]["skillprune_minus_peer"] = paired(predicted, ours[0], sample.seed)
    return rows


def line(arm: Mapping[str, Any], predicted: Predictions) -> dict[str, Any]:
    """The start of a row."""
    row = {**arm, "test_accuracy": accuracy(predicted.labels, predicted.predicted)}
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()

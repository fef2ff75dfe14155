"""MiniLM on SST-2 with 2 % of its neurons: how far at most ten minutes of training on two cores bring it back.

Rate and weight are the best of ``--search`` on validation, epochs what slower machines manage in that time. The test
split is read twice per seed: before recovery and after.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from time import monotonic
from typing import Any

from finetune import every_hundredth
from provenance import kept_row, minilm_recipe, update_result

from skillprune import KeepRatio, load_source, load_splits, make_batches, plan_pruning, prune_and_repair_, resolve_task
from skillprune.answers import Classifier, label_names
from skillprune.data import Batch, Example
from skillprune.evaluation import Predictions, accuracy, compare, predict_split, torch_predictor
from skillprune.recovery import Recovery, RecoverySettings, recover_
from skillprune.scoring import Provenance, ScoringData, score_neurons

KEEP, EXAMPLES = 0.02, 2048
SETTINGS = RecoverySettings(epochs=5, learning_rate=2e-4, hidden_weight=1.0, temperature=2.0, patience=5)
RATES, WEIGHTS, SEARCH_EPOCHS = (2e-4, 4e-4), (0.0, 1.0), 2


def main() -> None:
    """Search, or the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--search", action="store_true", help="compare settings on validation, first seed")
    arguments = parser.parse_args()
    if arguments.search:
        bench = Bench(arguments.seeds[0])
        rows = [
            kept_row(
                f"recovery-search-{bench.seed}-{SEARCH_EPOCHS}-{rate}-{weight}", partial(bench.searched, rate, weight)
            )
            for rate, weight in product(RATES, WEIGHTS)
        ]
        update_result("recovery-minilm-sst2", "search", seeds=arguments.seeds[:1], result={"rows": rows})
    else:
        told = f"{SETTINGS.epochs}-{SETTINGS.learning_rate}-{SETTINGS.hidden_weight}"
        rows = [
            kept_row(f"recovery-{seed}-{told}", lambda seed=seed: Bench(seed).measured()) for seed in arguments.seeds
        ]
        result = {"settings": asdict(SETTINGS), "rows": rows}
        update_result("recovery-minilm-sst2", "recovery", seeds=arguments.seeds, result=result)


class Bench:
    """One seed: data, and the dense model's scores."""

    def __init__(self, seed: int) -> None:
        self.seed, self.recipe = seed, minilm_recipe("model.dtype=float32")
        self.dense = load_source(self.recipe.model)
        self.task = resolve_task(self.recipe.task, label_names(self.dense.model))
        self.splits = load_splits(self.task, examples=EXAMPLES, seed=seed)
        calibration, self.validation = self.batches(self.splits.calibration), self.batches(self.splits.validation)
        seen = Provenance("", "", len(self.splits.calibration), "mean", seed)
        data = ScoringData(calibration, self.validation)
        (scores,) = score_neurons(self.dense.model, data, criteria=["skill"], provenance=seen)
        self.plan, self.calibration = plan_pruning(self.dense.model, scores, KeepRatio(KEEP)), calibration

    def batches(self, examples: Sequence[Example]) -> tuple[Batch, ...]:
        """Batches of 32."""
        return make_batches(examples, self.dense.tokenizer, max_length=self.task.max_length, batch_size=32)

    def pruned(self) -> Any:
        """A fresh pruned model."""
        model = load_source(self.recipe.model).model
        prune_and_repair_(model, self.plan, self.calibration)
        return model

    def recover_(self, model: Any, settings: RecoverySettings) -> Recovery:
        """Trains on the whole train split."""
        train = self.batches(self.splits.train)
        subjects = (Classifier(model), Classifier(self.dense.model))
        return recover_(*subjects, train, self.validation, settings, progress=every_hundredth())

    def searched(self, rate: float, weight: float) -> dict[str, Any]:
        """One combination of settings, on validation."""
        settings = replace(SETTINGS, learning_rate=rate, hidden_weight=weight, epochs=SEARCH_EPOCHS, seed=self.seed)
        done = self.recover_(self.pruned(), settings)
        return {"learning_rate": rate, "hidden_weight": weight, "epochs": [asdict(epoch) for epoch in done.epochs]}

    def measured(self) -> dict[str, Any]:
        """The settings that were chosen, on test."""
        model, test = self.pruned(), self.batches(self.splits.test)
        dense, before = self.answers(self.dense.model, test), self.answers(model, test)
        started = monotonic()
        done = self.recover_(model, replace(SETTINGS, seed=self.seed))
        seconds = monotonic() - started
        after = self.answers(model, test)
        accuracies = {
            name: accuracy(found.labels, found.predicted)
            for name, found in (("dense", dense), ("pruned", before), ("recovered", after))
        }
        return {
            "seed": self.seed,
            **accuracies,
            "to_dense": asdict(compare(dense, after, metric="accuracy", seed=self.seed)),
            "validation": [epoch.metric for epoch in done.epochs],
            "kept_epoch": done.best,
            "seconds": round(seconds),
        }

    @staticmethod
    def answers(model: Any, batches: Sequence[Batch]) -> Predictions:
        """Of one model on the test split."""
        return predict_split(torch_predictor(model), batches)


if __name__ == "__main__":
    main()

"""Prunes to some widths on trial and says what that loses on validation; scores are reused, files are not written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from skillprune.data import Batch
from skillprune.evaluation import METRICS, Predictions, predict_split, standard_error, torch_predictor
from skillprune.planning import PruningPlan, Trial, Widths
from skillprune.progress import Progress

MakePlan = Callable[[Widths], PruningPlan]


@dataclass
class Candidates:
    """Candidates of one recipe; the dense model's own answers are computed once.

    Attributes:
        load: gives the dense model anew.
        plan_for: which neurons stay at some widths.
        repair_: prunes a model by a plan and repairs it, in place.
        validation: examples to judge by.
        metric: name of the metric.
        seed: of the standard error's bootstrap.
        progress: told about every candidate.
    """

    load: Callable[[], PreTrainedModel]
    plan_for: MakePlan
    repair_: Callable[[PreTrainedModel, PruningPlan], object]
    validation: Sequence[Batch]
    metric: str
    seed: int
    progress: Progress
    _dense: list[Predictions] = field(default_factory=list)

    def try_out(self, widths: Widths) -> Trial:
        """What the model pruned to these widths loses on validation."""
        if not self._dense:
            self._dense.append(self._answers(self.load(), "dense"))
        model = self.load()
        self.repair_(model, self.plan_for(widths))
        found = self._answers(model, f"{sum(map(sum, widths.values())):,} neurons")
        dense, measure = self._dense[0], METRICS[self.metric]
        drop = measure(dense.labels, dense.predicted) - measure(found.labels, found.predicted)
        return Trial(drop, standard_error(dense, found, metric=self.metric, seed=self.seed))

    def _answers(self, model: PreTrainedModel, what: str) -> Predictions:
        return predict_split(torch_predictor(model), self.validation, what=f"trial ({what})", progress=self.progress)

"""Prunes to some widths on trial and says what that loses on validation; scores are reused, files are not written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from skillprune.answers import TaskModel
from skillprune.data import Batch
from skillprune.evaluation import Outcome, drop, judge_split, standard_error
from skillprune.planning import PruningPlan, Trial, Widths
from skillprune.progress import Progress

MakePlan = Callable[[Widths], PruningPlan]


@dataclass
class Candidates:
    """Candidates of one recipe; the dense model's own answers are computed once.

    Attributes:
        load: gives the dense model anew.
        put: puts the task to a model.
        plan_for: which neurons stay at some widths.
        repair_: prunes a model by a plan and repairs it, in place.
        validation: examples to judge by.
        metric: name of the metric.
        seed: of the standard error's bootstrap.
        progress: told about every candidate.
    """

    load: Callable[[], PreTrainedModel]
    put: Callable[[PreTrainedModel], TaskModel]
    plan_for: MakePlan
    repair_: Callable[[PreTrainedModel, PruningPlan], object]
    validation: Sequence[Batch]
    metric: str
    seed: int
    progress: Progress
    _dense: list[Outcome] = field(default_factory=list)

    def try_out(self, widths: Widths) -> Trial:
        """What the model pruned to these widths loses on validation."""
        if not self._dense:
            self._dense.append(self._answers(self.load(), "dense"))
        model = self.load()
        self.repair_(model, self.plan_for(widths))
        found = self._answers(model, f"{sum(map(sum, widths.values())):,} neurons")
        dense = self._dense[0]
        lost = drop(self.metric, dense.value(self.metric), found.value(self.metric))
        return Trial(lost, standard_error(dense, found, metric=self.metric, seed=self.seed))

    def _answers(self, model: PreTrainedModel, what: str) -> Outcome:
        subject = self.put(model)
        return judge_split(subject, self.validation, self.metric, what=f"trial ({what})", progress=self.progress)

"""From a recipe's budget to a plan; whatever a budget needs to know is measured here, when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from skillprune.checkpoint import Attention, Source, load_source
from skillprune.errors import Problem, RecipeError
from skillprune.pipeline.blockwise import chosen_again
from skillprune.pipeline.candidates import Candidates
from skillprune.pipeline.detection import Detection
from skillprune.pipeline.inputs import parity_inputs, random_inputs
from skillprune.pipeline.latency_table import latency_table
from skillprune.pipeline.sensitivity import measured_curves
from skillprune.planning import (
    Budget,
    Curves,
    KeepRatio,
    LatencyTable,
    Macs,
    MaxDrop,
    Parameters,
    Prediction,
    PruningPlan,
    Speedup,
    Widths,
    best_neurons,
    curves_of,
    model_costs,
    plan_pruning,
    predict_plan,
)
from skillprune.progress import Progress
from skillprune.recipe import Recipe
from skillprune.repair import LayerError, Lessons, lessons_if_room, prune_and_repair_
from skillprune.scoring import NeuronScores


@dataclass(frozen=True, eq=False)
class Planner:
    """A recipe's model, data and budget.

    Attributes:
        recipe: the request.
        source: the dense model.
        detection: its examples, and how its task is put to it.
        metric: name of the task's metric.
        cache: off, times that were measured before do not count.
        progress: told about long work.
    """

    recipe: Recipe
    source: Source
    detection: Detection
    metric: str
    cache: bool
    progress: Progress

    def check(self) -> None:
        """Refuses what cannot be planned, without running anything.

        Raises:
            RecipeError: a budget cuts a model whose weights are kept elsewhere; a plan needs details that scores of
                several soft prompts do not have; or blocks are to be chosen one after the other and repaired at once.
        """
        spec, prompt = self.recipe.plan, self.recipe.scoring.prompt
        elsewhere = any(parameter.device.type == "meta" for parameter in self.source.model.parameters())
        for field, cuts in (("max_drop", spec.max_drop is not None), ("selection", spec.selection == "blockwise")):
            if cuts and elsewhere:
                wanted = "prunes on trial, for which no weight may be kept outside the devices that compute"
                raise RecipeError([Problem(f"plan.{field}", str(getattr(spec, field)), wanted)])
        if spec.selection == "blockwise" and not self.recipe.repair.sequential:
            wanted = "blockwise chooses on the network repaired so far; set repair.sequential to true"
            raise RecipeError([Problem("plan.selection", spec.selection, wanted)])
        needy = "global" if spec.allocation == "global" and self.recipe.scoring.criterion == "skill" else None
        needy = "blockwise" if spec.selection == "blockwise" else needy
        if needy and prompt is not None and prompt.trials > 1:
            wanted = f"{needy} needs the details of one trial; set it to 1"
            raise RecipeError([Problem("scoring.prompt.trials", str(prompt.trials), wanted)])

    def predict(self) -> Prediction:
        """Widths, parameters, MACs and times the plan will have, before anything is scored.

        Times are those of this machine, measured now unless they were before. Where widths depend on scores or trials,
        a note says so: even shares stand for uneven ones, and for those that trials will find, the model as it is.
        """
        spec = self.recipe.plan
        budget = KeepRatio(1.0) if spec.max_drop is not None else self._size_or_time()
        found = predict_plan(self.source.model, budget, round_to=spec.round_to, keep_layers=spec.keep_layers)
        note = None
        if spec.max_drop is not None:
            note = "widths are found by trials on validation; `skillprune plan` makes them"
        elif spec.allocation != "uniform":
            note = (
                f"the allocation {spec.allocation} will share these neurons out unevenly; `skillprune plan` shows how"
            )
        if self.recipe.is_exported and not self.recipe.task.writes:
            found = replace(found, latency=self._latency_table.timings(found.width_before, found.width_after))
        return replace(found, note=note)

    def plan(self, scores: NeuronScores) -> PruningPlan:
        """Which neurons stay, by the scores that decide."""
        spec = self.recipe.plan
        plan = plan_pruning(
            self.source.model,
            scores,
            self._size_or_time() if spec.max_drop is None else self._drop(scores, spec.max_drop),
            curves=self._curves(scores),
            round_to=spec.round_to,
            keep_layers=spec.keep_layers,
        )
        plan = replace(plan, budget={**plan.budget, "allocation": spec.allocation, "selection": spec.selection})
        if spec.selection == "blockwise":
            calibration, repair = self.detection.data.calibration, self.recipe.repair
            return replace(plan, keep=chosen_again(self.dense(), plan, scores, calibration, repair, self.progress))
        return plan

    def repair_(
        self, model: PreTrainedModel, plan: PruningPlan, lessons: Lessons | None = None
    ) -> tuple[LayerError, ...]:
        """Prunes a dense model in place as the recipe asks."""
        repair = self.recipe.repair
        return prune_and_repair_(
            model,
            plan,
            self.detection.data.calibration,
            method=repair.method,
            ridge=repair.ridge,
            sequential=repair.sequential,
            attention=repair.attention,
            lessons=lessons,
            progress=self.progress,
        )

    def _size_or_time(self) -> Budget:
        spec = self.recipe.plan
        if spec.parameters is not None:
            return Parameters(spec.parameters)
        if spec.macs is not None:
            return Macs(spec.macs)
        if spec.speedup is not None:
            return Speedup(spec.speedup, self._latency_table)
        assert spec.keep_ratio is not None  # the recipe fills it in where no other budget is given
        return KeepRatio(spec.keep_ratio)

    def _drop(self, scores: NeuronScores, limit: float) -> Budget:
        costs = model_costs(self.source.model)

        def plan_for(widths: Widths) -> PruningPlan:
            keep = best_neurons(scores, widths)
            return PruningPlan(keep, scores.widths, scores.criterion, {}, self.recipe.plan.round_to, costs, costs)

        trials = Candidates(
            load=self.dense,
            put=lambda model: replace(self.detection.subject, model=model),
            plan_for=plan_for,
            repair_=partial(self.repair_, lessons=lessons_if_room(self.source.model, self.detection.data.calibration)),
            validation=self.detection.data.validation,
            metric=self.metric,
            seed=self.recipe.seed,
            progress=self.progress,
        )
        return MaxDrop(limit, trials.try_out)

    def _curves(self, scores: NeuronScores) -> Curves | None:
        if self.recipe.plan.allocation == "uniform":
            return None
        if self.recipe.plan.allocation == "global":
            return curves_of(scores)
        return measured_curves(self.detection.subject, scores, self.detection.data.calibration, self.progress)

    @cached_property
    def _latency_table(self) -> LatencyTable:
        recipe, source = self.recipe, self.source

        def feeds(batch: int, sequence: int) -> Mapping[str, NDArray[np.generic]]:
            return random_inputs(source.model, source.tokenizer, batch, sequence, seed=recipe.seed)

        return latency_table(
            lambda: float32_model(recipe, "eager"),
            parity_inputs(source.model, source.tokenizer, seed=recipe.seed),
            feeds,
            recipe.benchmark,
            recipe.export,
            round_to=recipe.plan.round_to,
            seed=recipe.seed,
            cache=self.cache,
            progress=self.progress,
        )

    def dense(self) -> PreTrainedModel:
        """The dense model anew: whatever is done to it, the other stays as it is."""
        task = self.recipe.task
        return load_source(self.recipe.model, task_type=task.type, target_tokenizer=task.target_tokenizer).model


def float32_model(recipe: Recipe, attention: Attention) -> PreTrainedModel:
    """The dense model as files are made and compared, whatever dtype scoring runs in."""
    spec, task = recipe.model.model_copy(update={"dtype": "float32"}), recipe.task
    return load_source(spec, task_type=task.type, target_tokenizer=task.target_tokenizer, attention=attention).model

"""From a recipe's checkpoint and examples to scored neurons; the run directory is left to the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from skillprune.activations import Reading
from skillprune.answers import Classifier, TaskModel, Verbalizer, Writer
from skillprune.checkpoint import Source
from skillprune.data import Batch, Example, label_word_ids, make_batches
from skillprune.errors import Problem, RecipeError
from skillprune.families import find_ffns
from skillprune.progress import Progress
from skillprune.prompts import Prompted, PromptSettings, check_fit, tune_prompt
from skillprune.recipe import Recipe
from skillprune.repair import refuse_unwalkable
from skillprune.scoring import (
    NeuronScores,
    Provenance,
    ScoringData,
    Settings,
    combine_trials,
    prepare_criteria,
    score_neurons,
    settings_for,
)
from skillprune.tasks import Task


def batches_of(examples: Sequence[Example], source: Source, task: Task, batch_size: int) -> tuple[Batch, ...]:
    """Examples as the model of a task wants them.

    Raises:
        SkillPruneError: the examples, the template or the tokenizer cannot be used.
    """
    return make_batches(
        examples,
        source.tokenizer,
        max_length=task.max_length,
        batch_size=batch_size,
        task_type=task.type,
        template=task.template,
        target_tokenizer=source.target_tokenizer,
        decoder_start=getattr(source.model.config, "decoder_start_token_id", None),
    )


def subject_of(source: Source, task: Task) -> TaskModel:
    """The model, with the way its task is put to it.

    Raises:
        DataError: a label word is not a single token.
    """
    if not task.classifies:
        return Writer(source.model)
    if task.template is None:
        return Classifier(source.model)
    return Verbalizer(
        source.model, label_word_ids(source.tokenizer, task.label_words, task_type=task.type, template=task.template)
    )


@dataclass(frozen=True, eq=False)
class Detection:
    """Everything that scoring needs, checked; nothing has run yet.

    Attributes:
        recipe: the request.
        subject: the model and how its task is put to it.
        data: what it is scored on.
        settings: where sequences are read and the like.
        provenance: what the scores will say they come from.
        mask_token: the tokenizer's mask token, if it has one.
    """

    recipe: Recipe
    subject: TaskModel
    data: ScoringData
    settings: Settings
    provenance: Provenance
    mask_token: int | None

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criterion that decides, then those computed beside it."""
        return (self.recipe.scoring.criterion, *self.recipe.scoring.also)

    def check(self) -> None:
        """Refuses what scoring would refuse, without running the model.

        Raises:
            DataError: a class is too rare for a criterion.
            RecipeError: the soft prompt does not fit beside the longest input, the position does not exist, or the
                model is of another kind than the task.
            UnsupportedArchitecture: the model has no row in the family table.
        """
        if self.settings.keep_metric and self.recipe.scoring.criterion != "skill":
            wanted = "needs scoring.criterion: skill, which can choose again"
            raise RecipeError([Problem("plan.selection", "blockwise", wanted)])
        if self.settings.reading.position == "mask" and not isinstance(self.subject, Verbalizer):
            wanted = "needs a task with a template: masked-lm or causal-lm"
            raise RecipeError([Problem("scoring.position", "mask", wanted)])
        ffns = find_ffns(self.subject.model)
        if any(ffn.stack.side == "output" for ffn in ffns) and self.recipe.task.type != "seq2seq":
            wanted = "a model with a decoder beside its encoder is scored as seq2seq"
            raise RecipeError([Problem("task.type", self.recipe.task.type, wanted)])
        if self.settings.keep_metric:
            refuse_unwalkable(ffns)
        prepare_criteria(ffns, self.criteria, self.settings)
        if self.recipe.scoring.prompt is not None:
            for batch in (*self.data.calibration, *self.data.validation):
                check_fit(batch, self.subject.model.config, self.recipe.scoring.prompt.tokens)

    def scores(self, prompts: Sequence[TaskModel], progress: Progress) -> tuple[NeuronScores, ...]:
        """Scores the model as it is or, when there are soft prompts, with each of them, and combines the trials."""
        if not prompts:
            return self._scores(self.subject, progress)
        spec = self.recipe.scoring.prompt
        assert spec is not None  # there are prompts because it asks for them
        trials = [self._scores(prompted, progress) for prompted in prompts]
        return tuple(
            combine_trials(each, spec.combine, self.recipe.scoring.reduce) for each in zip(*trials, strict=True)
        )

    def tunings(self) -> tuple[PromptSettings, ...]:
        """How each of the soft prompts is tuned; they differ in the seed."""
        spec, seed = self.recipe.scoring.prompt, self.recipe.seed
        if spec is None:
            return ()
        first = PromptSettings(spec.tokens, spec.epochs, spec.learning_rate)
        # Far apart, so that two recipes that differ in their seed share no prompt.
        return tuple(replace(first, seed=1000 * seed + trial) for trial in range(spec.trials))

    def tune(self, settings: PromptSettings, progress: Progress) -> Prompted:
        """The model with a soft prompt tuned on the calibration examples."""
        return tune_prompt(
            self.subject,
            self.data.calibration,
            self.data.validation,
            settings,
            mask_token=self.mask_token,
            progress=progress,
        )

    def _scores(self, subject: TaskModel, progress: Progress) -> tuple[NeuronScores, ...]:
        return score_neurons(
            subject,
            self.data,
            criteria=self.criteria,
            provenance=self.provenance,
            settings=self.settings,
            progress=progress,
        )


def detection(recipe: Recipe, source: Source, task: Task, data: ScoringData, fingerprint: str) -> Detection:
    """Puts together what scoring needs; ``fingerprint`` is that of the examples."""
    scoring = recipe.scoring
    subject = subject_of(source, task)
    reading = Reading(scoring.position, scoring.include_special, scoring.include_prompt)
    settings = settings_for(
        subject,
        data,
        labels=task.labels,
        reading=reading,
        positions=scoring.prompt.tokens if scoring.prompt is not None and scoring.position == "prompt" else 1,
        seed=recipe.seed,
        multiclass=scoring.multiclass,
        reduce=scoring.reduce,
        balanced=scoring.balanced,
        keep_metric=recipe.plan.selection == "blockwise",
    )
    provenance = Provenance(
        model=source.fingerprint,
        data=_fingerprint(task, fingerprint),
        examples=settings.examples["calibration"],
        position=scoring.position,
        seed=recipe.seed,
    )
    return Detection(recipe, subject, data, settings, provenance, source.tokenizer.mask_token_id)


def _fingerprint(task: Task, examples: str) -> str:
    """Of everything that makes two tasks on the same examples different."""
    template = task.template.source if task.template is not None else None
    asked = [examples, task.type, template, task.label_words, task.labels, task.target, task.max_length]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

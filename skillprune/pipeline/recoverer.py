"""What a recipe asks for after pruning: training towards the dense model, and soft prompts tuned once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from skillprune.checkpoint import Source
from skillprune.data import Batch, Splits, fingerprint, recovery_examples
from skillprune.errors import Problem, RecipeError
from skillprune.pipeline.detection import Detection, batches_of
from skillprune.pipeline.results import PromptLosses
from skillprune.progress import Progress
from skillprune.prompts import Prompted, check_fit, tune_prompt
from skillprune.recipe import Recipe
from skillprune.recovery import Recovery, RecoverySettings, recover_
from skillprune.tasks import Task


@dataclass(frozen=True, eq=False)
class Recoverer:
    """A recipe's recovery, with the examples it needs.

    Attributes:
        recipe: the request.
        detection: the dense model, how its task is put to it, and the validation examples.
        metric: what chooses the best epoch: the task's metric, or the loss where the task has no classes.
        train: batches to learn from; none if nothing is asked for.
        fingerprint: of their examples.
        progress: told about long work.
    """

    recipe: Recipe
    detection: Detection
    metric: str
    train: tuple[Batch, ...]
    fingerprint: str
    progress: Progress

    def check(self) -> None:
        """Refuses what could not be trained, without running anything.

        Raises:
            RecipeError: the model does not fit into memory as a whole, or a prompt not beside the longest input.
        """
        model = self.detection.subject.model
        if self.train and any(parameter.device.type == "meta" for parameter in model.parameters()):
            wanted = "needs the whole model in memory; with this model.device_map some of it is elsewhere"
            raise RecipeError([Problem("recovery", "", wanted)])
        if self.recipe.recovery.prompt and self.recipe.scoring.prompt is not None:
            for batch in self.train:
                check_fit(batch, model.config, self.recipe.scoring.prompt.tokens)

    def train_(self, model: PreTrainedModel, checkpoint: Path) -> Recovery:
        """Trains a pruned model in place; what an interruption left in ``checkpoint`` is gone on from."""
        spec = self.recipe.recovery
        settings = RecoverySettings(
            epochs=spec.epochs,
            learning_rate=spec.learning_rate,
            hidden_weight=spec.hidden_weight,
            label_weight=spec.label_weight,
            temperature=spec.temperature,
            train=spec.train,
            patience=spec.patience,
            seed=self.recipe.seed,
        )
        subject = self.detection.subject
        return recover_(
            replace(subject, model=model),
            subject,
            self.train,
            self.detection.data.validation,
            settings,
            metric=self.metric,
            checkpoint=checkpoint,
            progress=self.progress,
        )

    def tune_again(self, model: PreTrainedModel, prompted: Prompted) -> Prompted:
        """A soft prompt tuned further in front of a pruned model: Wang, Wen et al., arXiv 2211.07349, section 6.1."""
        return tune_prompt(
            replace(self.detection.subject, model=model),
            self.train,
            self.detection.data.validation,
            prompted.prompt.settings,
            start=prompted.prompt,
            progress=self.progress,
        )


def recoverer(
    recipe: Recipe, source: Source, task: Task, splits: Splits, detection: Detection, progress: Progress
) -> Recoverer:
    """Reads the examples, if the recipe asks for recovery at all.

    Raises:
        DataError: the examples cannot be used, or some of them are in the test split.
        ResourceFailure: the disk or the network failed.
    """
    spec = recipe.recovery
    examples = recovery_examples(task, splits, spec.data) if spec.epochs or spec.prompt else ()
    train = batches_of(examples, source, task, recipe.scoring.batch_size)
    # Where no classes are chosen, the loss of the right text decides: greedy decoding would take longer than training.
    metric = task.metric if task.classifies else "loss"
    return Recoverer(recipe, detection, metric, train, fingerprint(examples), progress)


def losses_of(prompts: Sequence[Prompted]) -> tuple[PromptLosses, ...]:
    """What validation says of prompts before and after they were tuned again."""
    return tuple(PromptLosses(each.prompt.losses[0], min(each.prompt.losses)) for each in prompts)

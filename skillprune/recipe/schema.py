"""The whole recipe as one frozen value, its YAML and its JSON schema; reading recipe files is left to loading."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from skillprune.errors import Problem, RecipeError
from skillprune.recipe.base import Spec, StrictInt
from skillprune.recipe.inputs import ModelField
from skillprune.recipe.problems import explain
from skillprune.recipe.recovery import RecoverySpec
from skillprune.recipe.source import Document, RecipeDumper
from skillprune.recipe.stages import (
    BenchmarkSpec,
    CheckpointSpec,
    DemandSpec,
    ExportSpec,
    PlanSpec,
    RepairSpec,
    ScoringSpec,
)
from skillprune.recipe.task import ONE_PASS_TYPES, TaskSpec


class Recipe(Spec):
    """The user's whole request with every default filled in.

    The same in YAML and in Python; relative paths in Python start from the working directory.

        Recipe(model="./my-model", task={"data": {"train": "train.csv", "test": "test.csv"}})

    Raises:
        RecipeError: Something is wrong; it carries every problem at once.
    """

    model: ModelField = Field(
        description="The checkpoint to make smaller: a directory, a hub id, `builtin:reviews-tiny`, or a mapping.",
        examples=["./my-model", {"name": "./my-model", "dtype": "float32"}],
    )
    task: TaskSpec = Field(description="What the checkpoint is for.")
    scoring: ScoringSpec = Field(default_factory=ScoringSpec, description="How neurons are scored.")
    plan: PlanSpec = Field(default_factory=PlanSpec, description="How many neurons are kept, and where.")
    repair: RepairSpec = Field(default_factory=RepairSpec, description="What the remaining weights become.")
    recovery: RecoverySpec = Field(default_factory=RecoverySpec, description="Training after pruning.")
    checkpoint: CheckpointSpec = Field(
        default_factory=CheckpointSpec, description="How the pruned checkpoint is written."
    )
    export: ExportSpec = Field(
        default_factory=ExportSpec, validate_default=True, description="Which ONNX files are written."
    )
    benchmark: BenchmarkSpec = Field(default_factory=BenchmarkSpec, description="How latency is measured.")
    demand: DemandSpec = Field(
        default_factory=DemandSpec, description="What must hold for the run to count as a success."
    )
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Seed of everything random; the same seed gives the same plan."
    )

    _document: Document = PrivateAttr(default_factory=lambda: Document(None))

    def located(self, problem: Problem) -> Problem:
        """A problem found after validation, with the place of its field in the file the recipe was read from."""
        if not self._document.places:
            return problem
        place = self._document.place(problem.field)
        return replace(problem, file=place.origin.name, line=place.line, column=place.column)

    @field_validator("recovery")
    @classmethod
    def _has_prompts_to_tune(cls, recovery: RecoverySpec, info: ValidationInfo) -> RecoverySpec:
        if recovery.prompt and "scoring" in info.data and info.data["scoring"].prompt is None:
            raise ValueError("prompt: true needs soft prompts to tune again; add scoring.prompt, or set it to false")
        return recovery

    @field_validator("checkpoint")
    @classmethod
    def _is_possible(cls, checkpoint: CheckpointSpec, info: ValidationInfo) -> CheckpointSpec:
        plan = info.data.get("plan")
        if checkpoint.format == "uniform" and plan is not None and (plan.keep_layers or plan.allocation != "uniform"):
            uneven = "keep_layers" if plan.keep_layers else f"allocation: {plan.allocation}"
            raise ValueError(
                f"format: uniform wants layers of one width, and plan.{uneven} makes them differ; choose "
                "per-layer, padded or auto_map, or auto"
            )
        return checkpoint

    @field_validator("plan")
    @classmethod
    def _can_be_planned(cls, plan: PlanSpec, info: ValidationInfo) -> PlanSpec:
        task = info.data.get("task")
        if plan.speedup is not None and task is not None and task.writes:
            raise ValueError(
                f"speedup needs models that say all at once, which are those of {' and '.join(ONE_PASS_TYPES)}; give a "
                f"{task.type} model another budget"
            )
        return plan

    @field_validator("export")
    @classmethod
    def _suits_the_task(cls, export: ExportSpec, info: ValidationInfo) -> ExportSpec:
        task, plan = info.data.get("task"), info.data.get("plan")
        if task is None:
            return export
        if export.variants is None:
            export = export.model_copy(update={"variants": ("fp32",) if task.type == "text-classification" else ()})
        if not export.variants and plan is not None and plan.speedup is not None:
            raise ValueError("variants: [] exports nothing, and plan.speedup needs files to time; add fp32")
        if task.writes and "int8-static" in (export.variants or ()):
            raise ValueError(f"int8-static has no ranges for the caches of {task.type} models; choose int8-dynamic")
        if task.writes and not set(export.backends) <= {"auto", "torchscript"}:
            raise ValueError(f"only torchscript exports the caches of {task.type} models; choose it, or auto")
        if task.writes and export.opset is not None:
            raise ValueError(f"opset cannot be chosen for the caches of {task.type} models; leave it out")
        return export

    @field_validator("benchmark")
    @classmethod
    def _suits_the_files(cls, benchmark: BenchmarkSpec, info: ValidationInfo) -> BenchmarkSpec:
        task, export = info.data.get("task"), info.data.get("export")
        integers = [name for name in (export.variants or () if export is not None else ()) if name.startswith("int8")]
        if integers and benchmark.provider == "cuda":
            raise ValueError(
                f"provider: cuda does not compute {integers[0]}; ask for fp16 or auto, or time it on the cpu"
            )
        if benchmark.references and task is not None and task.writes:
            raise ValueError(f"references are timed where models say all at once; leave them out for {task.type}")
        return benchmark

    @field_validator("demand")
    @classmethod
    def _can_be_measured(cls, demand: DemandSpec, info: ValidationInfo) -> DemandSpec:
        export = info.data.get("export")
        if demand.min_speedup is not None and export is not None and not export.variants:
            raise ValueError("min_speedup needs ONNX files to time; add export: {variants: [fp32]}, or leave it out")
        return demand

    @property
    def variants(self) -> tuple[str, ...]:
        """Number formats that are asked for, as the recipe has them; none where nothing is exported."""
        return self.export.variants or ()

    @property
    def is_exported(self) -> bool:
        """Whether ONNX files are made and timed."""
        return bool(self.variants)

    @model_validator(mode="wrap")
    @classmethod
    def _all_problems_at_once(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise RecipeError(explain(error, cls, info.context)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal recipe."""
    values = recipe.model_dump(mode="json")
    return yaml.dump(values, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=120)


def recipe_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file, short forms included; it cannot say which files must exist."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}

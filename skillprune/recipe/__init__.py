"""The user's request: schema, YAML with the place of every problem, overrides; imports no torch, runs nothing."""

from skillprune.recipe.inputs import BuiltinData, FileData, HubData, HubSplits, ModelSpec
from skillprune.recipe.loading import load_recipe
from skillprune.recipe.recovery import HubSplit, RecoverySpec
from skillprune.recipe.schema import Recipe, dump_recipe, recipe_schema
from skillprune.recipe.stages import (
    FORMS,
    VARIANTS,
    Backend,
    BenchmarkSpec,
    CheckpointSpec,
    DemandSpec,
    ExportSpec,
    Form,
    Format,
    PlanSpec,
    RepairSpec,
    Runtime,
    ScoringSpec,
    Variant,
)
from skillprune.recipe.task import SHARES, TaskSpec

__all__ = [
    "FORMS",
    "SHARES",
    "VARIANTS",
    "Backend",
    "BenchmarkSpec",
    "BuiltinData",
    "CheckpointSpec",
    "DemandSpec",
    "ExportSpec",
    "FileData",
    "Form",
    "Format",
    "HubData",
    "HubSplit",
    "HubSplits",
    "ModelSpec",
    "PlanSpec",
    "Recipe",
    "RecoverySpec",
    "RepairSpec",
    "Runtime",
    "ScoringSpec",
    "TaskSpec",
    "Variant",
    "dump_recipe",
    "load_recipe",
    "recipe_schema",
]

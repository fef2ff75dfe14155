"""The user's request: schema, YAML with the place of every problem, overrides; imports no torch, runs nothing."""

from skillprune.recipe.inputs import BuiltinData, FileData, HubData, HubSplits, ModelSpec
from skillprune.recipe.loading import load_recipe
from skillprune.recipe.recovery import HubSplit, RecoverySpec
from skillprune.recipe.schema import Recipe, dump_recipe, recipe_schema
from skillprune.recipe.stages import (
    BenchmarkSpec,
    CheckpointSpec,
    DemandSpec,
    ExportSpec,
    PlanSpec,
    RepairSpec,
    ScoringSpec,
)
from skillprune.recipe.task import TaskSpec

__all__ = [
    "BenchmarkSpec",
    "BuiltinData",
    "CheckpointSpec",
    "DemandSpec",
    "ExportSpec",
    "FileData",
    "HubData",
    "HubSplit",
    "HubSplits",
    "ModelSpec",
    "PlanSpec",
    "Recipe",
    "RecoverySpec",
    "RepairSpec",
    "ScoringSpec",
    "TaskSpec",
    "dump_recipe",
    "load_recipe",
    "recipe_schema",
]

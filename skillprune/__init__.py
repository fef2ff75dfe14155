"""skillprune: finds the FFN neurons that carry a skill, removes the others, and proves what came out is faster.

Importing this package makes transformers' `from_pretrained` understand pruned checkpoints. It is cheap: torch and
transformers are imported when a name that needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skillprune.checkpoint.hook import register_when_transformers_arrives

if TYPE_CHECKING:
    from skillprune.benchmark import measure_latency
    from skillprune.checkpoint import load_source, save_pruned
    from skillprune.data import load_splits, make_batches
    from skillprune.errors import SkillPruneError
    from skillprune.export import export_onnx
    from skillprune.families import Family, list_families
    from skillprune.gating import Judgement, gate
    from skillprune.pipeline import run
    from skillprune.pipeline.conversion import Conversion, convert_checkpoint
    from skillprune.planning import (
        KeepRatio,
        LatencyTable,
        Macs,
        MaxDrop,
        Parameters,
        PruningPlan,
        Speedup,
        Trial,
        load_plan,
        plan_pruning,
    )
    from skillprune.recipe import Recipe, load_recipe
    from skillprune.recovery import Recovery, RecoverySettings, recover_
    from skillprune.repair import prune_and_repair_
    from skillprune.report import Report, read_report
    from skillprune.scoring import NeuronScores, Provenance, ScoringData, load_scores, save_scores, score_neurons
    from skillprune.surgery import masked, prune_
    from skillprune.tasks import Task, resolve_task

_ROOMS = {
    "Conversion": "pipeline",
    "Family": "families",
    "Judgement": "gating",
    "KeepRatio": "planning",
    "LatencyTable": "planning",
    "Macs": "planning",
    "MaxDrop": "planning",
    "NeuronScores": "scoring",
    "Parameters": "planning",
    "Provenance": "scoring",
    "PruningPlan": "planning",
    "Recipe": "recipe",
    "Recovery": "recovery",
    "RecoverySettings": "recovery",
    "Report": "report",
    "ScoringData": "scoring",
    "SkillPruneError": "errors",
    "Speedup": "planning",
    "Task": "tasks",
    "Trial": "planning",
    "convert_checkpoint": "pipeline",
    "export_onnx": "export",
    "gate": "gating",
    "list_families": "families",
    "load_plan": "planning",
    "load_recipe": "recipe",
    "load_scores": "scoring",
    "load_source": "checkpoint",
    "load_splits": "data",
    "make_batches": "data",
    "masked": "surgery",
    "measure_latency": "benchmark",
    "plan_pruning": "planning",
    "prune_": "surgery",
    "prune_and_repair_": "repair",
    "read_report": "report",
    "recover_": "recovery",
    "resolve_task": "tasks",
    "run": "pipeline",
    "save_pruned": "checkpoint",
    "save_scores": "scoring",
    "score_neurons": "scoring",
}

__all__ = [
    "Conversion",
    "Family",
    "Judgement",
    "KeepRatio",
    "LatencyTable",
    "Macs",
    "MaxDrop",
    "NeuronScores",
    "Parameters",
    "Provenance",
    "PruningPlan",
    "Recipe",
    "Recovery",
    "RecoverySettings",
    "Report",
    "ScoringData",
    "SkillPruneError",
    "Speedup",
    "Task",
    "Trial",
    "convert_checkpoint",
    "export_onnx",
    "gate",
    "list_families",
    "load_plan",
    "load_recipe",
    "load_scores",
    "load_source",
    "load_splits",
    "make_batches",
    "masked",
    "measure_latency",
    "plan_pruning",
    "prune_",
    "prune_and_repair_",
    "read_report",
    "recover_",
    "resolve_task",
    "run",
    "save_pruned",
    "save_scores",
    "score_neurons",
]

register_when_transformers_arrives()


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"skillprune.{_ROOMS[name]}"), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("skillprune")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])

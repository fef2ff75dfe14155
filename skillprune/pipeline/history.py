"""What a pruned checkpoint says of the prunings that led to it: the source's own history, and one more entry."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from skillprune.checkpoint import Source
from skillprune.planning import PruningPlan
from skillprune.recipe import Recipe


def history_of(recipe: Recipe, source: Source, plan: PruningPlan) -> tuple[Mapping[str, Any], ...]:
    """Every pruning up to this one, the first one first.

    An entry has the criterion, the budget, the widths before and after, the name and the hash of what was pruned, the
    seed, and the version of skillprune. Checkpoints get published: of a local directory only the last name is shown.
    """
    entry = {
        "criterion": plan.criterion,
        "budget": dict(plan.budget),
        "width_before": {stack: list(widths) for stack, widths in plan.width_before.items()},
        "width_after": {stack: list(widths) for stack, widths in plan.width_after.items()},
        "source": source.hub_id or PurePath(recipe.model.name).name,
        "fingerprint": source.fingerprint,
        "seed": recipe.seed,
        "skillprune_version": version("skillprune"),
    }
    return (*source.history, entry)

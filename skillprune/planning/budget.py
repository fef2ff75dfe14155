"""What a budget is: a rule that says where on a path of falling widths to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from skillprune.planning.path import Path
from skillprune.planning.plan import Costs, Timing


@dataclass(frozen=True)
class Choice:
    """Where a budget stops.

    Attributes:
        point: place on the path.
        unmet: why that is not what was asked for, though the best there is; None when it is.
        latency: predicted times there, where the budget knows of any.
    """

    point: int
    unmet: str | None = None
    latency: tuple[Timing, ...] = ()


class Budget(Protocol):
    """A rule; new ones are a file with a class beside this one."""

    def stop(self, path: Path, costs: Costs) -> Choice:
        """The first point of the path that meets the budget or, where none does, the nearest to it."""
        ...

    def asked(self) -> Mapping[str, Any]:
        """The budget in the words of a recipe."""
        ...


def first(path: Path, fits: Callable[[int], bool]) -> int | None:
    """The first point that fits, by bisection: what fits goes on fitting further down; None if the last does not."""
    low, high = 0, len(path) - 1
    if not fits(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return low

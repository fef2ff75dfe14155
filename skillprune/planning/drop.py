"""The budget `max_drop`: the smallest model whose metric on validation is still good enough, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from skillprune.planning.budget import Choice, first
from skillprune.planning.layers import Widths
from skillprune.planning.path import Path
from skillprune.planning.plan import Costs


@dataclass(frozen=True)
class Trial:
    """What a candidate loses on validation.

    Attributes:
        drop: metric of the dense model minus that of the candidate.
        margin: one standard error of that difference, from pairs of answers.
    """

    drop: float
    margin: float


@dataclass(frozen=True)
class MaxDrop:
    """The metric may fall by so much; one standard error is kept as a margin, since validation is a sample too.

    Attributes:
        limit: largest drop.
        try_out: prunes to widths and measures.
    """

    limit: float
    try_out: Callable[[Widths], Trial]

    def stop(self, path: Path, costs: Costs) -> Choice:
        """The smallest model within the limit, by bisection between the smallest and the whole one.

        Bisection takes it that narrower models lose more. Trying all of them would find one that is smaller now and
        then, by luck: the more are tried, the more the best of them owes to the examples they were tried on.
        """
        tried: dict[int, Trial] = {}

        def too_small(point: int) -> bool:
            if point == 0:
                return False
            found = tried[point] = self.try_out(path[point])
            return found.drop + found.margin > self.limit

        broken = first(path, too_small)
        point = len(path) - 1 if broken is None else broken - 1
        return Choice(point) if point or len(path) == 1 else Choice(0, self._too_much(tried[1]))

    def _too_much(self, widest: Trial) -> str:
        return (
            f"a drop of at most {self.limit:g} was asked for; already the widest candidate loses {widest.drop:.4f} on "
            f"validation, with a standard error of {widest.margin:.4f}, which more examples there would make smaller"
        )

    def asked(self) -> Mapping[str, float]:
        """As a recipe says it."""
        return {"max_drop": self.limit}

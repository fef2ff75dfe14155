"""What is demanded of a finished run, and what came of it; judging and reading files are left to others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from skillprune.errors import Incomparable, Problem, RecipeError
from skillprune.report import Report

MAX_SLOWDOWN = 0.05
"""Share of the baseline's speed-up that may be lost when nothing is said."""

Outcome = Literal["passed", "failed", "incomparable"]

_BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "min_speedup": (lambda value: value > 0, "should be greater than 0"),
    "max_drop": (lambda value: value >= 0, "should be 0 or greater"),
    "max_p50_ms": (lambda value: value > 0, "should be greater than 0"),
    "max_slowdown": (lambda value: 0 < value < 1, "should lie between 0 and 1, for example 0.05 for 5 %"),
}


@dataclass(frozen=True)
class Demands:
    """What a run must keep; None demands nothing.

    Attributes:
        min_speedup: what the lower end of the best variant's speed-up interval must reach at every shape.
        max_drop: how much worse the test metric may be: a fraction, nats of loss, or a share of the perplexity.
        max_p50_ms: most milliseconds that the best variant's median time may take, at every shape.
        max_slowdown: share of the baseline's speed-up that may be lost; None is `MAX_SLOWDOWN`. Needs a baseline.
    """

    min_speedup: float | None = None
    max_drop: float | None = None
    max_p50_ms: float | None = None
    max_slowdown: float | None = None

    def check(self, *, has_baseline: bool) -> None:
        """Refuses numbers that cannot be demanded.

        Raises:
            RecipeError: with all of them at once.
        """
        problems = [
            Problem(name, f"{value:g}", message, file="gate")
            for name, (is_legal, message) in _BOUNDS.items()
            if (value := getattr(self, name)) is not None and not (math.isfinite(value) and is_legal(value))
        ]
        if self.max_slowdown is not None and not has_baseline:
            problems.append(
                Problem("max_slowdown", f"{self.max_slowdown:g}", "needs a baseline to be compared with", file="gate")
            )
        if problems:
            raise RecipeError(problems)

    @property
    def asks_for_speed(self) -> bool:
        """Whether something is demanded that only measured times can tell."""
        return self.min_speedup is not None or self.max_p50_ms is not None


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what, and at which shape: the same from run to run.
        ok: whether it held.
        measured: what was found, for a person.
        demanded: what had to be found, for a person.
        value: what was found, where that is a number.
        low: lower end of its interval, if it has one.
        high: upper end of its interval, if it has one.
        limit: what it was held against.
    """

    name: str
    ok: bool
    measured: str
    demanded: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None

    def __str__(self) -> str:
        return f"{'passed' if self.ok else 'FAILED'}  {self.name}: {self.measured}; demanded: {self.demanded}"


@dataclass(frozen=True)
class Judgement:
    """What came of holding a run to its demands.

    Attributes:
        report: of the run.
        baseline: report of the run that it was compared with, if any.
        demands: what was demanded.
        checks: what was looked at, in order; empty where the runs are incomparable.
        obstacles: why nothing can be said, one sentence each; empty where something can.
        warnings: what a reader must know before believing it.
        notes: what may explain it.
    """

    report: Report
    baseline: Report | None
    demands: Demands
    checks: tuple[Check, ...]
    obstacles: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """In one word."""
        if self.obstacles:
            return "incomparable"
        return "passed" if all(check.ok for check in self.checks) else "failed"

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return self.outcome == "passed"

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not hold."""
        return tuple(check for check in self.checks if not check.ok)

    @property
    def summary(self) -> str:
        """One sentence: passed or failed, and how much of how many."""
        checks = f"{len(self.checks)} check{'' if len(self.checks) == 1 else 's'}"
        if self.obstacles:
            return "The gate is not decided: what was measured cannot be judged."
        return f"The gate passed: {checks}." if self.ok else f"The gate failed: {len(self.failed)} of {checks}."

    def raise_if_incomparable(self) -> None:
        """Ends the matter where nothing can be said.

        Raises:
            Incomparable: naming every obstacle.
        """
        if self.obstacles:
            raise Incomparable("\n".join([self.summary, *(f"  {each}" for each in self.obstacles)]))

    def __str__(self) -> str:
        lines = [*map(str, self.checks), *(f"obstacle: {each}" for each in self.obstacles)]
        lines += [f"warning: {each}" for each in self.warnings]
        lines += [f"note: {each}" for each in self.notes]
        return "\n".join([*lines, self.summary])

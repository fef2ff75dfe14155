"""Every error skillprune raises on purpose; which exit code it becomes is an attribute, printing it is the CLI's work.

SkillPruneError                     2   the base; never raised itself
├── RecipeError                     2   the recipe or a flag is wrong (carries every problem at once)
├── DataError                       2   examples are missing, empty, mislabelled or not finite
├── CheckpointError                 2   a model directory cannot be read, or is not safe to read
├── UnsupportedArchitecture         2   no row of the family table fits the model
├── PlanMismatch                    2   a plan does not fit the model it is applied to
├── OutputError                     2   the output directory holds something else
├── MissingExtra                    2   an optional dependency is not installed
├── UnsupportedExport               2   an exporter cannot write what was asked for
├── ProviderUnavailable             2   the execution provider asked for is not there
├── VerificationFailed              1   something was made, then found wrong
│   └── ParityError                 1   two forms of one model disagree
├── ResourceFailure                 3   disk, memory or network failed
└── Incomparable                    4   measurements cannot be judged against each other
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class SkillPruneError(Exception):
    """Base of every error raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe: where it stands, what was found, what would be right."""

    field: str
    value: str
    message: str
    file: str = "<recipe>"
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        found = f" (found {self.value})" if self.value else ""
        return f"{where}: {self.field}: {self.message}{found}"


class RecipeError(SkillPruneError):
    """The recipe, or a flag that overrides it, is wrong. Carries all problems, in file order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class DataError(SkillPruneError):
    """Examples are missing, empty, mislabelled, or a statistic of them is not finite."""


class CheckpointError(SkillPruneError):
    """A model directory cannot be read, or holds weights that are not safe to read."""


class UnsupportedArchitecture(SkillPruneError):
    """No row of the family table fits the model."""


class PlanMismatch(SkillPruneError):
    """A plan names stacks, layers or widths that the model does not have."""


class OutputError(SkillPruneError):
    """The output directory holds something that must not be overwritten."""


class MissingExtra(SkillPruneError):
    """A feature needs a package of an optional extra."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'skillprune[{extra}]'")


class UnsupportedExport(SkillPruneError):
    """An exporter cannot write the operator set, or the kind of model, that was asked for."""


class ProviderUnavailable(SkillPruneError):
    """ONNX Runtime cannot run, or silently did not use, the execution provider that was asked for."""


class VerificationFailed(SkillPruneError):
    """Something that was made failed a check; finished stages before it are kept."""

    exit_code = 1


class ParityError(VerificationFailed):
    """Two forms of one model disagree by more than the tolerance."""

    def __init__(self, what: str, difference: float, tolerance: float) -> None:
        self.difference = difference
        self.tolerance = tolerance
        super().__init__(f"{what}: largest difference {difference:.3g} exceeds the tolerance {tolerance:.3g}")


class ResourceFailure(SkillPruneError):
    """Disk, memory or network failed outside skillprune."""

    exit_code = 3


class Incomparable(SkillPruneError):
    """Two measurements were taken under different conditions, or under conditions too noisy to judge."""

    exit_code = 4

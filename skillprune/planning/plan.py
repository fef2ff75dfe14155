"""`PruningPlan`: which neurons stay, why, and what that is predicted to save; it can be printed and stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skillprune.errors import PlanMismatch


@dataclass(frozen=True)
class Costs:
    """What a model costs.

    Attributes:
        sequence: tokens of the one sequence that multiply-accumulates are counted for; an encoder-decoder model
            reads that many and writes that many.
        parameters: distinct parameters of the whole model.
        ffn_parameters: those in the FFNs.
        macs: multiply-accumulates of the whole model for that sequence.
        ffn_macs: those in the FFNs.
    """

    sequence: int
    parameters: int
    ffn_parameters: int
    macs: int
    ffn_macs: int


@dataclass(frozen=True)
class Timing:
    """Predicted milliseconds of one forward pass.

    Attributes:
        batch: inputs at once.
        sequence: tokens of each.
        before_ms: of the model as it is.
        after_ms: of the pruned one.
    """

    batch: int
    sequence: int
    before_ms: float
    after_ms: float

    def __str__(self) -> str:
        ratio = self.before_ms / self.after_ms
        shape = f"{self.batch} x {self.sequence}"
        return f"  {shape:<15}{self.before_ms:>12.2f} ms -> {self.after_ms:>12.2f} ms  ({ratio:.2f} times as fast)"


@dataclass(frozen=True)
class Prediction:
    """What a budget will make of a model; no neuron has been chosen yet.

    Attributes:
        width_before: neurons per stack and layer.
        width_after: neurons that will stay.
        before: costs of the model as it is.
        after: costs it will have.
        unmet: why this is not what was asked for, though the best there is; None when it is.
        latency: predicted times, where some were measured on this machine.
        note: what else may come out; None where the widths are certain.
    """

    width_before: Mapping[str, tuple[int, ...]]
    width_after: Mapping[str, tuple[int, ...]]
    before: Costs
    after: Costs
    unmet: str | None = None
    latency: tuple[Timing, ...] = ()
    note: str | None = None

    def __str__(self) -> str:
        lines = [
            f"  {stack} {layer:>2}  {before:>6} -> {after:>6} neurons"
            for stack, widths in self.width_after.items()
            for layer, (before, after) in enumerate(zip(self.width_before[stack], widths, strict=True))
        ]
        for name in ("parameters", "ffn_parameters", "macs", "ffn_macs"):
            before, after = getattr(self.before, name), getattr(self.after, name)
            lines.append(f"  {name:<15}{before:>15,} -> {after:>15,}  ({after / before:.1%})")
        lines += map(str, self.latency)
        lines += [f"note: {self.note}"] if self.note else []
        return "\n".join([*lines, *([f"not met: {self.unmet}"] if self.unmet else [])])


@dataclass(frozen=True)
class PruningPlan:
    """Kept neuron indices per stack and layer, with the reason and the predicted costs.

    Attributes:
        keep: per stack and layer, the kept indices, sorted and unique.
        width_before: per stack and layer, the width the plan was made for.
        criterion: the scores that decided.
        budget: what was asked, as the recipe says it, e.g. ``{"keep_ratio": 0.25}``.
        round_to: widths are multiples of this.
        before: costs of the model as it was.
        after: predicted costs of the pruned model.
        unmet: why this is not what was asked for, though the best there is; None when it is.
        latency: predicted times, where the budget had some measured.
    """

    keep: Mapping[str, tuple[tuple[int, ...], ...]]
    width_before: Mapping[str, tuple[int, ...]]
    criterion: str
    budget: Mapping[str, Any]
    round_to: int
    before: Costs
    after: Costs
    unmet: str | None = None
    latency: tuple[Timing, ...] = ()

    def __post_init__(self) -> None:
        if {stack: len(layers) for stack, layers in self.keep.items()} != {
            stack: len(widths) for stack, widths in self.width_before.items()
        }:
            raise PlanMismatch("the plan's kept neurons and its widths name different stacks or layers")
        for stack, layers in self.keep.items():
            for layer, (kept, width) in enumerate(zip(layers, self.width_before[stack], strict=True)):
                # type, not isinstance: JSON's true and 0.5 are no indices.
                valid = all(type(neuron) is int and 0 <= neuron < width for neuron in kept)
                if not valid or list(kept) != sorted(set(kept)):
                    raise PlanMismatch(f"{stack} layer {layer}: kept indices must be sorted, unique and below {width}")

    @property
    def width_after(self) -> dict[str, tuple[int, ...]]:
        """Neurons that stay, per stack and layer."""
        return {stack: tuple(map(len, layers)) for stack, layers in self.keep.items()}

    def __str__(self) -> str:
        head = f"plan by {self.criterion}, {dict(self.budget)}, widths in multiples of {self.round_to}"
        widths = (self.width_before, self.width_after)
        return f"{head}\n{Prediction(*widths, self.before, self.after, self.unmet, self.latency)}"


def plan_to_json(plan: PruningPlan) -> str:
    """The plan as JSON, one line per layer so that two plans can be compared with diff."""
    fields = asdict(plan)
    keep = fields.pop("keep")
    head = json.dumps({"format": "skillprune-plan-1", **fields}, indent=2)[:-2]
    stacks = ",\n".join(
        f"    {json.dumps(stack)}: [\n" + ",\n".join(f"      {json.dumps(list(kept))}" for kept in layers) + "\n    ]"
        for stack, layers in keep.items()
    )
    return f'{head},\n  "keep": {{\n{stacks}\n  }}\n}}\n'


def plan_from_json(text: str, source: str = "plan") -> PruningPlan:
    """Reads what `plan_to_json` wrote.

    Raises:
        PlanMismatch: the text is not a plan, or its parts contradict each other.
    """
    try:
        fields = json.loads(text)
        if fields.pop("format") != "skillprune-plan-1":
            raise PlanMismatch(f"{source}: not a plan of a format this version knows")
        fields["keep"] = {stack: tuple(map(tuple, layers)) for stack, layers in fields["keep"].items()}
        fields["width_before"] = {stack: tuple(widths) for stack, widths in fields["width_before"].items()}
        fields["before"], fields["after"] = Costs(**fields["before"]), Costs(**fields["after"])
        fields["latency"] = tuple(Timing(**timing) for timing in fields["latency"])
        return PruningPlan(**fields)
    except (KeyError, TypeError, ValueError, AttributeError) as broken:
        raise PlanMismatch(f"{source}: not a pruning plan ({broken})") from broken


def load_plan(path: Path) -> PruningPlan:
    """Reads a plan from a file.

    Raises:
        PlanMismatch: the file is missing or is not a plan.
    """
    try:
        return plan_from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as missing:
        raise PlanMismatch(f"{path}: cannot be read ({missing})") from missing

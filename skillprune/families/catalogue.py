"""The family table as a list to read: what kinds of FFN each architecture has, and what was verified of it.

What was verified is not said here: ``verified.json`` beside this file has it, written by ``docs/verify_families.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from skillprune.families.rows import FAMILIES
from skillprune.families.stack import Stack

_VERIFIED = "verified.json"


@dataclass(frozen=True)
class StackKind:
    """One stack of an architecture.

    Attributes:
        name: what plans and checkpoints call it.
        kinds: of its FFNs: ``plain``, ``gated`` or ``fused`` (a gate in one matrix with up), and further ``parallel``
            to attention, ``shared`` by all layers, or a ``mixture`` of experts; several where options of the config, or
            the line of transformers, decide.
        width_attribute: where the config says its width; none where it follows from other sizes.
    """

    name: str
    kinds: tuple[str, ...]
    width_attribute: str | None


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        model_type: ``config.model_type``.
        stacks: in the order they run.
        verified: names of the checks that passed, by line of transformers.
    """

    model_type: str
    stacks: tuple[StackKind, ...]
    verified: Mapping[str, tuple[str, ...]]


def list_families() -> tuple[Family, ...]:
    """Every architecture of the family table, by name."""
    verified = json.loads(files(__package__).joinpath(_VERIFIED).read_text(encoding="utf-8"))
    return tuple(
        Family(
            model_type,
            tuple(map(_described, row)),
            {line: tuple(checks) for line, checks in verified.get(model_type, {}).items()},
        )
        for model_type, row in sorted(FAMILIES.items())
    )


def _described(descriptions: Sequence[Stack]) -> StackKind:
    kinds = dict.fromkeys(map(_kind, descriptions))
    return StackKind(descriptions[0].name, tuple(kinds), descriptions[0].width_attribute)


def _kind(stack: Stack) -> str:
    into = "gated" if stack.gate is not None else "fused" if stack.fused else "plain"
    parallel = ("parallel",) if stack.parallel else ()
    shared = ("shared",) if stack.repeats is not None else ()
    mixture = ("mixture",) if stack.routing is not None else ()
    return " ".join((into, *parallel, *shared, *mixture))

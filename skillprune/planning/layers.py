"""An FFN as planning sees it: where it is, what a neuron of it costs, and which widths it may be given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skillprune.errors import Problem, RecipeError
from skillprune.families import FFN, Mixture, Site, by_stack

EXPERTS_ROUND_TO = 8
"""Grouped matrix products read rows of 16 bytes: 8 numbers in half precision."""

Widths = Mapping[str, tuple[int, ...]]
"""Neurons per stack and layer."""

KeepLayers = Sequence[int] | float
"""Layers to leave alone: indices (negative ones count from the end), or the first share of every stack."""


@dataclass(frozen=True)
class Layer:
    """One FFN and the widths it may have.

    Attributes:
        site: stack and layer.
        widths: allowed widths, falling, from the one it has; a layer that is left alone has no other.
        macs_per_neuron: multiply-accumulates per token that go with a neuron.
        parameters_per_neuron: parameters that go with it.
    """

    site: Site
    widths: tuple[int, ...]
    macs_per_neuron: int
    parameters_per_neuron: int

    @property
    def width(self) -> int:
        """Neurons it has."""
        return self.widths[0]


def layers_of(ffns: Sequence[FFN], *, round_to: int, keep_layers: KeepLayers) -> tuple[Layer, ...]:
    """The layers of a model, stack by stack; free ones may have any multiple of ``round_to`` below their width, or 0.

    Raises:
        RecipeError: ``keep_layers`` names a layer that does not exist, or kernels cannot compute such widths.
    """
    if round_to % EXPERTS_ROUND_TO and any(isinstance(ffn, Mixture) for ffn in ffns):
        wanted = f"should be a multiple of {EXPERTS_ROUND_TO}: the kernels that run experts together need such widths"
        raise RecipeError([Problem("plan.round_to", str(round_to), wanted)])
    found = []
    for stack in by_stack(ffns).values():
        untouched = untouched_layers(keep_layers, len(stack))
        for ffn in stack:
            free = ffn.layer not in untouched and ffn.width > 0
            smaller = range((ffn.width - 1) // round_to * round_to, -1, -round_to) if free else ()
            found.append(Layer(ffn.site, (ffn.width, *smaller), ffn.macs_per_neuron, ffn.parameters_per_neuron))
    return tuple(found)


def untouched_layers(keep_layers: KeepLayers, layers: int) -> set[int]:
    """The layer indices that ``keep_layers`` means in a stack of ``layers``.

    Raises:
        RecipeError: an index is outside the stack.
    """
    if isinstance(keep_layers, float):
        return set(range(round(keep_layers * layers)))
    for index in keep_layers:
        if not -layers <= index < layers:
            wanted = f"should name a layer from {-layers} to {layers - 1}; the stack has {layers}"
            raise RecipeError([Problem("plan.keep_layers", str(index), wanted)])
    return {index % layers for index in keep_layers}

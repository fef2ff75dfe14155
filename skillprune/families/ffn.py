"""The FFN of one layer of one model: its matrices, how they make activations, and how what it writes joins the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skillprune.errors import UnsupportedArchitecture
from skillprune.families.matrix import Matrix, at_hand, is_matrix
from skillprune.families.stack import Site, Stack


@dataclass(frozen=True)
class Addition:
    """How what a projection writes joins a residual stream: as it is, scaled, or through a norm.

    Attributes:
        block: the block it happens in.
        scale: path of what it is multiplied by, if anything.
        between: path of the FFN's norm before the sum, if there is any.
    """

    block: nn.Module
    scale: str | None
    between: str | None

    def sum(self, residual: Tensor, written: Tensor) -> Tensor:
        """The stream after the FFN, ``(..., hidden)``."""
        if self.between is not None:
            written = self.block.get_submodule(self.between)(written)
        return residual + self._scaled(written)

    def goal(self, residual: Tensor, written: Tensor) -> Tensor:
        """What another network should have here, ``(..., hidden)``: the same stream.

        Where a norm is between, what is written itself: no one vector can be told to make up for another stream.
        """
        return written if self.between is not None else residual + self._scaled(written)

    def part(self, goal: Tensor, residual: Tensor) -> Tensor:
        """What must be written to reach a goal beside the residual stream there is, ``(..., hidden)``."""
        if self.between is not None:
            return goal
        missing = goal - residual
        return missing if self.scale is None else missing / self._scaled(torch.ones_like(missing[:1, :1]))

    def _scaled(self, written: Tensor) -> Tensor:
        scale = None if self.scale is None else getattr(self.block, self.scale)
        if scale is None:  # beit has the attribute, and nothing there if its config wants no scale
            return written
        scaled: Tensor = scale(written) if isinstance(scale, nn.Module) else scale * written
        return scaled


@dataclass(frozen=True)
class FFN:
    """The FFN of one layer, resolved from its row: modules, never sizes written down.

    Attributes:
        stack: its row.
        layer: index in the stack.
        block: the transformer block it is in.
        uses: how often a forward pass runs it: more than once where layers share it.
    """

    stack: Stack
    layer: int
    block: nn.Module
    uses: int = 1

    @property
    def site(self) -> Site:
        """Stack name and layer index."""
        return self.stack.name, self.layer

    @property
    def path(self) -> str:
        """Where the block is, relative to the base model."""
        return f"{self.stack.blocks}.{self.layer}"

    @property
    def up(self) -> Matrix:
        """The projection whose rows belong to neurons; with a fused gate, two rows to each."""
        return self._matrix(self.stack.up)

    @property
    def gate(self) -> Matrix | None:
        """The projection that is activated and multiplies up; none in a plain FFN, or where up holds it."""
        return None if self.stack.gate is None else self._matrix(self.stack.gate)

    @property
    def down(self) -> Matrix:
        """The projection whose columns belong to neurons."""
        return self._matrix(self.stack.down)

    @property
    def downs(self) -> tuple[Matrix, ...]:
        """The same, one for every expert."""
        return (self.down,)

    @property
    def into(self) -> tuple[Matrix, ...]:
        """The projections with rows that belong to neurons: up, and the gate where it stands alone."""
        return (self.up,) if self.gate is None else (self.up, self.gate)

    @property
    def attending(self) -> tuple[Matrix, ...]:
        """The projections through which the block's attention reads its input."""
        return tuple(map(self._matrix, self.stack.attending))

    @property
    def attention(self) -> Matrix:
        """The projection that writes what the block's attention found to the residual stream."""
        return self._matrix(self.stack.attention)

    @property
    def residual(self) -> nn.Module:
        """The module that reads the residual stream before the FFN."""
        return self.block.get_submodule(self.stack.residual)

    @property
    def width(self) -> int:
        """Neurons the layer has now, read from the weights."""
        return self.down.in_features

    @property
    def experts(self) -> int:
        """How many FFNs of this width stand side by side; each token meets some of them."""
        return 1

    @property
    def columns(self) -> int:
        """Activations a token has: neurons of all experts."""
        return self.experts * self.width

    @property
    def watched(self) -> nn.Module:
        """The module whose input says what the activations are."""
        return self.down.module

    @property
    def hidden(self) -> int:
        """Features of what it reads and writes."""
        return self.down.out_features

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.down.weights[0].dtype

    @property
    def device(self) -> torch.device:
        """Where it computes, also when accelerate keeps its weights elsewhere and lends them to it."""
        lent_to = getattr(getattr(self.downs[0].module, "_hf_hook", None), "execution_device", None)
        return self.down.weights[0].device if lent_to is None else torch.device(lent_to)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """All of its parameters."""
        return tuple(parameter for matrix in (*self.into, self.down) for parameter in matrix.parameters)

    @property
    def macs_per_neuron(self) -> int:
        """Multiply-accumulates of matrix products that one neuron costs per token of a forward pass."""
        return self.uses * self._weights_per_neuron

    @property
    def parameters_per_neuron(self) -> int:
        """Parameters that go when one neuron goes."""
        return self._weights_per_neuron + self._rows * sum(matrix.bias is not None for matrix in self.into)

    def down_weight(self) -> Tensor:
        """Weight of the down projection, ``(hidden, columns)``: detached, to be read only, wherever it is kept."""
        return self.down.lent_weight()

    def fire(self, read: Tensor) -> Tensor:
        """Activations ``(..., neurons)`` for what the FFN reads, ``(..., hidden)``, as in evaluation mode."""
        return self._activated(*(matrix(read) for matrix in self.into))

    def written(self, activations: Tensor) -> tuple[Tensor, ...]:
        """What every expert writes, ``(..., hidden)``, given the activations of all, ``(..., columns)``."""
        return (self.down(activations),)

    def activations(self, entering: Tensor) -> Tensor:
        """Activations ``(..., columns)``, given what enters the watched module."""
        return entering

    def gradients(self, entering: Tensor, leaving: Tensor) -> Tensor:
        """Gradients at the activations, given those at what enters and what leaves the watched module."""
        return entering

    def check(self) -> None:
        """Looks at its projections.

        Raises:
            UnsupportedArchitecture: one of them is not a plain linear layer.
        """
        _ = self.into, self.down  # finding them refuses what is not

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Inside the context its modules have their weights, to be cut and written, wherever those are kept."""
        modules = (module for matrix in (*self.into, self.down) for module in matrix.module.modules())
        with ExitStack() as stack:
            for module in dict.fromkeys(modules):
                stack.enter_context(at_hand(module))
            yield

    def keep_(self, neurons: Sequence[int]) -> None:
        """Keeps only some neurons (sorted indices), in place; weights must be at hand."""
        indices = torch.tensor(neurons, dtype=torch.long, device=self.device)
        rows = self._rows_of(indices, self.width)
        for matrix in self.into:
            matrix.keep_outputs_(rows)
        self.down.keep_inputs_(indices)

    def pad_(self, width: int) -> None:
        """Adds neurons that read and write nothing behind the others, in place, up to a width."""
        indices = torch.arange(self.width, device=self.device)
        rows = self._rows_of(indices, width)
        for matrix in self.into:
            matrix.spread_outputs_(rows, self._rows * width)
        self.down.spread_inputs_(indices, width)

    def resize_(self, width: int) -> None:
        """Gives the FFN another width; its values are of no meaning then."""
        for matrix in self.into:
            matrix.resize_(self._rows * width, matrix.in_features)
        self.down.resize_(self.hidden, width)

    @property
    def addition(self) -> Addition:
        """How what down writes joins the residual stream."""
        return Addition(self.block, self.stack.scale, self.stack.between)

    @property
    def attention_addition(self) -> Addition:
        """How what attention writes joins the stream that enters the block."""
        # Blocks with a norm behind their FFN have one behind their attention too.
        return Addition(self.block, self.stack.attention_scale, self.stack.between)

    def handed_on(self, residual: Tensor, written: Tensor) -> Tensor:
        """What the next block gets, ``(..., hidden)``, given the stream and what down writes to it."""
        stream = self.addition.sum(residual, written)
        if self.stack.after is None:
            return stream
        handed: Tensor = self.block.get_submodule(self.stack.after)(stream)
        return handed

    def _activated(self, up: Tensor, gate: Tensor | None = None) -> Tensor:
        """Activations, given what up gives, and gate."""
        activate = self.block.get_submodule(self.stack.activation)
        if self.stack.fused:
            gate, up = up.chunk(2, dim=-1)
        fired: Tensor = activate(up) if gate is None else activate(gate) * up
        return fired

    @property
    def _weights_per_neuron(self) -> int:
        return self._rows * sum(matrix.in_features for matrix in self.into) + self.hidden

    @property
    def _rows(self) -> int:
        """Rows of up that belong to a neuron."""
        return 2 if self.stack.fused else 1

    def _rows_of(self, neurons: Tensor, width: int) -> Tensor:
        """Rows of up that belong to some neurons of a layer of some width."""
        return torch.cat([neurons + copy * width for copy in range(self._rows)])

    def _matrix(self, path: str) -> Matrix:
        return matrix_at(self.block, path, type(self.block).__name__)


def copy_of(ffn: FFN) -> FFN:
    """The same FFN in a copy of its block, which shares nothing with the model."""
    return replace(ffn, block=deepcopy(ffn.block))


def matrix_at(parent: nn.Module, path: str, owner: str) -> Matrix:
    """The matrix of the module at a path.

    Raises:
        UnsupportedArchitecture: the module's weight is not the whole story of what it computes.
    """
    module = parent.get_submodule(path)
    if not is_matrix(module):
        raise UnsupportedArchitecture(
            f"{owner}: {path!r} is a {type(module).__name__}, not a plain torch.nn.Linear; "
            "quantised or wrapped layers cannot be cut"
        )
    return Matrix(module)

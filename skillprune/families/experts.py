"""FFNs of several experts, of which a router sends every token to a few; scored, cut and written as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from skillprune.errors import UnsupportedArchitecture
from skillprune.families.ffn import FFN, matrix_at
from skillprune.families.matrix import Matrix
from skillprune.families.stack import Routing


class Bank(Matrix):
    """The same projection of every expert; its weight is ``(experts, out, in)``, and there are no biases."""

    def of(self, expert: int) -> Matrix:
        """That of one expert."""
        raise NotImplementedError

    def lent_weights(self) -> Iterator[Tensor]:
        """One per expert, all lent at once."""
        return iter(self.lent_weight())


@dataclass(frozen=True)
class Stacked(Bank):
    """A bank in one parameter.

    Attributes:
        name: the parameter's, in the module.
    """

    name: str

    def of(self, expert: int) -> Matrix:
        """A view of its part of the parameter."""
        return _Slice(self.module, self.name, expert)

    @property
    def bias(self) -> None:
        """There is none."""

    @property
    def _kept(self) -> nn.Parameter:
        kept = getattr(self.module, self.name)
        assert isinstance(kept, nn.Parameter)
        return kept

    def _replace_(self, weight: Tensor, bias: Tensor | None) -> None:
        stored = weight.detach().clone(memory_format=torch.contiguous_format)
        setattr(self.module, self.name, nn.Parameter(stored, requires_grad=self._kept.requires_grad))


@dataclass(frozen=True)
class _Slice(Stacked):
    """One expert's part of a bank in one parameter; written in place, never cut alone."""

    expert: int

    @property
    def weight(self) -> Tensor:
        """``(out, in)``."""
        return self._kept[self.expert]


@dataclass(frozen=True)
class Several(Bank):
    """A bank of one module per expert.

    Attributes:
        path: where the projection is in an expert, which is one of the module's children.
    """

    path: str

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """One per expert."""
        return tuple(self.of(expert) for expert in range(len(list(self.module.children()))))

    def of(self, expert: int) -> Matrix:
        """The expert's own."""
        found = self.module.get_submodule(str(expert))
        return matrix_at(found, self.path, type(found).__name__)

    @property
    def weight(self) -> Tensor:
        """``(experts, out, in)``: a copy."""
        return torch.stack([matrix.weight for matrix in self.matrices])

    @property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """One per expert."""
        return tuple(parameter for matrix in self.matrices for parameter in matrix.weights)

    @property
    def bias(self) -> None:
        """There is none."""

    @property
    def in_features(self) -> int:
        """Columns of every matrix."""
        return self.matrices[0].in_features

    @property
    def out_features(self) -> int:
        """Rows of every matrix."""
        return self.matrices[0].out_features

    def lent_weight(self) -> Tensor:
        """The weights, ``(experts, out, in)``: detached, wherever they are kept."""
        return torch.stack([matrix.lent_weight() for matrix in self.matrices])

    def lent_weights(self) -> Iterator[Tensor]:
        """One per expert, lent one after the other."""
        return (matrix.lent_weight() for matrix in self.matrices)

    def _replace_(self, weight: Tensor, bias: Tensor | None) -> None:
        for matrix, own in zip(self.matrices, weight, strict=True):
            matrix._replace_(own, None)


@dataclass(frozen=True)
class Mixture(FFN):
    """Experts of one width, whose neurons of one index are one neuron to a plan: it stays or goes in all of them.

    A token that a router sends to some experts reads nothing of the others. What it gives is the sum of what its
    experts give, each multiplied by its routing weight. So the mixture is one plain FFN whose activations are those of
    the experts side by side, multiplied by the routing weight, or zero where an expert was not asked.

    Attributes:
        top_k: experts that a token is sent to.
        normalised: whether their weights are made to sum to one.
    """

    top_k: int = 1
    normalised: bool = True

    @property
    def experts(self) -> int:
        """How many there are."""
        return self._router.out_features

    @property
    def watched(self) -> nn.Module:
        """The module that routes: its input is read by the router and by the experts."""
        return self.block.get_submodule(self._routing.module)

    @property
    def macs_per_neuron(self) -> int:
        """Multiply-accumulates that a neuron of the plan costs per token, which meets it in a few experts."""
        return self.top_k * self._weights_per_neuron

    @property
    def parameters_per_neuron(self) -> int:
        """Parameters that go when a neuron goes from all experts."""
        return self.experts * self._weights_per_neuron

    def down_weight(self) -> Tensor:
        """Weights of the down projections side by side, ``(hidden, columns)``: detached, to be read only."""
        return self.down.lent_weight().permute(1, 0, 2).flatten(1)

    def check(self) -> None:
        """Looks at the experts' projections.

        Raises:
            UnsupportedArchitecture: one of them is not a plain linear layer, or has a bias.
        """
        banks = (*self.into, self.down)
        if any(matrix.bias is not None for bank in banks if isinstance(bank, Several) for matrix in bank.matrices):
            raise UnsupportedArchitecture(f"{type(self.block).__name__}: experts with biases are not supported")

    def routing(self, read: Tensor) -> Tensor:
        """Weight of every expert for every token, ``(tokens, experts)``; zero for those that are not asked."""
        chances = linear(read, self._router.lent_weight()).softmax(dim=-1, dtype=torch.float32)
        largest, asked = chances.topk(self.top_k, dim=-1)
        if self.normalised:
            largest = largest / largest.sum(dim=-1, keepdim=True)
        return torch.zeros_like(chances).scatter(-1, asked, largest).to(read.dtype)

    def fire(self, read: Tensor) -> Tensor:
        """Activations of all experts side by side, ``(..., columns)``, for what is read, ``(..., hidden)``."""
        tokens = read.reshape(-1, read.shape[-1])
        routing = self.routing(tokens)
        fired = tokens.new_zeros(len(tokens), self.experts, self.width)
        for expert, weights in enumerate(zip(*(bank.lent_weights() for bank in self.into), strict=True)):
            sent = routing[:, expert].nonzero().squeeze(1)
            activations = self._activated(*(linear(tokens[sent], weight) for weight in weights))
            fired[sent, expert] = routing[sent, expert].unsqueeze(1) * activations
        return fired.view(*read.shape[:-1], self.columns)

    def written(self, activations: Tensor) -> tuple[Tensor, ...]:
        """What every expert writes, ``(..., hidden)``, given the activations of all, ``(..., columns)``."""
        parts = activations.split(self.width, dim=-1)
        return tuple(linear(part, weight) for part, weight in zip(parts, self.down.lent_weights(), strict=True))

    def activations(self, entering: Tensor) -> Tensor:
        """What fires, given what enters the module that routes."""
        return self.fire(entering)

    def gradients(self, entering: Tensor, leaving: Tensor) -> Tensor:
        """Gradients at the activations, ``(..., columns)``, given the one at what the module that routes gives."""
        return leaving @ self.down_weight().to(leaving)

    @property
    def downs(self) -> tuple[Matrix, ...]:
        """The down projection of every expert."""
        return tuple(self._bank(self.stack.down).of(expert) for expert in range(self.experts))

    @property
    def _routing(self) -> Routing:
        assert self.stack.routing is not None  # a mixture has a router
        return self.stack.routing

    @property
    def _router(self) -> Matrix:
        """Scores experts for tokens; its weight is ``(experts, hidden)``."""
        return Matrix(self.block.get_submodule(self._routing.router))

    def _matrix(self, path: str) -> Matrix:
        inside = path in (self.stack.up, self.stack.gate, self.stack.down)
        return self._bank(path) if inside else super()._matrix(path)

    def _bank(self, path: str) -> Bank:
        experts = self.block.get_submodule(self._routing.experts)
        return Several(experts, path) if isinstance(experts, nn.ModuleList) else Stacked(experts, path)

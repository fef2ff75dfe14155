"""A weight matrix with its bias, however a module keeps them: read, written and cut alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

PLAIN = ("torch.nn.modules.linear.Linear", "transformers.models.falcon.modeling_falcon.FalconLinear")
"""Types whose weight is ``(out, in)`` and the whole story; other subclasses of Linear may quantise or add to it."""

TRANSPOSED = ("transformers.pytorch_utils.Conv1D",)
"""Types whose weight is ``(in, out)``."""


@dataclass(frozen=True)
class Matrix:
    """The matrix of one module; what it computes is ``x W^T + b``.

    Attributes:
        module: the module, whose input and output are the projection's.
    """

    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """``(out, in)``: the module's own values, also where it keeps them transposed."""
        return self._kept.T if self._is_transposed else self._kept

    @property
    def bias(self) -> nn.Parameter | None:
        """``(out,)``, or None."""
        found = getattr(self.module, "bias", None)
        assert found is None or isinstance(found, nn.Parameter)
        return found

    @property
    def in_features(self) -> int:
        """Columns."""
        return int(self.weight.shape[-1])

    @property
    def out_features(self) -> int:
        """Rows."""
        return int(self.weight.shape[-2])

    @property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """What holds the weight."""
        return (self._kept,)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """What holds the weight and, if there is one, the bias."""
        return self.weights if self.bias is None else (*self.weights, self.bias)

    def __call__(self, read: Tensor) -> Tensor:
        """What the module gives."""
        written: Tensor = self.module(read.to(self.weights[0].dtype))  # T5 in half precision keeps some in float32
        return written

    def lent_weight(self) -> Tensor:
        """The weight, ``(out, in)``: detached, to be read only.

        Also when accelerate keeps it on the CPU or on disk and lends it to the module for a forward pass; then the
        tensor is on the device the module computes on, and lives as long as the caller holds it.
        """
        with align_module_device(self.module):
            return self.weight.detach()

    def lent_weights(self) -> Iterator[Tensor]:
        """The same, one after the other where experts have one each."""
        yield self.lent_weight()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """After the context the weight is what it was before, and kept where it was."""
        hooks: list[Any] = [module._hf_hook for module in self.module.modules() if has_offloaded_params(module)]
        maps = [hook.weights_map for hook in hooks]
        before = [weight.detach().clone() for weight in self.weights]
        try:
            yield
        finally:
            for hook, lent in zip(hooks, maps, strict=True):
                hook.weights_map = lent
            with torch.no_grad():
                for weight, own in zip(self.weights, before, strict=True):
                    weight.copy_(own)

    def write_(self, weight: Tensor, bias: Tensor | None) -> None:
        """Replaces the values, not the tensors that hold them; without a bias to write, the old one stays."""
        with torch.no_grad():
            self.weight.copy_(weight)
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias)

    def keep_outputs_(self, rows: Tensor) -> None:
        """Keeps some rows, in this order."""
        self._replace_(self.weight[..., rows, :], None if self.bias is None else self.bias[rows])

    def keep_inputs_(self, columns: Tensor) -> None:
        """Keeps some columns, in this order."""
        self._replace_(self.weight[..., columns], self.bias)

    def spread_outputs_(self, places: Tensor, out_features: int) -> None:
        """Puts the rows in other places of a taller matrix, with zeros in between."""
        weight, bias = self._empty(out_features, self.in_features).zero_(), None
        weight[..., places, :] = self.weight.detach()
        if self.bias is not None:
            bias = self.bias.new_zeros(out_features)
            bias[places] = self.bias.detach()
        self._replace_(weight, bias)

    def spread_inputs_(self, places: Tensor, in_features: int) -> None:
        """Puts the columns in other places of a wider matrix, with zeros in between."""
        weight = self._empty(self.out_features, in_features).zero_()
        weight[..., places] = self.weight.detach()
        self._replace_(weight, self.bias)

    def resize_(self, out_features: int, in_features: int) -> None:
        """Gives the module another shape; its values are of no meaning then, on the device they were on."""
        bias = None if self.bias is None else self.bias.new_empty(out_features)
        self._replace_(self._empty(out_features, in_features), bias)

    def _empty(self, out_features: int, in_features: int) -> Tensor:
        """Room for another shape."""
        weight = self.weight
        return weight.new_empty(*weight.shape[:-2], out_features, in_features, requires_grad=False)

    @property
    def _kept(self) -> nn.Parameter:
        """The weight as the module keeps it."""
        kept = self.module.weight
        assert isinstance(kept, nn.Parameter)
        return kept

    @property
    def _is_transposed(self) -> bool:
        return isinstance(self.module, Conv1D)

    def _replace_(self, weight: Tensor, bias: Tensor | None) -> None:
        out_features, in_features = weight.shape
        stored = (weight.T if self._is_transposed else weight).detach().clone(memory_format=torch.contiguous_format)
        self.module.weight = nn.Parameter(stored, requires_grad=self._kept.requires_grad)
        if bias is not None and self.bias is not None:
            self.module.bias = nn.Parameter(bias.detach().clone(), requires_grad=self.bias.requires_grad)
        names = ("nf", "nx") if self._is_transposed else ("out_features", "in_features")
        for name, size in zip(names, (out_features, in_features), strict=True):
            setattr(self.module, name, size)


@contextmanager
def at_hand(module: nn.Module) -> Iterator[None]:
    """Inside the context a module has its weights, to be cut and written, also when accelerate lends them to it.

    What it has in the end is what is lent from then on; it is kept in the CPU's memory, also if it was on disk.
    """
    if not has_offloaded_params(module):
        yield
        return
    hook: Any = module._hf_hook
    hook.pre_forward(module)
    try:
        for value in module.parameters(recurse=False):
            value.data = value.data.clone()  # what accelerate lends may be what it keeps
        yield
    finally:
        hook.weights_map = {name: value.detach().cpu() for name, value in module.named_parameters(recurse=False)}
        hook.post_forward(module, None)


def is_matrix(module: nn.Module) -> bool:
    """Whether the module is of a type whose weight may be cut and written."""
    return f"{type(module).__module__}.{type(module).__qualname__}" in (*PLAIN, *TRANSPOSED)

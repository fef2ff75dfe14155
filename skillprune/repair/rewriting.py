"""Rewrites projections in place by what they read and should write, or should have read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skillprune.families import FFN, Matrix
from skillprune.repair.methods import Method, Solution, Statistics, least_squares, slice_only


@dataclass(frozen=True)
class LayerError:
    """How far one layer's output is from the dense network's, as a share of the target's variance, on held-out tokens.

    Attributes:
        stack: name of the stack.
        layer: index in the stack.
        before: after slicing only.
        after: after the repair.
    """

    stack: str
    layer: int
    before: float
    after: float

    def __str__(self) -> str:
        return f"  {self.stack} {self.layer:>2}  output missed: {self.before:7.2%} sliced, {self.after:7.2%} repaired"


def repair_layer_(
    ffn: FFN,
    statistics: Sequence[Statistics],
    read: Sequence[int],
    kept: Sequence[int],
    method: Method,
    ridge: float | None,
) -> LayerError:
    """Removes neurons of one FFN in place and rewrites what stays.

    Args:
        ffn: the FFN.
        statistics: of every expert; a plain FFN has one.
        read: the neurons they are of.
        kept: the neurons that stay.
        method: what becomes of them.
        ridge: as for `least_squares`.
    """
    place = {neuron: number for number, neuron in enumerate(read)}
    places = torch.tensor([place[neuron] for neuron in kept], dtype=torch.long, device=ffn.device)
    solutions: list[Solution] = []
    missed = torch.zeros(3, dtype=torch.float64)
    for down, each in zip(ffn.downs, statistics, strict=True):
        each.refuse_not_finite(ffn)
        weight, bias = _parameters(down, each)
        weight = weight[:, list(read)]
        sliced = slice_only(each, weight, bias, places, ridge)
        solutions.append(method.solve(each, weight, bias, places, ridge) if each.fit.tokens else sliced)
        if each.measure.tokens:
            errors = (each.measure.error(*solution, places) for solution in (sliced, solutions[-1]))
            missed += each.measure.variance.cpu() * torch.tensor([*errors, 1.0], dtype=torch.float64)
    ffn.keep_(kept)
    for down, solution in zip(ffn.downs, solutions, strict=True):
        down.write_(*solution)
    before, after, variance = missed.tolist()
    return LayerError(ffn.stack.name, ffn.layer, before / variance, after / variance)


def refit_(ffn: FFN, matrix: Matrix, statistics: Statistics | None, ridge: float | None) -> None:
    """Rewrites a projection so that it writes what it should, given what it reads."""
    if statistics is not None:
        statistics.refuse_not_finite(ffn)
        weight, bias = _parameters(matrix, statistics)
        matrix.write_(*least_squares(statistics, weight, bias, _all_columns(weight), ridge))


def lead_back_(ffn: FFN, matrices: Sequence[Matrix], statistics: Statistics | None, ridge: float | None) -> None:
    """Folds a map into projections of one input: from what that is to what it should be, drawn towards no change.

    With ``x -> M x + c`` a projection becomes ``W M x + W c + b``; without a bias to take ``W c``, there is no ``c``.
    """
    if statistics is not None:
        statistics.refuse_not_finite(ffn)
        moments = statistics.fit
        shift = None if any(matrix.bias is None for matrix in matrices) else torch.zeros_like(moments.activation)
        unchanged = torch.eye(len(moments.gram), dtype=moments.gram.dtype, device=moments.gram.device)
        turned, shift = least_squares(statistics, unchanged, shift, _all_columns(unchanged), ridge)
        for matrix in matrices:
            weight, bias = _parameters(matrix, statistics)
            matrix.write_(weight @ turned, None if shift is None or bias is None else bias + weight @ shift)


def _parameters(matrix: Matrix, statistics: Statistics) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as they are, in float64, where the statistics are."""
    moments = statistics.fit.gram
    return matrix.weight.detach().to(moments), None if matrix.bias is None else matrix.bias.detach().to(moments)


def _all_columns(weight: Tensor) -> Tensor:
    return torch.arange(weight.shape[1], device=weight.device)

"""Second moments of a layer's activations and of the output it should give: all that any repair needs to know."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


@dataclass
class Moments:
    """Running weighted sums over real tokens, in float64; ``n`` neurons, ``d`` outputs. Size does not depend on data.

    Attributes:
        tokens: number of tokens summed.
        weight: sum of their weights.
        activation: sum of activations, ``(n,)``.
        target: sum of targets, ``(d,)``.
        gram: sum of ``a a^T``, ``(n, n)``.
        cross: sum of ``a y^T``, ``(n, d)``.
        energy: sum of ``||y||^2``.
    """

    tokens: int
    weight: Tensor
    activation: Tensor
    target: Tensor
    gram: Tensor
    cross: Tensor
    energy: Tensor

    @classmethod
    def zeros(cls, neurons: int, outputs: int, device: torch.device) -> Moments:
        """Moments of no tokens at all."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(
            0, empty(), empty(neurons), empty(outputs), empty(neurons, neurons), empty(neurons, outputs), empty()
        )

    def add(self, activations: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Takes in tokens: activations ``(tokens, n)``, targets ``(tokens, d)`` and weights ``(tokens,)``.

        Products are made in the dtype of the activations (float32 at least), sums kept in float64.
        """
        a, y, w = (x.float() if x.dtype in _HALF else x for x in (activations, targets, weights.unsqueeze(1)))
        weighted = a * w
        self.tokens += len(a)
        self.weight += w.sum(dtype=torch.float64)
        self.activation += weighted.sum(dim=0, dtype=torch.float64)
        self.target += (y * w).sum(dim=0, dtype=torch.float64)
        self.gram += weighted.T @ a
        self.cross += weighted.T @ y
        self.energy += (y.square() * w).sum(dtype=torch.float64)

    def centred(self) -> tuple[Tensor, Tensor]:
        """``gram`` and ``cross`` of deviations from the means, ``(n, n)`` and ``(n, d)``."""
        mean = self.activation / self.weight
        return self.gram - torch.outer(mean, self.activation), self.cross - torch.outer(mean, self.target)

    def of(self, keep: Tensor) -> Moments:
        """The moments of some neurons."""
        return replace(self, activation=self.activation[keep], gram=self.gram[keep][:, keep], cross=self.cross[keep])

    def error(self, weight: Tensor, bias: Tensor | None, keep: Tensor) -> float:
        """Share of the target's variance that ``a[keep] -> weight a[keep] + bias`` leaves unexplained.

        Args:
            weight: ``(d, kept)``.
            bias: ``(d,)`` or none.
            keep: ``(kept,)`` indices.
        """
        weight = weight.double()
        offset = torch.zeros_like(self.target) if bias is None else bias.double()
        predicted = torch.sum((weight @ self.gram[keep][:, keep]) * weight)
        mixed = torch.sum(weight * self.cross[keep].T) - offset @ (weight @ self.activation[keep])
        squared = predicted - 2 * mixed + self.energy - 2 * offset @ self.target + self.weight * offset @ offset
        return float(squared.clamp(min=0) / self.variance)

    @property
    def variance(self) -> Tensor:
        """Summed squared deviation of targets from their mean, a scalar above zero."""
        variance = self.energy - self.target @ self.target / self.weight
        # A target that hardly varies would make any rounding look like a miss.
        floor = 1e-12 * self.energy + torch.finfo(torch.float64).tiny
        return variance.clamp(min=floor)

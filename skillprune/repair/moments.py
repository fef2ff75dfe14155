"""Second moments of a layer's activations and of the output it should give: all that any repair needs to know."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Moments:
    """Running sums over real tokens, in float64; ``n`` neurons, ``d`` outputs. Size does not depend on the data.

    Attributes:
        tokens: number of tokens summed.
        activation: sum of activations, ``(n,)``.
        target: sum of targets, ``(d,)``.
        gram: sum of ``a a^T``, ``(n, n)``.
        cross: sum of ``a y^T``, ``(n, d)``.
        energy: sum of ``||y||^2``.
    """

    tokens: int
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

        return cls(0, empty(neurons), empty(outputs), empty(neurons, neurons), empty(neurons, outputs), empty())

    def add(self, activations: Tensor, targets: Tensor) -> None:
        """Takes in tokens: activations ``(tokens, n)`` and targets ``(tokens, d)``.

        Products are made in the dtype of the activations (float32 at least), sums kept in float64.
        """
        a, y = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (activations, targets))
        self.tokens += len(a)
        self.activation += a.sum(dim=0, dtype=torch.float64)
        self.target += y.sum(dim=0, dtype=torch.float64)
        self.gram += a.T @ a
        self.cross += a.T @ y
        self.energy += y.double().square().sum()

    def centred(self) -> tuple[Tensor, Tensor]:
        """``gram`` and ``cross`` of deviations from the means, ``(n, n)`` and ``(n, d)``."""
        mean = self.activation / self.tokens
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
        squared = predicted - 2 * mixed + self.energy - 2 * offset @ self.target + self.tokens * offset @ offset
        variance = self.energy - self.target @ self.target / self.tokens
        # A target that hardly varies would make any rounding look like a miss.
        floor = 1e-12 * self.energy + torch.finfo(torch.float64).tiny
        return float(squared.clamp(min=0) / variance.clamp(min=floor))

"""What a down projection becomes when some of its neurons go: three closed forms over the same second moments."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from skillprune.errors import DataError
from skillprune.families import FFN
from skillprune.repair.moments import Moments

logger = logging.getLogger(__name__)

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried on held-out tokens."""

UNTRIED_RIDGE = 1e-2
"""Strength where nothing was held out to try others on."""

TOKENS_PER_COLUMN = 4
"""With fewer the strongest ridge is taken."""


@dataclass(frozen=True)
class Statistics:
    """Second moments of some neurons of one layer, and of what it should write.

    Attributes:
        fit: over the tokens that shape a repair, weighted where the method fits.
        held_out: over those that do not.
    """

    fit: Moments
    held_out: Moments

    @property
    def measure(self) -> Moments:
        """What errors are measured on: held-out tokens where there are some."""
        return self.held_out if self.held_out.tokens else self.fit

    def refuse_not_finite(self, ffn: FFN) -> None:
        """Sees to it that the layer can be repaired.

        Raises:
            DataError: a moment is not finite.
        """
        if not all(bool(sums.isfinite().all()) for m in (self.fit, self.held_out) for sums in (m.gram, m.cross)):
            raise DataError(
                f"the activations of {ffn.stack.name} layer {ffn.layer} are not finite; it cannot be repaired"
            )


Solution = tuple[Tensor, Tensor | None]
"""Weight ``(d, kept)`` and bias ``(d,)``, or no bias where the layer has none to store it in."""

Solve = Callable[[Statistics, Tensor, Tensor | None, Tensor, "float | None"], Solution]
"""``(statistics, weight (d, n), bias (d,), keep (kept,), ridge) -> solution``; weights in float64."""


class Method(NamedTuple):
    """A repair, whether it reads the neurons that go beside those that stay, and whether it fits weights to a target.

    One that fits weighs tokens, and may refit attention too.
    """

    solve: Solve
    reads_pruned: bool = False
    fits: bool = False


def slice_only(
    statistics: Statistics, weight: Tensor, bias: Tensor | None, keep: Tensor, ridge: float | None
) -> Solution:
    """The pruned neurons count as silent."""
    return weight[:, keep], bias


def fold_means(
    statistics: Statistics, weight: Tensor, bias: Tensor | None, keep: Tensor, ridge: float | None
) -> Solution:
    """Adds what the pruned neurons give on average to the bias: ``b + W[:, P] mu_P``; slices where there is no bias.

    The fold of FLAP (An et al., arXiv 2312.11983), added to the bias instead of replacing it.
    """
    if bias is None:
        return weight[:, keep], None
    pruned = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    pruned[keep] = False
    moments = statistics.fit
    return weight[:, keep], bias + weight[:, pruned] @ (moments.activation[pruned] / moments.weight)


def least_squares(
    statistics: Statistics, weight: Tensor, bias: Tensor | None, keep: Tensor, ridge: float | None
) -> Solution:
    """Fits the kept columns to the target by ridge regression towards their old values.

    Minimises ``||A_K V^T + 1 c^T - Y||^2 + lambda ||V - W_K||^2``, where ``lambda = ridge * mean(diag(A_K^T A_K))``,
    with every token weighted by the inverse of its stream's variance, by which the next normalisation divides too. So
    the few special tokens on which outlier neurons fire count like others, however large what is written there.
    With a bias all moments are centred and the intercept is free, without one there is no intercept. The target is what
    the dense network adds to the residual stream, as in K-prune (Park et al., arXiv 2308.03449), here with ridge.
    Without a given ridge, the one of `RIDGES` that misses least on held-out tokens is taken, and where tokens are too
    few to choose by, the strongest.
    """
    moments = statistics.fit.of(keep)
    gram, cross = (moments.gram, moments.cross) if bias is None else moments.centred()

    def solved(strength: float) -> Solution:
        fitted = _ridge(gram, cross, weight[:, keep].T, strength).T
        if bias is None:
            return fitted, None
        return fitted, (moments.target - fitted @ moments.activation) / moments.weight

    if ridge is not None:
        return solved(ridge)
    if are_few(moments.tokens, len(keep)):
        return solved(RIDGES[-1])
    if not statistics.held_out.tokens:
        return solved(UNTRIED_RIDGE)
    solutions = [solved(strength) for strength in RIDGES]
    return min(solutions, key=lambda solution: statistics.held_out.error(solution[0], solution[1], keep))


def are_few(tokens: int, columns: int) -> bool:
    """Whether a fit of so many columns would rest on its ridge more than on data."""
    return tokens < TOKENS_PER_COLUMN * columns


METHODS: dict[str, Method] = {
    "zero": Method(slice_only),
    "mean": Method(fold_means, reads_pruned=True),
    "least_squares": Method(least_squares, fits=True),
}
"""Repairs by the name a recipe uses."""


def _ridge(gram: Tensor, cross: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """Solves ``(gram + s I) x = cross + s prior``, raising ``s`` tenfold while the matrix is not positive definite."""
    strength = ridge * gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    while True:
        factor, failed = torch.linalg.cholesky_ex(gram + torch.diag(strength.expand(len(gram))))
        if not failed:
            return torch.cholesky_solve(cross + strength * prior, factor)
        strength = 10 * strength
        logger.warning("the activations are nearly collinear: ridge raised to %.3g", float(strength))

"""What a down projection becomes when some of its neurons go: three closed forms over the same second moments."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from skillprune.repair.moments import Moments

logger = logging.getLogger(__name__)

Solution = tuple[Tensor, Tensor | None]
"""Weight ``(d, kept)`` and bias ``(d,)``, or no bias where the layer has none to store it in."""

Method = Callable[[Moments, Tensor, Tensor | None, Tensor, float], Solution]
"""``(moments, weight (d, n), bias (d,), keep (kept,), ridge) -> solution``; weights in float64."""


def zero(moments: Moments, weight: Tensor, bias: Tensor | None, keep: Tensor, ridge: float) -> Solution:
    """Slices only: the pruned neurons count as silent."""
    return weight[:, keep], bias


def mean(moments: Moments, weight: Tensor, bias: Tensor | None, keep: Tensor, ridge: float) -> Solution:
    """Adds what the pruned neurons give on average to the bias: ``b + W[:, P] mu_P``; slices where there is no bias.

    The fold of FLAP (An et al., arXiv 2312.11983), added to the bias instead of replacing it.
    """
    if bias is None:
        return weight[:, keep], None
    pruned = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    pruned[keep] = False
    return weight[:, keep], bias + weight[:, pruned] @ (moments.activation[pruned] / moments.tokens)


def least_squares(moments: Moments, weight: Tensor, bias: Tensor | None, keep: Tensor, ridge: float) -> Solution:
    """Fits the kept columns to the target by ridge regression towards their old values.

    Minimises ``||A_K V^T + 1 c^T - Y||^2 + lambda ||V - W_K||^2``, where ``lambda = ridge * mean(diag(A_K^T A_K))``.
    With a bias all moments are centred and the intercept is free, without one there is no intercept. The target is what
    the dense network adds to the residual stream, as in K-prune (Park et al., arXiv 2308.03449), here with ridge.
    """
    gram, cross = moments.gram[keep][:, keep], moments.cross[keep]
    if bias is not None:
        centre = moments.activation[keep] / moments.tokens
        gram = gram - moments.tokens * torch.outer(centre, centre)
        cross = cross - torch.outer(centre, moments.target)
    fitted = _ridge(gram, cross, weight[:, keep].T, ridge).T
    if bias is None:
        return fitted, None
    return fitted, (moments.target - fitted @ moments.activation[keep]) / moments.tokens


METHODS: dict[str, Method] = {"zero": zero, "mean": mean, "least_squares": least_squares}
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

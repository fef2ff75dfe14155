"""Which neuron a layer misses least, again and again until none is left, when the others take over what they can.

Pure linear algebra on second moments; where they come from is left to the criterion.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MOST_AT_ONCE = 64
"""Neurons removed per step; their costs are taken as independent of each other within one."""

SHARE_AT_ONCE = 0.05
"""Most neurons removed per step, as a share of those left."""


class Elimination(NamedTuple):
    """A layer's neurons in the order they can be spared.

    Attributes:
        order: neuron indices, the first to go first, ``(neurons,)``.
        cost: summed cost of removing all neurons up to each place of the order, ``(neurons,)``; never falls.
    """

    order: Tensor
    cost: Tensor


def eliminate(gram: Tensor, weight: Tensor, metric: Tensor, *, ridge: float = 0.01) -> Elimination:
    """Greedy backward elimination with exact least-squares updates (optimal brain surgeon, structured).

    With ``H = A^T A + lambda I``, where ``lambda = ridge * mean(diag A^T A)``, and the pull towards the old weights
    that the ridge means, removing the set ``S`` of the neurons that are left raises the objective by
    ``1/2 tr(V_S^T [B_SS]^-1 V_S)``, where ``V = W L``, ``L L^T`` is the metric and ``B`` the inverse of ``H`` on the
    neurons left. Then ``V <- V - B[:, S] [B_SS]^-1 V_S``, and the same downdate for ``B``. Sources: OSSCAR (Meng et
    al., ICML 2024, arXiv 2403.12983) and ZipLM (Kurtic et al., NeurIPS 2023, arXiv 2302.04089); the metric on the
    output side is ours. Neurons that never fire go first, at the cost that the ridge gives them, which is not counted.
    Of several experts the neurons of one index go together, at the sum of their costs.

    Args:
        gram: second moments of every expert's activations ``(experts, neurons, neurons)``, centred where there is a
            bias; float64.
        weight: the down projections, ``(experts, hidden, neurons)``.
        metric: how much an error of the output matters, ``(hidden, hidden)``, positive semidefinite.
        ridge: strength of the pull towards the old weights, relative to the mean squared activation.
    """
    neurons, device = gram.shape[-1], gram.device
    variance = gram.diagonal(dim1=1, dim2=2)
    silent = (variance <= 0).all(dim=0)
    order: list[Tensor] = [silent.nonzero().squeeze(1).flip(0)]
    costs: list[Tensor] = [torch.zeros(int(silent.sum()), dtype=torch.float64, device=device)]
    left = (~silent).nonzero().squeeze(1)
    strength = ridge * variance.mean(dim=1)
    values = (weight.mT.to(gram) @ _root(metric.to(gram)))[:, left]
    inverse = _inverse(_among(gram, left), strength)
    refreshed = len(left)
    while len(left):
        single = (values.square().sum(dim=2) / (2 * inverse.diagonal(dim1=1, dim2=2))).sum(dim=0)
        # Descending by index first, so that of equals the higher index goes first and rankings agree with `ranking`.
        by_index = torch.arange(len(left) - 1, -1, -1, device=device)
        chosen = by_index[torch.argsort(single[by_index], stable=True)[: _step(len(left))]]
        stays = torch.ones(len(left), dtype=torch.bool, device=device)
        stays[chosen] = False
        gone = torch.cat([values[:, chosen], inverse[:, chosen]], dim=2)
        moved, downdate = torch.linalg.solve(_among(inverse, chosen), gone).tensor_split([values.shape[2]], dim=2)
        total = 0.5 * (values[:, chosen] * moved).sum()
        order.append(left[chosen])
        costs.append(_shared(total, single[chosen]))
        across = inverse[:, stays][..., chosen]
        values = values[:, stays] - across @ moved
        inverse = inverse[:, stays][..., stays] - across @ downdate[..., stays]
        left = left[stays]
        if len(left) <= refreshed // 2:  # downdates drift, so the inverse is made anew now and then
            inverse, refreshed = _inverse(_among(gram, left), strength), len(left)
    assert sum(map(len, order)) == neurons
    return Elimination(torch.cat(order), torch.cat(costs).cumsum(dim=0))


def _among(matrices: Tensor, chosen: Tensor) -> Tensor:
    """Rows and columns of some neurons in matrices of all, ``(experts, neurons, neurons)``."""
    return matrices[:, chosen][..., chosen]


def _step(left: int) -> int:
    return max(1, min(MOST_AT_ONCE, int(SHARE_AT_ONCE * left)))


def _shared(total: Tensor, single: Tensor) -> Tensor:
    """The exact cost of a step, shared out in proportion to what each neuron would cost alone."""
    alone = single.sum()
    return total * single / alone if bool(alone > 0) else torch.zeros_like(single)


def _root(metric: Tensor) -> Tensor:
    """``L`` with ``L L^T`` equal to the metric."""
    values, vectors = torch.linalg.eigh(metric)
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root


def _inverse(gram: Tensor, strength: Tensor) -> Tensor:
    """Inverses of ridged Gram matrices; the ridges are raised while a matrix is not positive definite."""
    floor = strength.clamp(min=torch.finfo(torch.float64).tiny)
    while True:
        factor, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(floor.unsqueeze(1).expand(gram.shape[:2])))
        if not bool(failed.any()):
            return torch.cholesky_inverse(factor)
        floor = 10 * floor

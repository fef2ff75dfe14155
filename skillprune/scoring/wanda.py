"""Wanda for structured pruning: how much a neuron's column can contribute, given how strongly the neuron fires."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skillprune.data import Batch
from skillprune.families import FFN, Site
from skillprune.scoring.criterion import Criterion, Settings, Split


class Wanda(Criterion):
    """``||A[:, j]||_2 * sum_i |W_out[i, j]|`` over real tokens.

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695), summed
    over the output dimension for whole columns as in FASP (arXiv 2501.09412).
    """

    name = "wanda"
    reads = ("calibration",)

    def __init__(self, ffns: Sequence[FFN], settings: Settings) -> None:
        super().__init__(ffns, settings)
        self._squares: dict[Site, Tensor] = {
            ffn.site: torch.zeros(ffn.width, dtype=torch.float64, device=ffn.down.weight.device) for ffn in ffns
        }

    def update(self, split: Split, ffn: FFN, activations: Tensor, batch: Batch) -> None:
        """Adds the batch's sum of squares over real tokens, in float32 at least; over batches in float64."""
        tokens = activations[batch.mask]
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        self._squares[ffn.site] += torch.linalg.vector_norm(tokens, dim=0, dtype=dtype).double().square()

    def finish(self, ffn: FFN) -> NDArray[np.float64]:
        """Scores ``(neurons,)``."""
        reach = ffn.down.weight.detach().double().abs().sum(dim=0)
        return np.asarray((self._squares[ffn.site].sqrt() * reach).cpu().numpy())

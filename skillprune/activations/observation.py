"""What one FFN did with one batch, and the forms of it that criteria share; each is computed once, when first asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from skillprune.activations.pooling import Reading, pool, silenced_
from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.families import FFN


@dataclass(frozen=True, eq=False)
class Observation:
    """One FFN, one batch, and perhaps the gradient of one quantity.

    Attributes:
        ffn: the FFN.
        batch: the batch, on the device of the activations.
        number: which batch of the stream it is, for messages.
        reading: where pooled values are read.
        activations: input of the down projection, ``(batch, sequence, neurons)``; where layers share the FFN, one
            layer's sequence after the other's, and those of several experts side by side.
        gradients: gradient of the quantity, summed over examples, at the activations; none in a plain pass.
        output_gradients: the same at the output of the down projection, ``(batch, sequence, hidden)``.
    """

    ffn: FFN
    batch: Batch
    number: int
    reading: Reading
    activations: Tensor
    gradients: Tensor | None = None
    output_gradients: Tensor | None = None

    @cached_property
    def mask(self) -> Tensor:
        """True at the real positions this FFN runs over, ``(batch, sequence)``."""
        return self.batch.mask_of(self.ffn.stack.side).repeat(1, self.ffn.uses)

    @cached_property
    def tokens(self) -> Tensor:
        """Activations of real tokens, ``(tokens, neurons)``, in float32 at least."""
        return self._finite(self._real(self.activations), "activations")

    @property
    def by_expert(self) -> tuple[Tensor, ...]:
        """Activations of the tokens that came to each expert, ``(tokens, neurons)``; all tokens where there is one."""
        if self.ffn.experts == 1:
            return (self.tokens,)
        return tuple(part[part.any(dim=1)] for part in self.tokens.split(self.ffn.width, dim=1))

    @cached_property
    def pooled(self) -> Tensor:
        """Activations at the positions that are read, ``(batch, positions, neurons)``, in float32 at least.

        Where layers share the FFN, the mean over them.
        """
        layers = self.activations.chunk(self.ffn.uses, dim=1)
        pooled = [pool(layer, self.batch, self.reading, self.ffn.stack.side) for layer in layers]
        return self._finite(torch.stack(pooled).mean(dim=0) if len(pooled) > 1 else pooled[0], "activations")

    @cached_property
    def effects(self) -> Tensor:
        """First-order effect of every neuron on the quantity, per example: ``sum_s a_s dq/da_s``, ``(batch, neurons)``.

        The gradient with respect to a mask that multiplies the neuron (Kwon et al., arXiv 2204.09656); the sum over
        tokens is signed.
        """
        assert self.gradients is not None  # only asked for in passes with gradients
        weighted = _precise(self.activations) * _precise(self.gradients)
        return self._finite(silenced_(weighted, ~self.mask).sum(dim=1), "gradients")

    @cached_property
    def output_tokens(self) -> Tensor:
        """Gradients at the FFN's output for real tokens, ``(tokens, hidden)``, in float32 at least."""
        assert self.output_gradients is not None  # only asked for in passes with gradients
        return self._finite(self._real(self.output_gradients), "gradients")

    def check(self) -> None:
        """Looks at the activations of real tokens.

        Raises:
            DataError: one is not finite.
        """
        self._finite(self._real(self.activations), "activations")

    def _real(self, values: Tensor) -> Tensor:
        """Rows of real tokens, ``(tokens, features)``, in float32 at least; whole rows are quicker than a mask."""
        return _precise(values).flatten(0, 1).index_select(0, self.mask.flatten().nonzero().squeeze(1))

    def _finite(self, values: Tensor, what: str) -> Tensor:
        # NaN and infinity survive addition; so does a sum that overflows, and only then every value is looked at.
        if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
            name = f"{self.ffn.stack.name} layer {self.ffn.layer}"
            raise DataError(
                f"the {what} of {name} are not finite in batch {self.number} (examples "
                f"{', '.join(map(str, self.batch.indices.tolist()[:5]))}, ...); a model in float16 may overflow: "
                "set model.dtype to float32 or bfloat16"
            )
        return values


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))

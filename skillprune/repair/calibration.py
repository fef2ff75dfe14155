"""Whether calibration batches can carry a repair: what cannot is refused, what will lean on its ridge is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from skillprune.data import Batch
from skillprune.errors import DataError, UnsupportedArchitecture
from skillprune.families import FFN, Mixture, Side
from skillprune.planning import PruningPlan, Widths
from skillprune.repair.methods import are_few
from skillprune.repair.walk import held_out

logger = logging.getLogger(__name__)


def refuse_unusable(ffns: Sequence[FFN], batches: Sequence[Batch]) -> None:
    """Sees to it that there is something to fit on.

    Raises:
        DataError: there are no examples, or a decoder beside an encoder is not told its real positions.
    """
    if not any(bool((~held_out(batch)).any()) for batch in batches):
        raise DataError("there are no calibration examples to repair on; give at least one batch")
    written = any(ffn.stack.side == "output" for ffn in ffns)
    if written and any(batch.targets is None for batch in batches):
        raise DataError("the decoder can only be repaired on batches with targets, which tell its real positions")


def can_be_walked(ffns: Sequence[FFN]) -> bool:
    """Whether every block has an FFN of its own that every token goes through, and reads what the one before gives."""
    return all(ffn.uses == 1 and not ffn.stack.interrupted and not isinstance(ffn, Mixture) for ffn in ffns)


def refuse_unwalkable(ffns: Sequence[FFN]) -> None:
    """Sees to it that neurons can be chosen again, block by block.

    Raises:
        UnsupportedArchitecture: layers share an FFN, tokens are routed to experts, or something is between blocks.
    """
    if not can_be_walked(ffns):
        raise UnsupportedArchitecture(
            "neurons are chosen again block by block only where every block has one FFN of its own, which layers do "
            "not share and no tokens are routed past, and reads what the one before gives; set plan.selection to once"
        )


def refuse_offloaded(model: PreTrainedModel) -> None:
    """Sees to it that blocks can be copied and written, one after the other.

    Raises:
        UnsupportedArchitecture: weights are kept elsewhere and lent to the modules that need them.
    """
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise UnsupportedArchitecture(
            "a model that leaves weights outside the devices that compute cannot be repaired block by block; load it "
            "without a device map that offloads to the CPU or to disk"
        )


def refuse_unmendable(ffns: Sequence[FFN], widths: Widths) -> None:
    """Sees to it, before anything is cut, that attention can be rewritten where it will be.

    Raises:
        UnsupportedArchitecture: a projection of attention is not a plain linear layer.
    """
    for ffn in ffns:
        if widths[ffn.stack.name][ffn.layer] < ffn.width:
            _ = (*ffn.attending, ffn.attention)  # finding them refuses what is not linear


def warn_of_few_tokens(
    ffns: Sequence[FFN], plan: PruningPlan, batches: Sequence[Batch], *, sequential: bool, attention: bool
) -> None:
    """Once, of the first fit that has few tokens for its columns."""
    for side, columns in _fits(ffns, plan, sequential, attention):
        tokens = sum(int(batch.mask_of(side)[~held_out(batch)].sum()) for batch in batches)
        if are_few(tokens, columns):
            logger.warning(
                "%d calibration tokens are few to fit %d columns: a strong ridge will keep weights near their old "
                "values; give more examples",
                *(tokens, columns),
            )
            return


def _fits(ffns: Sequence[FFN], plan: PruningPlan, sequential: bool, attention: bool) -> Iterator[tuple[Side, int]]:
    """Which tokens every fit will read, and how many columns it has."""
    cut = [ffn for ffn in ffns if len(plan.keep[ffn.stack.name][ffn.layer]) < ffn.width]
    for ffn in cut:
        yield ffn.stack.side, len(plan.keep[ffn.stack.name][ffn.layer])
        if sequential and ffn is not cut[0]:
            yield ffn.stack.side, ffn.hidden
            if attention:
                yield ffn.stack.side, ffn.attention.in_features

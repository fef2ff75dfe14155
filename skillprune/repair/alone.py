"""Repairs FFNs one by one where no walk from block to block leads: shared ones, mixtures, interrupted stacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from skillprune.activations import evaluating, inputs_of, joined
from skillprune.data import Batch
from skillprune.families import FFN
from skillprune.planning import PruningPlan
from skillprune.progress import Progress, track
from skillprune.repair.lessons import precise
from skillprune.repair.methods import Method, Statistics
from skillprune.repair.moments import Moments
from skillprune.repair.passes import run_until_reached, stopping_after
from skillprune.repair.rewriting import LayerError, repair_layer_
from skillprune.repair.walk import Weigh, alike, held_out, inverse_variance
from skillprune.surgery import record_widths_


def repair_one_by_one_(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    plan: PruningPlan,
    batches: Sequence[Batch],
    method: Method,
    ridge: float | None,
    progress: Progress,
) -> tuple[LayerError, ...]:
    """Prunes in place, bottom to top; each FFN is fitted to what it wrote itself, on the network pruned so far.

    Errors from below are not corrected: where layers share weights no rewriting serves them all, and where tokens are
    routed they may have come another way in the dense network. Experts are fitted one by one, to the tokens that come
    to them. The model runs once over the batches for every layer, up to there. Weights that accelerate lends from disk
    are kept in the CPU's memory once they are cut.
    """
    weigh = inverse_variance if method.fits else alike
    errors: list[LayerError] = []
    with evaluating(model):
        for ffn in sorted(ffns, key=lambda ffn: ffn.layer):
            kept = plan.keep[ffn.stack.name][ffn.layer]
            if len(kept) < ffn.width:
                read = range(ffn.width) if method.reads_pruned else kept
                found = _watched(model, ffn, read, batches, weigh, progress)
                with ffn.at_hand():
                    errors.append(repair_layer_(ffn, found, read, kept, method, ridge))
    record_widths_(model)
    return tuple(errors)


def _watched(
    model: PreTrainedModel, ffn: FFN, read: Sequence[int], batches: Sequence[Batch], weigh: Weigh, progress: Progress
) -> list[Statistics]:
    """What every expert's neurons do, of those that are read, and what the expert writes."""
    found = [_nothing(ffn, len(read)) for _ in ffn.downs]
    columns = torch.tensor(list(read), dtype=torch.long, device=ffn.device)
    for given in track(batches, f"repair ({ffn.stack.name} layer {ffn.layer})", progress):
        batch = given.to(ffn.device)
        with _entering(ffn) as states, stopping_after(ffn.block, ffn.uses):
            run_until_reached(model, batch)
        entering, residual = (tensor.reshape(-1, tensor.shape[-1]) for tensor in states())
        with torch.inference_mode():
            activations = ffn.activations(entering)
            written = ffn.written(activations)
            stream = ffn.addition.goal(precise(residual), precise(sum(written, torch.zeros_like(residual))))
            weights = weigh(stream)
        for statistics, fired, target in zip(found, activations.split(ffn.width, dim=-1), written, strict=True):
            _add(statistics, ffn, batch, fired, columns, target, weights)
    return found


def _nothing(ffn: FFN, inputs: int) -> Statistics:
    return Statistics(*(Moments.zeros(inputs, ffn.hidden, ffn.device) for _ in range(2)))


@contextmanager
def _entering(ffn: FFN) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
    """What enters the watched module and the stream that its output is added to, after a run of the model."""
    with ExitStack() as hooks:
        calls = [hooks.enter_context(inputs_of(module)) for module in (ffn.watched, ffn.residual)]
        yield lambda: (joined(calls[0]), joined(calls[1]))


def _add(
    found: Statistics,
    ffn: FFN,
    batch: Batch,
    activations: Tensor,
    columns: Tensor,
    target: Tensor,
    weights: Tensor,
) -> None:
    """Takes in the real tokens that came to an expert, ``(tokens, neurons)``."""
    came = activations.any(dim=1) if ffn.experts > 1 else torch.ones_like(weights, dtype=torch.bool)
    real, measuring = (
        mask.repeat(1, ffn.uses).flatten()
        for mask in (batch.mask_of(ffn.stack.side), held_out(batch).unsqueeze(1).expand(batch.mask.shape))
    )
    for moments, mask in ((found.fit, ~measuring), (found.held_out, measuring)):
        rows = (came & real & mask).nonzero().squeeze(1)
        moments.add(activations[rows][:, columns], target[rows], weights[rows])

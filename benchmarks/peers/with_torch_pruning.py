"""Prunes FFN neurons with torch-pruning, in torch-pruning's own environment: ``python with_torch_pruning.py job.json``.

The up projections are the roots; every other linear layer is ignored, so attention and hidden size stay. Importances
have the library's defaults (`group_reduction="mean"`, `normalizer="mean"`): up and down projections are averaged.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
import torch_pruning as tp
from job import Arm, Batch, Job, answer, load_dense, read_batches, read_job, ups, write_outcome
from torch import nn
from transformers import PreTrainedModel

IMPORTANCES = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "taylor": tp.importance.GroupTaylorImportance,
    "hessian": tp.importance.GroupHessianImportance,
}


Scored = tuple[PreTrainedModel, tp.importance.Importance, float]
"""The dense model with the gradients that an importance reads, the importance, and the seconds that took."""


def main() -> None:
    """Every arm without an outcome; arms of one importance share its gradients."""
    job = read_job()
    test = read_batches(job.test, 32)
    scored: dict[str, Scored] = {}
    for arm in job.open_arms():
        kind = arm.settings["importance"]
        if kind not in scored:
            scored[kind] = dense_with(kind, job)
        run(job, arm, *scored[kind], test)


def dense_with(kind: str, job: Job) -> Scored:
    """What an importance needs."""
    since = time.perf_counter()
    model, importance = load_dense(job), IMPORTANCES[kind]()
    if kind == "taylor":
        for batch in read_batches(job.calibration, 32):
            # A sum over examples, so that the last and smaller batch weighs what it holds.
            (model(**batch.tensors()).loss * len(batch.labels)).backward()
    if kind == "hessian":
        accumulate_squares(model, read_batches(job.calibration, 1))
    return model, importance, time.perf_counter() - since


def accumulate_squares(model: PreTrainedModel, calibration: Sequence[Batch]) -> None:
    """Puts the sum of squared gradients of single examples where the importance looks for it.

    The library's own `accumulate_grad` keeps the last example only (1.6.1 looks a parameter up by name and stores it by
    identity); what it documents is computed here.
    """
    scored = [each for each in model.parameters() if each.requires_grad]
    squares = [torch.zeros_like(each) for each in scored]
    for batch in calibration:
        model(**batch.tensors()).loss.backward()
        for square, parameter in zip(squares, scored, strict=True):
            square += parameter.grad**2
        model.zero_grad()
    for square, parameter in zip(squares, scored, strict=True):
        parameter.grad = square


def run(
    job: Job,
    arm: Arm,
    dense: PreTrainedModel,
    importance: tp.importance.Importance,
    seconds: float,
    test: Sequence[Batch],
) -> None:
    """Prunes a copy and answers the test split."""
    since = time.perf_counter() - seconds
    model = dense_copy(dense)
    roots = ups(model)
    everywhere = bool(arm.settings["global_pruning"])
    # The library floors neurons * (1 - ratio); half a neuron more makes the floor exact.
    share = arm.neurons // len(roots) + 0.5, roots[0].out_features
    if everywhere:
        share = arm.neurons + 0.5, sum(root.out_features for root in roots)
    kept = {id(root) for root in roots}
    linear = [each for each in model.modules() if isinstance(each, nn.Linear) and id(each) not in kept]
    pruner = tp.pruner.BasePruner(
        model,
        {name: torch.ones(2, 8, dtype=torch.long) for name in ("input_ids", "attention_mask")},
        importance=importance,
        global_pruning=everywhere,
        pruning_ratio=1 - share[0] / share[1],
        ignored_layers=linear,
        root_module_types=[nn.Linear],
    )
    pruner.step()
    widths = [root.out_features for root in ups(model)]
    logits = answer(model, test)
    write_outcome(job, arm, logits, widths=widths, parameters=size(model), since=since)


def dense_copy(dense: PreTrainedModel) -> PreTrainedModel:
    """A copy with gradients of its own."""
    model = copy.deepcopy(dense)
    for mine, theirs in zip(model.parameters(), dense.parameters(), strict=True):
        mine.grad = None if theirs.grad is None else theirs.grad.clone()
    return model


def size(model: nn.Module) -> int:
    """Parameters left."""
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
